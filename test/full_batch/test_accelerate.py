import copy
import io
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from full_batch.models import (
    CHANNELS,
    GLOBAL,
    LOCAL,
    NUM_NODES,
    add_edge_values,
    assert_equal,
    grads,
    make_graph,
    make_sparse,
    plain,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN, GCNConv, GraphConv, SAGEConv

from devices import withDevice
from torch_geometric_ext.full_batch import (
    AcceleratedModel,
    StaticGraph,
    accelerate,
)

INDEX = torch.tensor([298, 4, 4, 0, 17])


def gcn(device=None, **kwargs):
    torch.manual_seed(0)
    return GCN(CHANNELS, 8, 2, 3, **kwargs).double().to(device)


def pair(model=None, data=None):
    """An accelerated model, and a copy that is not."""
    model = gcn() if model is None else model
    data = make_graph() if data is None else data
    return accelerate(model, StaticGraph(data)), copy.deepcopy(model), data


@withDevice
def test_accelerate(device):
    fast, model, data = pair(gcn(device), make_graph(device))
    assert isinstance(fast, AcceleratedModel) and fast.model is not None
    assert str(fast.graph) in str(fast)
    mask = data.train_mask
    for nodes in [mask, mask.nonzero().flatten().flip(0), ~mask, None]:
        assert_equal(fast, model, data, nodes)
        with torch.no_grad():
            assert_equal(fast, model, data, nodes)


@withDevice
@pytest.mark.parametrize('name', ['gcn', 'sage', 'gin', 'gat', 'pna'])
def test_training_is_the_same(name, device):
    torch.manual_seed(0)
    data = make_graph(device)
    model = LOCAL[name]().double().to(device)
    fast, model, data = pair(model, data)
    mask, losses = data.train_mask, [[], []]
    runs = [fast, lambda mask: plain(model, data, mask)]
    for run, net, values in zip(runs, [fast.model, model], losses):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            loss = F.cross_entropy(run(mask), data.y[mask])
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
    assert losses[0][-1] < losses[0][0]


@withDevice
@pytest.mark.parametrize('name', ['gcn', 'gat', 'sage max'])
def test_empty_selections(name, device):
    torch.manual_seed(0)
    data = make_graph(device)
    fast, model, data = pair(LOCAL[name]().double().to(device), data)
    index = torch.empty(0, dtype=torch.long, device=device)
    for nodes in [index, torch.zeros_like(data.train_mask)]:
        assert fast(nodes).shape == (0, 3)
        assert_equal(fast, model, data, nodes)


@pytest.mark.parametrize('name', ['gcn', 'sage', 'gin', 'gat', 'gcn2'])
@pytest.mark.parametrize('num_nodes', [1, 5])
def test_small_graphs_without_edges(name, num_nodes):
    torch.manual_seed(0)
    data = Data(
        x=torch.randn(num_nodes, CHANNELS).double(),
        edge_index=torch.empty(2, 0, dtype=torch.long),
    )
    fast, model, data = pair(LOCAL[name]().double(), data)
    for nodes in [None, torch.zeros(3, dtype=torch.long)]:
        assert_equal(fast, model, data, nodes)


def test_seeds_in_mini_batches():
    fast, model, data = pair(gcn(), make_sparse(make_graph()))
    for _ in range(2):
        for nodes in torch.arange(NUM_NODES).split(20):
            assert_equal(fast, model, data, nodes)
    assert len(fast.graph._cache) == 8


def test_several_graphs():
    """One model runs on two graphs, and two models on one graph."""
    model, graphs = gcn(), [make_graph(), make_graph(directed=True)]
    graphs[1].x = graphs[1].x.flip(0)
    fasts = [accelerate(model, StaticGraph(data)) for data in graphs]
    other = accelerate(gcn(bias=False), fasts[0].graph)
    for _ in range(2):
        for fast, data in zip([*fasts, other], [*graphs, graphs[0]]):
            plain_model = copy.deepcopy(fast.model)
            assert_equal(fast, plain_model, data, data.train_mask)


def test_updated_features():
    fast, model, data = pair()
    fast(data.train_mask)
    data.x = make_sparse(make_graph()).x
    fast.graph.update(data.x)
    for nodes in [data.train_mask, None]:
        assert_equal(fast, model, data, nodes)


def test_modes_of_the_model():
    """The mode of the model counts, not the one of the wrapper."""
    fast, model, data = pair(gcn(dropout=0.5))
    mask = data.train_mask
    assert not torch.equal(fast(mask), fast(mask))
    fast.model.eval()
    assert fast.training
    assert_equal(fast, model.eval(), data, mask)
    fast.train()
    assert fast.model.training and fast.model.dropout.training
    assert not torch.equal(fast(mask), fast(mask))


def test_state_dict():
    fast, model, data = pair(gcn(norm='BatchNorm'))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert list(fast.state_dict(prefix='a.'))[0].startswith('a.convs')
    fast(data.train_mask)
    model.load_state_dict(fast.state_dict())
    assert_equal(fast, model, data, data.train_mask)
    other = gcn(norm='BatchNorm')
    nn.init.ones_(other.convs[0].lin.weight)
    fast.load_state_dict(other.state_dict())
    assert_equal(fast, other, data, data.train_mask)
    outer = nn.ModuleDict({'fast': fast, 'last': nn.Linear(2, 2)})
    state = {k: torch.zeros_like(x) for k, x in outer.state_dict().items()}
    assert set(state) == {
        *(f'fast.{key}' for key in model.state_dict()),
        'last.weight',
        'last.bias',
    }
    outer.load_state_dict(state)
    assert not any(x.any() for x in outer.state_dict().values())
    outer.load_state_dict(state, assign=True)
    assert not fast(data.train_mask).any()


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = GCNConv(CHANNELS, 3)

    def forward(self, x, edge_index):
        return self.model(x, edge_index)


def test_state_dict_of_a_model_with_an_inner_model():
    fast, model, data = pair(Named().double())
    assert list(fast.state_dict()) == ['model.bias', 'model.lin.weight']
    fast.load_state_dict(model.state_dict())
    assert_equal(fast, model, data, data.train_mask)


def test_copies():
    fast, _, data = pair()
    fast(data.train_mask)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    for other in [
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(buffer, weights_only=False),
    ]:
        with torch.no_grad():
            other.model.convs[0].lin.weight.add_(1.0)
        expected = copy.deepcopy(other.model)
        assert_equal(other, expected, data, data.train_mask)
        assert other.select(data.train_mask).nodes is not None
        assert not torch.equal(other(data.train_mask), fast(data.train_mask))
        other.model.convs[0].register_message_forward_hook(lambda *args: None)
        with pytest.warns(UserWarning, match='passes more messages'):
            assert_equal(other, expected, data, data.train_mask)


@pytest.mark.parametrize(
    'name, backend', [('gcn', 'aot_eager'), ('gat', 'eager')]
)
def test_compile(name, backend):
    torch.manual_seed(0)
    torch._dynamo.reset()
    data = make_sparse(make_graph())
    fast, model, data = pair(LOCAL[name]().double(), data)
    compiled = torch.compile(fast, backend=backend)
    mask = data.train_mask
    for _ in range(2):
        out, expected = compiled(mask), plain(model, data, mask)
        torch.testing.assert_close(out, expected)
        found = grads(fast.model, out)
        torch.testing.assert_close(found, grads(model, expected))


def run_rank(path):
    """Train with other labels on each rank."""
    rank = torch.distributed.get_rank()
    data = make_graph()
    model = gcn()
    other = copy.deepcopy(model)
    ddp = DistributedDataParallel(accelerate(model, StaticGraph(data)))
    masks = [data.train_mask, data.val_mask]
    ddp(masks[rank]).square().mean().backward()
    loss = sum(plain(other, data, mask).square().mean() for mask in masks) / 2
    expected = torch.autograd.grad(loss, list(other.parameters()))
    for param, grad in zip(model.parameters(), expected):
        torch.testing.assert_close(param.grad, grad)


def test_ddp(run_ranks):
    run_ranks(__file__)


def test_hooks():
    fast, model, data = pair()
    calls = []
    for net in [fast.model, model]:
        net.register_forward_hook(lambda *args: calls.append('model'))
        net.convs[1].register_forward_pre_hook(
            lambda _, args: (2 * args[0], *args[1:])
        )
        net.convs[0].register_full_backward_hook(
            lambda *args: calls.append('backward')
        )
        net.convs[1].lin.register_forward_hook(lambda _, args, out: out + 1)
    assert_equal(fast, model, data, data.train_mask)
    assert calls == ['model', 'backward'] * 2
    assert fast.report().num_hops['training'] == 1


def test_hooks_of_messages():
    """Features are no longer aggregated once, which is noticed."""
    fast, model, data = pair()
    calls = []
    fast.model.convs[0].register_message_forward_hook(
        lambda *args: calls.append('message')
    )
    with pytest.warns(UserWarning, match='passes more messages'):
        assert_equal(fast, model, data, data.train_mask)
    assert len(calls) > 0


class Stateful(nn.Module):
    """Has attributes that change, by itself or from outside."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(CHANNELS, 3)
        self.step, self.scale = 0, 1.0

    def forward(self, x, edge_index):
        self.step += 1
        self.hidden = self.conv(x, edge_index)
        return self.hidden * self.scale * self.step


def test_attributes():
    fast, model, data = pair(Stateful().double())
    for i in range(3):
        fast.model.scale = model.scale = 2.0**i
        assert_equal(fast, model, data, data.train_mask)
        assert fast.model.step == model.step == i + 1
    part = fast.select(data.train_mask)
    expected = model.hidden[part.nodes]
    torch.testing.assert_close(fast.model.hidden, expected)
    # Outputs of earlier calls can not be copied by PyTorch:
    again = accelerate(fast.model, fast.graph)
    assert again.select(data.train_mask).nodes is not None


def test_modules_that_are_exchanged():
    fast, _, data = pair()
    mask = data.train_mask
    fast.model.convs[0].add_self_loops = False
    assert not torch.equal(fast(mask), accelerate(gcn(), fast.graph)(mask))
    fast.model.convs[0].add_self_loops = True
    fast.model.convs[1].lin = nn.Linear(8, 3, bias=False).double()
    with pytest.raises(RuntimeError, match="call 'accelerate' again"):
        fast(mask)
    fast = accelerate(fast.model, fast.graph)
    fast.model.convs[0] = GCNConv(CHANNELS, 8).double()
    with pytest.raises(RuntimeError, match='exchanged'):
        fast(mask)


class Checkpointed(nn.Module):
    """Recomputes layers for gradients."""

    def __init__(self, reentrant):
        super().__init__()
        self.lin = nn.Sequential(nn.Linear(CHANNELS, 12), nn.Tanh())
        self.convs = nn.ModuleList([GCNConv(12, 8), SAGEConv(8, 3)])
        self.reentrant = reentrant

    def forward(self, x, edge_index):
        # Features need no gradient, which reentrant checkpoints need.
        x = self.lin(x) if self.reentrant else self._run(self.lin, x)
        for conv in self.convs:
            x = self._run(conv, x.relu(), edge_index)
        return x

    def _run(self, *args):
        return checkpoint(*args, use_reentrant=self.reentrant)


@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointing_inside_of_the_model(reentrant, sparse):
    torch.manual_seed(0)
    data = make_sparse(make_graph()) if sparse else make_graph()
    fast, model, data = pair(Checkpointed(reentrant).double(), data)
    mask = data.train_mask
    fast(mask).sum().backward()
    plain(model, data, mask).sum().backward()
    for a, b in zip(fast.model.parameters(), model.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_checkpoints_of_subgraphs_that_are_gone():
    fast, _, _ = pair(Checkpointed(False).double())
    out = fast(INDEX)
    for i in range(8):
        fast(INDEX[1:] + i)
    with pytest.raises(RuntimeError, match='no longer cached'):
        out.sum().backward()


@pytest.mark.parametrize('name', ['gcn', 'gat', 'sage', 'appnp'])
@pytest.mark.parametrize('sparse', [False, True])
def test_second_derivatives(name, sparse):
    torch.manual_seed(0)
    data = make_sparse(make_graph()) if sparse else make_graph()
    fast, model, data = pair(LOCAL[name]().double(), data)
    values = []
    for net, out in [
        (fast.model, fast(data.train_mask)),
        (model, plain(model, data, data.train_mask)),
    ]:
        params = list(net.parameters())
        loss = out.tanh().square().sum()
        first = torch.autograd.grad(loss, params, create_graph=True)
        norm = sum(grad.square().sum() for grad in first)
        values.append(torch.autograd.grad(norm, params, allow_unused=True))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize('name', ['gcn', 'sage', 'gin', 'gat', 'graph conv'])
def test_autocast(name):
    torch.manual_seed(0)
    data = make_graph(dtype=torch.float)
    fast, model, data = pair(LOCAL[name](), data)
    mask = data.train_mask
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out, expected = fast(mask), plain(model, data, mask)
        assert fast(None).dtype == out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=0.1, atol=0.1)
    assert_equal(fast, model, data, mask)  # And without it again.
    assert fast.report().num_hops['training'] is not None


def test_inference_mode():
    """Caches that are computed in it serve training, too."""
    fast, model, data = pair(gcn(), make_sparse(make_graph()))
    with torch.inference_mode():
        nodes = INDEX + 1
        for other in [data.train_mask, nodes, None]:
            assert_equal(fast, model, data, other)
        nodes -= 1
        assert_equal(fast, model, data, nodes)
    for other in [data.train_mask, INDEX, None]:
        assert_equal(fast, model, data, other)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_other_types(dtype):
    data = make_graph(dtype=dtype)
    fast, model, data = pair(gcn().to(dtype), data)
    out, expected = fast(data.train_mask), plain(model, data, data.train_mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('conv', [GCNConv, GraphConv])
def test_edge_weights_of_another_type(conv):
    torch.manual_seed(0)
    data = add_edge_values(make_graph(dtype=torch.float))
    data.edge_weight = data.edge_weight.double()
    fast, model, data = pair(
        conv(CHANNELS, 3) if conv is GCNConv else Cast(conv), data
    )
    for nodes in [data.train_mask, None]:
        expected = model(data.x, data.edge_index, data.edge_weight)
        expected = expected if nodes is None else expected[nodes]
        torch.testing.assert_close(fast(nodes), expected)


class Cast(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv(CHANNELS, 3)

    def forward(self, x, edge_index, edge_weight):
        return self.conv(x, edge_index, edge_weight.float())


class Unusual(nn.Module):
    """Calls convolutions in unusual ways."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv, self.other = GCNConv(CHANNELS, 8), SAGEConv(CHANNELS, 8)
        self.last = GCNConv(8, 8)
        if kind == 'tied':
            self.last.lin = nn.Linear(8, 8, bias=False)
            self.more = GCNConv(8, 8)
            self.more.lin = self.last.lin
        if kind == 'list':
            self.hidden_convs = [self.last]
        if kind == 'swapped':
            self.conv.lin = nn.Sequential(nn.Linear(CHANNELS, 8), nn.Tanh())
        if kind == 'biased':
            self.conv.lin = nn.Linear(CHANNELS, 8)
        if kind == 'weight norm':
            nn.utils.parametrizations.weight_norm(self.conv.lin)
            nn.utils.parametrizations.weight_norm(self.other.lin_l)
        if kind == 'old weight norm':
            nn.utils.weight_norm(self.other.lin_l)
        if kind == 'script':
            self.head = torch.jit.script(nn.Linear(8, 8))
        if kind == 'replaced':
            self.conv.message = lambda x_j, edge_weight: 2 * x_j

    def forward(self, x, edge_index):
        h = self.conv(edge_index=edge_index, x=x)
        if self.kind == 'parallel':
            h = h + self.other(x, edge_index)
        elif self.kind == 'twice':
            h = h * self.conv(x, edge_index) + self.conv(2 * x, edge_index)
        elif self.kind == 'tuple':
            h = h + self.other((x, x), edge_index)
        elif self.kind == 'reversed':
            h = h + self.other(x, edge_index.flip(0))
        elif self.kind == 'half':
            h = h + self.other(x, edge_index[:, ::2])
        elif self.kind in ['weight norm', 'old weight norm']:
            h = h + self.other(x, edge_index)
        elif self.kind == 'script':
            h = self.head(h)
        elif self.kind == 'tied':
            h = self.more(h, edge_index)
        elif self.kind == 'inside':
            with torch.no_grad():
                h = h + self.other(x, edge_index)
        convs = [self.last]
        if self.kind == 'list':
            convs = self.hidden_convs
        for conv in convs * (3 if self.kind == 'reused' else 1):
            h = conv(h.relu(), edge_index)
        return h


KINDS = ['parallel', 'twice', 'tuple', 'reversed', 'half', 'weight norm']
KINDS += ['old weight norm', 'script', 'tied', 'list', 'swapped', 'biased']
KINDS += ['reused', 'inside', 'replaced']


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', KINDS)
def test_unusual_models(kind):
    models, data = [], make_graph()
    for _ in range(2):  # Some can not be copied.
        torch.manual_seed(0)
        models.append(Unusual(kind).double())
    fast, model = accelerate(models[0], StaticGraph(data)), models[1]
    for nodes in [data.train_mask, INDEX, None]:
        for training in [True, False]:
            fast.train(training)
            model.train(training)
            assert_equal(fast, model, data, nodes)


def test_random_generators_stay():
    state = random.getstate(), torch.random.get_rng_state()
    accelerate(GLOBAL['random']().double(), StaticGraph(make_graph()))
    assert random.getstate() == state[0]


def test_forward_of_the_user():
    data = make_graph()
    data.scale, data.name = 3.0, 'graph'
    data.offset = torch.tensor(2.0).double()

    def forward(model, data):
        assert data.name == 'graph'
        return data.scale * model(data.x, data.edge_index) + data.offset

    model = gcn()
    fast = accelerate(model, StaticGraph(data), forward=forward)
    assert fast.select(data.train_mask).nodes is not None
    torch.testing.assert_close(
        fast(INDEX), forward(copy.deepcopy(model), data)[INDEX]
    )


def test_layouts_of_inputs():
    data = make_graph()
    data.x = data.x.t().contiguous().t()
    data.edge_index = data.edge_index.t().contiguous().t()
    assert not data.x.is_contiguous()
    fast, model, data = pair(gcn(), data)
    for nodes in [data.train_mask, INDEX.repeat(2)[::2], None]:
        assert_equal(fast, model, data, nodes)


def test_hub():
    torch.manual_seed(0)
    data = make_graph()
    hub = torch.stack([torch.arange(NUM_NODES), torch.zeros(NUM_NODES).long()])
    data.edge_index = torch.cat([data.edge_index, hub, hub.flip(0)], dim=1)
    for name in ['gcn', 'gat']:
        fast, model, data = pair(LOCAL[name]().double(), data)
        for nodes in [data.train_mask, torch.tensor([0])]:
            assert_equal(fast, model, data, nodes)


def test_errors():
    graph, model = StaticGraph(make_graph()), gcn()
    with pytest.raises(TypeError, match="needs to be a 'torch.nn.Module'"):
        accelerate(lambda x, edge_index: x, graph)
    with pytest.raises(TypeError, match="needs to be a 'StaticGraph'"):
        accelerate(model, graph.data)
    fast = accelerate(model, graph)
    with pytest.raises(TypeError, match='is already accelerated'):
        accelerate(fast, graph)
    with pytest.raises(ValueError, match='run one forward pass first'):
        accelerate(GCN(-1, 8, 2, 3), graph)
    for nodes, match in [
        ([1, 2], r'mask or a vector of indices \(got \[1, 2\]'),
        (INDEX.view(-1, 1), r'got \[5, 1\]'),
        (torch.ones(3).bool(), 'a mask of 300 nodes .got 3'),
        (INDEX.int(), 'torch.int32'),
    ]:
        with pytest.raises(ValueError, match=match):
            fast(nodes)
    for index in [-1, NUM_NODES]:
        with pytest.raises(IndexError, match=r'needs to be in \[0, 300\)'):
            fast(torch.tensor([index]))


@pytest.mark.parametrize('out', [torch.ones(()), torch.ones(2, 3), (1, 2)])
def test_outputs_of_other_shapes(out):
    class Constant(GCNConv):
        def forward(self, x, edge_index):
            return out

    fast = accelerate(Constant(3, 3), StaticGraph(make_graph()))
    with pytest.raises(ValueError, match='a row for each of 300 nodes'):
        fast(INDEX)


def test_wide_attention():
    torch.manual_seed(0)
    data = make_graph()
    model = GAT(CHANNELS, 8, 2, 3, heads=4, dropout=0.0, residual=True)
    fast, model, data = pair(model.double(), data)
    assert_equal(fast, model, data, data.train_mask)
