import pytest
import torch
from torch.nn import Module
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, SAGEConv, SGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor

from devices import withDevice
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.edge_selection import spread_penalty
from torch_geometric_ext.lottery.edges.learned_scores import LearnedScores
from torch_geometric_ext.lottery.edges.prune_edges import prune_edges

# With a multi-edge, self-loops in between, and the isolated node 4:
EDGES = [[0, 1, 1, 2, 0, 1, 3, 2], [1, 0, 1, 0, 2, 0, 3, 1]]


def graph(device=None):
    torch.manual_seed(1)
    edge_index = torch.tensor(EDGES, device=device)
    return Data(x=torch.randn(5, 4, device=device), edge_index=edge_index)


def learned_scores(data, mask=None):
    pairs = EdgePairs(data.edge_index, data.num_nodes)
    if mask is None:
        mask = pairs.ends.new_ones(pairs.num_pairs, dtype=torch.bool)
    out = LearnedScores(pairs, mask, torch.Generator().manual_seed(0), l1=0.0)
    out.score.data.uniform_(0.5, 2.0)
    out.spread = 0.0
    return out, pairs


def scales(edges, pairs):
    """The factor of each edge, self-loops have one."""
    scale = edges.score.detach()[pairs.pair.clamp(min=0)]
    return scale.masked_fill(pairs.is_loop, 1.0)


def messages(edge_index, weight, x):
    """The sum of weighted messages, by a loop."""
    out = torch.zeros_like(x)
    for i, (source, target) in enumerate(edge_index.t().tolist()):
        out[target] += weight[i] * x[source]
    return out


def run(edges, model, data):
    outs = []

    def loss_fn(model, data):
        outs.append(model(data.x, data.edge_index))
        return outs[-1].sum()

    edges.loss(loss_fn, model, data).backward()
    return outs[0]


@withDevice
@pytest.mark.parametrize('cached', [False, True])
def test_learned_scores_gcn(device, cached):
    data = graph(device)
    edges, pairs = learned_scores(data)
    conv = GCNConv(4, 3, cached=cached).to(device)
    index, norm = gcn_norm(data.edge_index, num_nodes=5)
    loops = index[0] == index[1]
    factor = torch.ones_like(norm)
    factor[~loops] = scales(edges, pairs)[~pairs.is_loop]
    expected = messages(index, norm * factor, conv.lin(data.x)) + conv.bias
    for _ in range(2):
        out = run(edges, conv, data)
        assert torch.allclose(out, expected, atol=1e-5)
    assert edges.score.grad.abs().min() > 0
    # Hooks are removed afterwards:
    expected = messages(index, norm, conv.lin(data.x)) + conv.bias
    out = conv(data.x, data.edge_index)
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize('add_self_loops', [True, False])
def test_learned_scores_gat(add_self_loops):
    data = graph()
    edges, pairs = learned_scores(data)
    conv = GATConv(4, 3, add_self_loops=add_self_loops)
    x = conv.lin(data.x)
    index, alpha = conv(
        data.x, data.edge_index, return_attention_weights=True
    )[1]
    factor = torch.ones(index.size(1))
    between = index[0] != index[1]
    factor[between] = scales(edges, pairs)[~pairs.is_loop]
    expected = messages(index, alpha.flatten() * factor, x) + conv.bias
    assert torch.allclose(run(edges, conv, data), expected, atol=1e-5)


@pytest.mark.parametrize('aggr', ['mean', 'max', 'std'])
def test_learned_scores_numbered(aggr):
    # A mini-batch holds some of the remaining edges, in any order:
    data = graph()
    mask = torch.tensor([True, True, False, True, True, True])
    edges, pairs = learned_scores(data, mask)
    perm = torch.tensor([7, 3, 2, 0, 5])
    batch = Data(x=data.x, edge_index=data.edge_index[:, perm], e_id=perm)
    scale = scales(edges, pairs)
    conv = SAGEConv(4, 3, aggr=aggr)
    for full in [batch, data]:
        pruned = prune_edges(full, pairs.edge_mask(mask))
        ids = pruned.get('e_id', pairs.edge_mask(mask).nonzero().flatten())
        source, target = pruned.edge_index
        message = scale[ids].view(-1, 1) * data.x[source]
        aggregated = conv.aggr_module(message, target, dim_size=5)
        expected = conv.lin_l(aggregated) + conv.lin_r(data.x)
        out = run(edges, conv, pruned)
        assert torch.allclose(out, expected, atol=1e-5)


def test_learned_scores_cached_messages():
    # `SGConv` caches aggregated features, which depend on the scores:
    data = graph()
    edges, _ = learned_scores(data)
    conv = SGConv(4, 3, cached=True)
    first = run(edges, conv, data)
    edges.score.data.mul_(2)
    assert not torch.allclose(run(edges, conv, data), first)
    fresh = SGConv(4, 3)
    fresh.load_state_dict(conv.state_dict())
    expected = fresh(data.x, data.edge_index)
    assert torch.allclose(conv(data.x, data.edge_index), expected, atol=1e-6)


def test_learned_scores_penalties():
    data = graph()
    pairs = learned_scores(data)[1]
    mask = torch.tensor([True, True, False, True, False, True])
    generator = torch.Generator().manual_seed(0)
    edges = LearnedScores(pairs, mask, generator, l1=0.5, spread=0.25)
    assert (edges.score - 1).abs().max() < 1e-3
    small = prune_edges(data, pairs.edge_mask(mask))
    loss = edges.loss(lambda model, data: torch.ones(()), Module(), small)
    score = edges.score[mask]
    expected = 1 + 0.5 * score.abs().mean() + 0.25 * spread_penalty(score)
    assert torch.allclose(loss, expected)


class Converting(Module):
    """A model that changes edges before it passes messages along them."""

    def __init__(self, convert):
        super().__init__()
        self.conv = GCNConv(4, 3, normalize=False)
        self.convert = convert

    def forward(self, x, edge_index):
        return self.conv(x, self.convert(edge_index))


def test_learned_scores_errors():
    data = graph()
    edges, _ = learned_scores(data)
    for convert in [
        lambda edge_index: edge_index[:, 1:],
        lambda edge_index: edge_index.flip(1),
    ]:
        with pytest.raises(NotImplementedError, match='along all edges'):
            run(edges, Converting(convert), data)
    model = Converting(lambda edges: to_torch_csr_tensor(edges, size=(5, 5)))
    with pytest.raises(NotImplementedError, match='a dense tensor'):
        run(edges, model, data)


def test_learned_scores_edge_index():
    data = graph()
    conv = GCNConv(4, 3)
    edges, _ = learned_scores(data)
    expected = run(edges, conv, data)
    data.edge_index = EdgeIndex(data.edge_index, sparse_size=(5, 5))
    assert torch.allclose(run(edges, conv, data), expected, atol=1e-6)
