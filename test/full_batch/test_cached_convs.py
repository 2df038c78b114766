import copy

import pytest
import torch
from torch.nn import Dropout, ReLU, Sequential
from torch_geometric.data import Data
from torch_geometric.nn import (
    GCN,
    GIN,
    GCNConv,
    GINConv,
    GraphConv,
    GraphSAGE,
    Linear,
    SAGEConv,
)
from torch_geometric.testing import withCUDA

from torch_geometric_ext.full_batch.cached_convs import speed_up
from torch_geometric_ext.full_batch.sparse_input import (
    SparseInput,
    swap_linears,
)
from torch_geometric_ext.full_batch.static_graph import KnownGraph
from torch_geometric_ext.lottery.node_task import NodeTask
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.sparsity import RigL
from torch_geometric_ext.utils import GraphLotteryPruner

SHAPE = (40, 4)
CONVS = {
    'gin': lambda: GINConv(Linear(*SHAPE), train_eps=True),
    'mlp': lambda: GIN(*SHAPE, num_layers=1).convs[0],
    'sequential': lambda: GINConv(
        Sequential(torch.nn.Linear(*SHAPE), ReLU()), aggr='mean'
    ),
    'sparse': lambda: GINConv(SparseLinear(*SHAPE)),
    'sage': lambda: SAGEConv(*SHAPE, normalize=True),
    'no bias': lambda: SAGEConv(*SHAPE, bias=False, root_weight=False),
    'graph': lambda: GraphConv(*SHAPE),
}
OTHERS = {
    'max': lambda: SAGEConv(*SHAPE, aggr='max'),
    'several': lambda: SAGEConv(*SHAPE, aggr=['mean', 'std']),
    'project': lambda: SAGEConv(*SHAPE, project=True),
    'wide': lambda: SAGEConv(4, 40),
    'dropout': lambda: GINConv(Sequential(Dropout(), Linear(*SHAPE))),
    'unknown': lambda: GINConv(ReLU()),
    'flow': lambda: SAGEConv(*SHAPE, flow='target_to_source'),
    'own sequential': lambda: GINConv(
        type('Mine', (Sequential,), {})(Linear(*SHAPE))
    ),
    'subclass': lambda: type('Mine', (SAGEConv,), {})(*SHAPE),
}


def edges(device=None):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(30, (2, 80), generator=generator).to(device)


def is_first(module):
    return type(module).__name__.startswith('_')


@withCUDA
@pytest.mark.parametrize('name', CONVS)
def test_linear_first_equals(name, device):
    torch.manual_seed(0)
    conv = CONVS[name]().double().to(device)
    first = speed_up(copy.deepcopy(conv))
    first = copy.deepcopy(first)
    assert is_first(first) and isinstance(first, type(conv))
    x = torch.randn(40, SHAPE[0], device=device, dtype=torch.double)
    outs = [net(x, edges(device)) for net in [conv, first]]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.square().sum().backward()
    for a, b in zip(conv.parameters(), first.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for key, value in first.state_dict().items():
        assert torch.equal(value, conv.state_dict()[key])
    # Of two kinds of nodes, it does what it always did:
    outs = [net((x, x), edges(device)) for net in [conv, first]]
    assert torch.equal(*outs)


@pytest.mark.parametrize('name', OTHERS)
def test_other_convolutions_stay(name):
    conv = OTHERS[name]()
    assert not is_first(speed_up(conv))


def test_weights_of_edges():
    torch.manual_seed(0)
    conv = GraphConv(*SHAPE)
    first = speed_up(copy.deepcopy(conv))
    x, weight = torch.randn(30, SHAPE[0]), torch.rand(80)
    expected = conv(x, edges(), weight)
    assert torch.allclose(first(x, edges(), weight), expected, atol=1e-5)


def test_hooked_convolutions_stay():
    conv = SAGEConv(*SHAPE)
    conv.register_message_forward_hook(lambda *args: None)
    assert not is_first(speed_up(conv))
    conv = GINConv(Sequential(Linear(*SHAPE)))
    conv.nn.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    assert not is_first(speed_up(conv))
    conv = SAGEConv(*SHAPE)
    conv.lin_l.register_forward_hook(lambda *args: None)
    assert not is_first(speed_up(conv))


def test_layers_that_are_called_twice_stay():
    conv = GraphConv(*SHAPE)
    conv.lin_root = conv.lin_rel
    assert not is_first(speed_up(conv))
    first, last = Linear(*SHAPE), Linear(*SHAPE[::-1])
    conv = GINConv(Sequential(first, last, first))
    assert not is_first(speed_up(conv))


def test_sums_with_autocast():
    x = torch.randn(40, SHAPE[0])
    data = Data(x=x, edge_index=edges())
    for conv in [GCNConv(*SHAPE), GraphConv(*SHAPE)]:
        known = KnownGraph(data)  # It needs to live.
        fast = speed_up(copy.deepcopy(conv), known)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = fast(x, data.edge_index)
            expected = conv(x, data.edge_index)
        torch.testing.assert_close(out, expected, atol=0.1, rtol=0.1)


def test_layers_are_whole_after_errors():
    conv = speed_up(SAGEConv(*SHAPE))
    state = {key: x.clone() for key, x in conv.state_dict().items()}
    for x in [torch.randn(30, 5), torch.randn(3, SHAPE[0])]:
        with pytest.raises((RuntimeError, IndexError)):
            conv(x, edges())
        assert list(conv.state_dict()) == list(state)
        assert type(conv.lin_l) is Linear and conv.lin_l.bias is not None


def test_sparse_inputs_are_multiplied():
    x = torch.zeros(40, SHAPE[0])
    x[torch.arange(40), torch.arange(40)] = 1.0
    conv = SAGEConv(*SHAPE)
    first = speed_up(swap_linears(copy.deepcopy(conv), [SparseInput(x)]))
    assert is_first(first)
    calls = []
    for name in ['lin_l', 'lin_r']:
        layer = first.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda _, args: calls.append(args[0] is x)
        )
    expected = conv(x, edges())
    assert torch.allclose(first(x, edges()), expected, atol=1e-6)
    assert calls == [True, True]


def test_gradients_of_missing_weights_are_equal():
    torch.manual_seed(0)
    conv = GINConv(SparseLinear(*SHAPE, sparsity=0.5))
    before = conv.nn.mask
    models = [conv, speed_up(copy.deepcopy(conv))]
    assert [is_first(x) for x in models] == [False, True]
    x, masks = torch.randn(30, SHAPE[0]), []
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = RigL(model, optimizer, num_steps=10, update_every=1)
        optimizer.zero_grad()
        model(x, edges()).square().sum().backward()
        optimizer.step()
        scheduler.step()
        masks.append(model.nn.mask)
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], before)


KNOWN = {
    **CONVS,
    'wide': lambda: SAGEConv(40, 60, normalize=True),
    'frozen eps': lambda: GINConv(Linear(*SHAPE), eps=0.5),
    'unknown': lambda: GINConv(Sequential(Dropout(0.0), Linear(*SHAPE))),
    'gcn': lambda: GCNConv(*SHAPE),
    'no loops': lambda: GCNConv(*SHAPE, add_self_loops=False, bias=False),
    'plain': lambda: GCNConv(*SHAPE, normalize=False),
    'sparse gcn': lambda: sparsify(GCNConv(*SHAPE), sparsity=0.5),
}


@withCUDA
@pytest.mark.parametrize('name', KNOWN)
def test_known_graphs_equal(name, device):
    torch.manual_seed(0)
    conv = KNOWN[name]().double().to(device)
    x = torch.randn(40, SHAPE[0], device=device, dtype=torch.double)
    data = Data(x=x, edge_index=edges(device))
    graph = KnownGraph(data)
    fast = copy.deepcopy(speed_up(copy.deepcopy(conv), graph))
    assert is_first(fast)
    messages = []
    fast.register_propagate_forward_hook(lambda *args: messages.append(1))
    for _ in range(2):
        outs = [net(x, data.edge_index) for net in [conv, fast]]
        torch.testing.assert_close(*outs)
        for net, out in zip([conv, fast], outs):
            net.zero_grad()
            out.square().sum().backward()
        for a, b in zip(conv.parameters(), fast.parameters()):
            torch.testing.assert_close(a.grad, b.grad)
    assert len(messages) == 0  # Their sums were computed once.

    # Other features, and other edges:
    for other in [(2 * x, data.edge_index), (x, data.edge_index.flip(0))]:
        torch.testing.assert_close(conv(*other), fast(*other))
    assert len(messages) == 2


def test_sums_are_of_the_whole_graph():
    torch.manual_seed(0)
    x, mask = torch.randn(30, SHAPE[0]), torch.arange(30) < 5
    data = Data(x=x, edge_index=edges(), y=mask, train_mask=mask)
    data.val_mask = ~mask
    graph = KnownGraph(data)
    conv = GCNConv(*SHAPE)
    fast = speed_up(copy.deepcopy(conv), graph)
    part = graph.part(graph.data.train_mask, 0)
    assert part.data.num_nodes == 5 and part.data.num_edges == 0
    out = fast(part.data.x, part.data.edge_index)
    torch.testing.assert_close(out, conv(x, data.edge_index)[:5])


@pytest.mark.parametrize('edge_score', ['degree', 'learned'])
@pytest.mark.parametrize('net', [GCN, GIN, GraphSAGE])
def test_search_is_the_same(net, edge_score, monkeypatch):
    torch.manual_seed(0)
    y = torch.arange(30) % 3  # Gradients of two classes are as large.
    x = torch.randn(30, 20, dtype=torch.double) + y.view(-1, 1)
    mask = torch.arange(30) < 15
    data = Data(x=x, edge_index=edges(), y=y, train_mask=mask, val_mask=~mask)
    model = net(20, 8, 2, 3).double()
    pruner = GraphLotteryPruner(
        model,
        weight_sparsity=0.8,
        edge_sparsity=0.2,
        edge_score=edge_score,
        pretrain_epochs=4,
        search_epochs=8,
        retrain_epochs=4,
        update_every=2,
    )
    first = pruner.fit(data)
    monkeypatch.setattr(NodeTask, 'prepare', lambda _, model, *a, **k: model)
    monkeypatch.setattr(NodeTask, 'focused', lambda task, *a, **k: task)
    other = pruner.fit(data)
    assert torch.equal(first.edge_mask, other.edge_mask)
    for name, mask in first.weight_masks.items():
        assert torch.equal(mask, other.weight_masks[name])
    for key, value in first.final_state.items():
        torch.testing.assert_close(value, other.final_state[key])
