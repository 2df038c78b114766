import copy

import pytest
import torch
from full_batch.models import (
    CHANNELS,
    NUM_NODES,
    add_edge_values,
    assert_equal,
    make_graph,
    make_sparse,
    predict_then_propagate,
)
from torch.nn import Dropout, ReLU, Sequential
from torch_geometric.data import Data
from torch_geometric.nn import (
    APPNP,
    GCN,
    GIN,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    GraphSAGE,
    Linear,
    SAGEConv,
)

from devices import withDevice
from torch_geometric_ext.full_batch import StaticGraph, accelerate
from torch_geometric_ext.lottery.node_task import NodeTask
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.sparsity import RigL
from torch_geometric_ext.utils import GraphLotteryPruner

SHAPE = (CHANNELS, 4)
CACHED, PRODUCT, MESSAGES = (
    'cached aggregation of features',
    'sparse matrix product',
    'one message for each edge',
)

# These aggregate features only, before they transform them:
CONVS = {
    'gcn': lambda: GCNConv(*SHAPE),
    'gcn without loops': lambda: GCNConv(*SHAPE, add_self_loops=False),
    'gcn improved': lambda: GCNConv(*SHAPE, improved=True, bias=False),
    'gcn not normalized': lambda: GCNConv(*SHAPE, normalize=False),
    'gcn sparse': lambda: sparsify(GCNConv(*SHAPE), sparsity=0.5),
    'gcn mean': lambda: GCNConv(*SHAPE, aggr='mean'),
    'gin': lambda: GINConv(Linear(*SHAPE), train_eps=True),
    'gin eps': lambda: GINConv(Linear(*SHAPE), eps=0.5),
    'gin mlp': lambda: GIN(*SHAPE, num_layers=1).convs[0],
    'gin sequential': lambda: GINConv(
        Sequential(torch.nn.Linear(*SHAPE), ReLU()), aggr='mean'
    ),
    'gin sparse': lambda: GINConv(SparseLinear(*SHAPE)),
    'gin relu': lambda: GINConv(ReLU(), train_eps=True),
    'gin dropout': lambda: GINConv(Sequential(Dropout(0.0), Linear(*SHAPE))),
    'gin own': lambda: GINConv(
        type('Mine', (Sequential,), {})(Linear(*SHAPE))
    ),
    'sage': lambda: SAGEConv(*SHAPE, normalize=True),
    'sage sum': lambda: SAGEConv(*SHAPE, aggr='sum'),
    'sage wide': lambda: SAGEConv(CHANNELS, 20),
    'sage no bias': lambda: SAGEConv(*SHAPE, bias=False, root_weight=False),
    'graph': lambda: GraphConv(*SHAPE),
    'graph mean': lambda: GraphConv(*SHAPE, aggr='mean'),
}
# These transform features before, or read more than them:
PRODUCTS = {
    'gat': lambda: GATConv(*SHAPE, heads=2),
    'gat mean': lambda: GATConv(*SHAPE, heads=3, concat=False, aggr='mean'),
    'gat without loops': lambda: GATConv(*SHAPE, add_self_loops=False),
    'gat residual': lambda: GATConv(*SHAPE, residual=True),
    'gatv2': lambda: GATv2Conv(*SHAPE, heads=2, share_weights=True),
    'gatv2 residual': lambda: GATv2Conv(*SHAPE, residual=True),
    'appnp': lambda: predict_then_propagate(APPNP(3, 0.2)),
    'appnp not normalized': lambda: predict_then_propagate(
        APPNP(2, 0.2, normalize=False)
    ),
    'gcn2': lambda: WithFirst(GCN2Conv(CHANNELS, 0.1)),
    'gcn2 two weights': lambda: WithFirst(
        GCN2Conv(CHANNELS, 0.1, shared_weights=False)
    ),
}
OTHERS = {
    'max': (lambda: SAGEConv(*SHAPE, aggr='max'), 'no sum or mean'),
    'several': (lambda: SAGEConv(*SHAPE, aggr=['mean', 'std']), 'no sum'),
    'project': (lambda: SAGEConv(*SHAPE, project=True), 'projects features'),
    'flow': (lambda: SAGEConv(*SHAPE, flow='target_to_source'), 'its flow'),
    'subclass': (
        lambda: type('Mine', (SAGEConv,), {})(*SHAPE),
        'no faster version',
    ),
    'replaced': (lambda: replaced(SAGEConv(*SHAPE)), 'methods is replaced'),
}


class WithFirst(torch.nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, edge_index):
        return self.conv(x, 2 * x, edge_index)


def replaced(conv):
    conv.message = lambda x_j: 2 * x_j
    return conv


def check(model, data, way):
    other = copy.deepcopy(model)
    fast = accelerate(model, StaticGraph(data))
    ways = [set(ways.values()) for ways in fast.report().convs.values()]
    assert ways == [{way}]
    for nodes in [data.train_mask, None]:
        assert_equal(fast, other, data, nodes)
    return fast


@withDevice
@pytest.mark.parametrize('name', CONVS)
def test_cached_aggregations(name, device):
    torch.manual_seed(0)
    model = CONVS[name]().double().to(device)
    fast = check(model, make_graph(device), CACHED)
    assert fast.report().num_hops['training'] == 0


@withDevice
@pytest.mark.parametrize('name', PRODUCTS)
def test_products(name, device):
    torch.manual_seed(0)
    check(PRODUCTS[name]().double().to(device), make_graph(device), PRODUCT)


@pytest.mark.parametrize('name', OTHERS)
def test_convolutions_without_a_faster_version(name):
    torch.manual_seed(0)
    make, reason = OTHERS[name]
    fast = accelerate(make().double(), StaticGraph(make_graph()))
    assert reason in str(fast.report().reasons)
    assert fast.report().convs['']['training'] == MESSAGES


@pytest.mark.parametrize('name', ['gcn', 'graph', 'gcn not normalized'])
def test_cached_aggregations_with_edge_weights(name):
    torch.manual_seed(0)
    data = add_edge_values(make_graph())
    data.edge_attr = None
    model = CONVS[name]().double()
    fast = accelerate(model, StaticGraph(data))
    expected = copy.deepcopy(model)(data.x, data.edge_index, data.edge_weight)
    torch.testing.assert_close(fast(), expected)
    found = fast(data.train_mask)
    torch.testing.assert_close(found, expected[data.train_mask])
    assert fast.report().convs['']['training'] == CACHED


def test_self_loops_with_edge_features():
    """Missing features are filled in from the whole graph."""
    torch.manual_seed(0)
    data = add_edge_values(make_graph())
    for fill_value in ['mean', 'max', 0.5, torch.tensor([0.25, 0.5]).double()]:
        model = GATConv(*SHAPE, edge_dim=2, fill_value=fill_value).double()
        fast = accelerate(model, StaticGraph(data))
        expected = model(data.x, data.edge_index, data.edge_attr)
        found = fast(data.train_mask)
        torch.testing.assert_close(found, expected[data.train_mask])
        assert fast.report().convs['']['training'] == PRODUCT


def test_sparse_features():
    """In the whole graph, products can be cheaper before an aggregation."""
    torch.manual_seed(0)
    data = make_sparse(make_graph())
    generator = torch.Generator().manual_seed(0)
    dense = torch.randint(NUM_NODES, (2, 9000), generator=generator)
    for edge_index in [data.edge_index, dense]:
        data.edge_index = edge_index
        for make in [CONVS['gcn'], CONVS['sage'], CONVS['gin']]:
            model = make().double()
            other = copy.deepcopy(model)
            fast = accelerate(model, StaticGraph(data))
            most = torch.arange(NUM_NODES) > 3
            for nodes in [None, most, data.train_mask]:
                assert_equal(fast, other, data, nodes)


@pytest.mark.parametrize('conv', [GCNConv, GATConv, SAGEConv])
def test_hooks_of_messages(conv):
    """They are called, with edges that the whole graph normalizes."""
    torch.manual_seed(0)
    data, calls = make_graph(), []
    model = torch.nn.Sequential(conv(CHANNELS, 8), conv(8, 3)).double()

    def run(model, data):
        x = model[0](data.x, data.edge_index).relu()
        return model[1](x, data.edge_index)

    other = copy.deepcopy(model)
    fast = accelerate(model, StaticGraph(data), forward=run)
    model[1].register_propagate_forward_hook(lambda *args: calls.append(1))
    mask = data.train_mask
    torch.testing.assert_close(fast(mask), run(other, data)[mask])
    assert calls == [1] and fast.report().num_hops['training'] is not None


def test_hooks_of_inner_layers():
    torch.manual_seed(0)
    data = make_graph()
    for conv, name in [
        (SAGEConv(*SHAPE), 'lin_l'),
        (GINConv(Sequential(Linear(*SHAPE))), 'nn'),
        (GINConv(Sequential(Linear(*SHAPE))), 'nn.0'),
        (GCNConv(*SHAPE), 'lin'),
    ]:
        layer = conv.double().get_submodule(name)
        layer.register_forward_hook(lambda _, args, out: 2 * out)
        check(conv, data, CACHED)


def test_layers_that_are_called_twice():
    torch.manual_seed(0)
    conv = GraphConv(*SHAPE)
    conv.lin_root = conv.lin_rel
    check(conv.double(), make_graph(), CACHED)
    first, last = Linear(*SHAPE), Linear(*SHAPE[::-1])
    conv = GINConv(Sequential(first, last, first)).double()
    check(conv, make_graph(), CACHED)


def test_layers_are_whole_after_errors():
    model = SAGEConv(*SHAPE).double()
    graph = StaticGraph(make_graph())
    fast = accelerate(model, graph)
    state = {key: x.clone() for key, x in model.state_dict().items()}
    graph.update(graph.data.x[:, :5])
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        fast()
    assert list(model.state_dict()) == list(state)
    assert type(model.lin_l) is Linear and model.lin_l.bias is not None


def test_gradients_of_missing_weights_are_equal():
    torch.manual_seed(0)
    data = make_graph()
    conv = GINConv(SparseLinear(*SHAPE, sparsity=0.5)).double()
    other, masks, before = copy.deepcopy(conv), [], conv.nn.mask
    fast = accelerate(conv, StaticGraph(data))
    for model, run in [
        (conv, fast),
        (other, lambda: other(data.x, data.edge_index)),
    ]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = RigL(model, optimizer, num_steps=10, update_every=1)
        run().square().sum().backward()
        optimizer.step()
        scheduler.step()
        masks.append(model.nn.mask)
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], before)


@pytest.mark.parametrize('edge_score', ['degree', 'learned'])
@pytest.mark.parametrize('net', [GCN, GIN, GraphSAGE])
def test_search_is_the_same(net, edge_score, monkeypatch):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(30, (2, 80), generator=generator)
    y = torch.arange(30) % 3  # Gradients of two classes are as large.
    x = torch.randn(30, 20, dtype=torch.double) + y.view(-1, 1)
    mask = torch.arange(30) < 15
    data = Data(x=x, edge_index=edge_index, y=y)
    data.train_mask, data.val_mask = mask, ~mask
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
    monkeypatch.setattr(NodeTask, 'accelerate', lambda task, *a, **k: task)
    other = pruner.fit(data)
    assert torch.equal(first.edge_mask, other.edge_mask)
    for name, mask in first.weight_masks.items():
        assert torch.equal(mask, other.weight_masks[name])
    for key, value in first.final_state.items():
        torch.testing.assert_close(value, other.final_state[key])
