import copy

import pytest
import torch
from full_batch.models import (
    CHANNELS,
    GLOBAL,
    LOCAL,
    NUM_NODES,
    WITH_EDGES,
    Net,
    add_edge_values,
    assert_equal,
    make_graph,
    make_sparse,
)
from torch import nn
from torch_geometric.nn import GAT, GCN, GCNConv, GraphConv
from torch_geometric.utils import degree, dropout_edge

from accelerator import NAME, UNSUPPORTED
from devices import withDevice
from torch_geometric_ext.full_batch import StaticGraph, accelerate

DTYPES = [torch.double, torch.float]
FLOATS = ['gcn', 'sage', 'gin', 'gat', 'appnp', 'pna']
DIRECTED = ['gcn', 'sage max', 'gin', 'gat', 'gcn2', 'tag', 'flow']


def compare(model, data, modes=(True, False)):
    """Compare an accelerated model with a copy that is not, and return it."""
    other = copy.deepcopy(model)
    fast = accelerate(model, StaticGraph(data))
    index = torch.tensor([298, 4, 4, 0], device=data.x.device)
    for training in modes:
        fast.train(training)
        other.train(training)
        for nodes in [data.train_mask, index, None]:
            assert_equal(fast, other, data, nodes)
    return fast


@withDevice
@pytest.mark.parametrize(
    'name, dtype',
    [(name, torch.double) for name in LOCAL]
    + [(name, torch.float) for name in FLOATS],
)
def test_local_models(name, dtype, device):
    if device.type == NAME and name in UNSUPPORTED:
        pytest.skip('the pretend accelerator lacks an operator of the model')
    torch.manual_seed(0)
    data = make_graph(device, dtype)
    fast = compare(LOCAL[name]().to(device, dtype), data)
    for training in [True, False]:
        part = fast.select(data.train_mask, training).data
        assert part.num_nodes < 0.5 * NUM_NODES
        assert part.num_edges < 0.5 * data.num_edges


@pytest.mark.parametrize('name', DIRECTED)
def test_local_models_on_directed_graphs(name):
    torch.manual_seed(0)
    data = make_sparse(make_graph(directed=True))
    fast = compare(LOCAL[name]().double(), data)
    is_local = fast.select(data.train_mask).nodes is not None
    assert is_local == (name != 'flow')


@withDevice
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', WITH_EDGES)
def test_edge_weights_and_features(name, dtype, device):
    torch.manual_seed(0)
    data = add_edge_values(make_graph(device, dtype))
    fast = compare(WITH_EDGES[name]().to(device, dtype), data)
    assert fast.select(data.train_mask).nodes is not None


@withDevice
@pytest.mark.parametrize('name', GLOBAL)
def test_models_that_read_all_nodes(name, device):
    if device.type == NAME and name in UNSUPPORTED:
        pytest.skip('the pretend accelerator lacks an operator of the model')
    torch.manual_seed(0)
    data = make_graph(device)
    fast = compare(GLOBAL[name]().double().to(device), data)
    report = fast.report()
    hops = report.num_hops
    if name == 'statistics':  # They are constant in evaluation.
        assert hops == {'training': None, 'evaluation': 0}
    else:
        assert hops == {'training': None, 'evaluation': None}
    assert any('the receptive field' in key for key in report.reasons)


@withDevice
def test_batch_norm(device):
    torch.manual_seed(0)
    data = make_graph(device)
    model = GCN(CHANNELS, 8, 2, 3, norm='BatchNorm').double().to(device)
    fast = compare(model, data)
    report = fast.report()
    assert report.num_hops == {'training': None, 'evaluation': 1}
    reason = report.reasons['the receptive field in training']
    assert "'norms.0.module' normalizes over all nodes" in reason


def test_hops_beyond_cached_aggregations():
    torch.manual_seed(0)
    graph = StaticGraph(make_graph())
    for num_layers in [1, 2, 3]:
        model = GCN(CHANNELS, 8, num_layers, 3).double()
        for cached in [True, False]:
            fast = accelerate(model, graph, cache_aggregation=cached)
            hops = fast.report().num_hops
            expected = num_layers - 1 if cached else num_layers
            assert hops == {'training': expected, 'evaluation': expected}


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.conv = GCNConv(CHANNELS, 3)

    def forward(self, x, edge_index):
        return self.conv(self.dropout(x), edge_index)


def test_dropout_of_features():
    """Features that are dropped in training are only cached in evaluation."""
    torch.manual_seed(0)
    data = make_graph()
    fast = accelerate(Dropped().double(), StaticGraph(data))
    assert fast.report().num_hops == {'training': 1, 'evaluation': 0}
    assert fast.report().convs['conv'] == {
        'training': 'sparse matrix product',
        'evaluation': 'cached aggregation of features',
    }
    mask = data.train_mask
    near = torch.isin(data.edge_index[1], mask.nonzero().flatten())
    part = fast.select(mask, training=True).data
    assert part.num_edges == int(near.sum())
    assert fast.select(mask, training=False).data.num_edges == 0
    assert not torch.equal(fast(mask), fast(mask))
    compare(Dropped().double(), data, modes=[False])
    fast.model.dropout.p = 0.0
    assert_equal(fast, copy.deepcopy(fast.model), data, mask)


class Hubs(nn.Module):
    """Compares nodes with all others of a large graph only."""

    def __init__(self, is_global):
        super().__init__()
        self.conv, self.last = GCNConv(CHANNELS, 8), GCNConv(8, 3)
        self.is_global = is_global

    def forward(self, x, edge_index):
        size = degree(edge_index[1], x.size(0))
        x = self.conv(x, edge_index).relu()
        if x.size(0) > 200 and self.is_global(self.training):
            x = x * torch.where(size > size.median(), 2, 1)[:, None]
            x = x - x.mean(dim=0)
        return self.last(x, edge_index)


@pytest.mark.parametrize('mode', [True, False])
def test_graph_itself_is_compared(monkeypatch, mode):
    """What a small random graph cannot show."""
    module = 'torch_geometric_ext.full_batch.plan.random_graph'
    graph = StaticGraph(make_graph())
    small = StaticGraph(make_graph())
    small.update(small.data.x)
    torch.manual_seed(0)
    model = Hubs(lambda training: training == mode).double()
    monkeypatch.setattr(
        module, lambda graph, hops: ring(graph, 150), raising=True
    )
    fast = accelerate(model, graph)
    names = {True: 'training', False: 'evaluation'}
    assert fast.report().num_hops == {names[mode]: None, names[not mode]: 1}
    fast = accelerate(model, graph, verify=False)
    assert fast.report().num_hops == {'training': 1, 'evaluation': 1}


def ring(graph, size):
    nodes = torch.arange(size)
    edges = torch.stack([nodes, (nodes + 1) % size])
    data = copy.copy(graph.data)
    data.edge_index = torch.cat([edges, edges.flip(0)], dim=1)
    for key in ['x', 'y', 'train_mask', 'val_mask']:
        data[key] = data[key][:size]
    return StaticGraph(data)


def test_messages_against_the_direction_of_edges():
    torch.manual_seed(0)
    model = Net(lambda a, b: GraphConv(a, b, flow='target_to_source'))
    model = model.double()
    fast = compare(model, make_graph())
    assert fast.report().num_hops == {'training': 3, 'evaluation': 3}
    fast = compare(model, make_graph(directed=True))
    assert fast.report().num_hops == {'training': None, 'evaluation': None}


def test_subgraphs_of_most_nodes_are_not_cut():
    torch.manual_seed(0)
    data = make_graph()
    model = GAT(CHANNELS, 8, 2, 3).double()
    fast = accelerate(model, StaticGraph(data))
    most = torch.arange(NUM_NODES) > 20
    assert fast.select(most) is fast.graph.whole
    assert_equal(fast, copy.deepcopy(model), data, most)


class RandomDepth(nn.Module):
    """Skips layers at random, as stochastic depth does."""

    def __init__(self, conv):
        super().__init__()
        self.first = conv(CHANNELS, 8)
        self.convs = nn.ModuleList([conv(8, 8) for _ in range(4)])
        self.skipped = [True] * 4

    def forward(self, x, edge_index):
        h = self.first(x, edge_index)
        for conv, skipped in zip(self.convs, self.skipped):
            h = h if skipped else h + conv(h, edge_index).tanh()
        return h


def test_models_that_become_deeper():
    torch.manual_seed(0)
    data = make_graph()
    model = RandomDepth(GCNConv).double()
    fast = accelerate(model, StaticGraph(data))
    assert fast.report().num_hops['training'] == 0
    assert_equal(fast, copy.deepcopy(model), data, data.train_mask)
    model.skipped = [False, True, False, True]
    with pytest.warns(UserWarning, match='passes more messages than when'):
        assert_equal(fast, copy.deepcopy(model), data, data.train_mask)
    assert fast.report().num_hops['training'] is None
    assert_equal(fast, copy.deepcopy(model), data, data.train_mask)


class DropEdge(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(CHANNELS, 3)

    def forward(self, x, edge_index):
        edge_index, _ = dropout_edge(edge_index, 0.5, training=self.training)
        return self.conv(x, edge_index)


def test_edges_that_are_dropped():
    torch.manual_seed(0)
    fast = compare(DropEdge().double(), make_graph())
    assert fast.report().num_hops == {'training': None, 'evaluation': 0}


def test_modes_that_were_not_checked():
    """A norm in training inside of a model in evaluation reads all nodes."""
    torch.manual_seed(0)
    data = make_graph()
    model = GCN(CHANNELS, 8, 2, 3, norm='BatchNorm').double()
    fast = accelerate(model, StaticGraph(data))
    model.eval()
    model.norms[0].train()
    other = copy.deepcopy(model)
    assert_equal(fast, other, data, data.train_mask)
    model.train()
    model.norms[0].eval()
    other = copy.deepcopy(model)
    assert_equal(fast, other, data, data.train_mask)


def test_acceleration_changes_nothing():
    torch.manual_seed(0)
    data = make_graph()
    model = GCN(CHANNELS, 8, 2, 3, norm='BatchNorm', cached=True).double()
    model.convs[0].eval()
    other = copy.deepcopy(model)
    before = {name: dict(vars(x)) for name, x in model.named_modules()}
    state, rng = torch.random.get_rng_state(), data.x.clone()
    accelerate(model, StaticGraph(data))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(data.x, rng)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[k] is x for k, x in before[name].items())
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    assert all(param.grad is None for param in model.parameters())
