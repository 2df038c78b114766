import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    PNA,
    ARMAConv,
    ClusterGCNConv,
    EdgeCNN,
    GATv2Conv,
    GCNConv,
    GENConv,
    GPSConv,
    GraphConv,
    GraphNorm,
    GraphSAGE,
    LayerNorm,
    Sequential,
    SGConv,
    TAGConv,
)
from torch_geometric.testing import withCUDA

from torch_geometric_ext.utils.lottery.find_part import find_parts
from torch_geometric_ext.utils.lottery.known_graph import KnownGraph, call
from torch_geometric_ext.utils.lottery.task import NodeTask

CHANNELS = 6
KEYS = ['train_mask', 'val_mask']


def graph(num_nodes=300, device=None, **kwargs):
    """A sparse graph with multi-edges, loops and isolated nodes, and few
    labels: most of it is out of their reach.
    """
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(num_nodes - 9, (2, 260), generator=generator)
    edges[1, :5] = edges[0, :5]
    edges = torch.cat([edges, edges[:, 5:].flip(0), edges[:, 9:12]], dim=1)
    x = torch.randn(num_nodes, CHANNELS, generator=generator).double()
    mask = torch.zeros(num_nodes, dtype=torch.bool)
    data = Data(x=x, edge_index=edges, y=torch.arange(num_nodes) % 3)
    data.train_mask, data.val_mask = mask.clone(), mask.clone()
    data.train_mask[::40] = True
    data.val_mask[3::30] = True
    weight = torch.rand(edges.size(1), generator=generator).double()
    data.edge_weight = weight if kwargs.get('weighted') else None
    return data.to(device)


class Net(nn.Module):
    """Two convolutions, on features that may be changed before."""

    def __init__(self, make, residual=False, dropout=0.0, norm=None):
        super().__init__()
        self.lin = nn.Linear(CHANNELS, 8)
        self.convs = nn.ModuleList([make(8, 8), make(8, 8)])
        self.head = nn.Linear(8, 3)
        self.residual, self.dropout, self.norm = residual, dropout, norm

    def forward(self, x, edge_index):
        h = self.lin(F.dropout(x, self.dropout, self.training))
        for conv in self.convs:
            out = conv(h, edge_index)
            h = h + out if self.residual else out.relu()
            h = h if self.norm is None else self.norm(h)
        return self.head(h)


LOCAL = {
    'gcn': lambda: GCN(CHANNELS, 8, 2, 3),
    'deep': lambda: GCN(CHANNELS, 8, 3, 3, jk='cat'),
    'sage': lambda: GraphSAGE(CHANNELS, 8, 2, 3),
    'sage max': lambda: GraphSAGE(CHANNELS, 8, 2, 3, aggr='max'),
    'gin': lambda: GIN(CHANNELS, 8, 2, 3, train_eps=True),
    'gat': lambda: GAT(CHANNELS, 8, 2, 3, heads=2),
    'gatv2': lambda: GAT(CHANNELS, 8, 2, 3, v2=True),
    'layer norm': lambda: Net(GCNConv, norm=LayerNorm(8, mode='node')),
    'pna': lambda: PNA(
        CHANNELS,
        8,
        2,
        3,
        aggregators=['mean', 'std'],
        scalers=['identity', 'amplification'],
        deg=torch.tensor([0, 3, 5]),
    ),
    'edge': lambda: EdgeCNN(CHANNELS, 8, 2, 3),
    'graph': lambda: Net(GraphConv, residual=True),
    'gatv2 conv': lambda: Net(GATv2Conv),
    'gen': lambda: Net(lambda a, b: GENConv(a, b, norm='layer')),
    'sg': lambda: SGConv(CHANNELS, 3, K=2),
    'appnp': lambda: nn_sequential(APPNP(2, 0.1)),
    # One more hop, to know the degrees of neighbors:
    'subclass': lambda: Net(type('Mine', (GCNConv,), {})),
    'tag': lambda: Net(lambda a, b: TAGConv(a, b, K=1)),
    'arma': lambda: Net(ARMAConv),
    'cluster': lambda: Net(ClusterGCNConv),
    'flow': lambda: Net(lambda a, b: GraphConv(a, b, flow='target_to_source')),
}
GLOBAL = {
    'batch norm': lambda: GCN(CHANNELS, 8, 2, 3, norm='BatchNorm'),
    'graph norm': lambda: Net(GCNConv, norm=GraphNorm(8)),
    'gps': lambda: Net(lambda a, b: GPSConv(a, GCNConv(a, b), norm=None)),
    'cached': lambda: SGConv(CHANNELS, 3, cached=True),
    'layer norm': lambda: GCN(CHANNELS, 8, 2, 3, norm='LayerNorm'),
    'embedding': lambda: Embedding(),
}


def nn_sequential(conv):
    layers = [
        (nn.Linear(CHANNELS, 3), 'x -> x'),
        (conv, 'x, edge_index -> x'),
    ]
    return Sequential('x, edge_index', layers)


class Embedding(GCN):
    def __init__(self):
        super().__init__(CHANNELS, 8, 2, 3)
        self.embedding = nn.Parameter(torch.randn(300, CHANNELS))

    def forward(self, x, edge_index):
        return super().forward(x + self.embedding, edge_index)


def grads(task, model):
    model.zero_grad()
    loss = task.loss(model, task.batches()[0])
    loss.backward()
    return [loss, *(x.grad for x in model.parameters())]


@withCUDA
@pytest.mark.parametrize('name', LOCAL)
def test_parts_have_the_same_losses_and_gradients(name, device):
    torch.manual_seed(0)
    data = graph(device=device)
    model = LOCAL[name]().double().to(device)
    task = NodeTask(KnownGraph(data))
    fast = copy.deepcopy(model)
    focused = task.focused(task.prepare(fast))
    assert focused.train.num_nodes < 0.5 * data.num_nodes
    assert focused.train.num_edges < 0.5 * data.num_edges
    assert list(fast.state_dict()) == list(model.state_dict())

    for a, b in zip(grads(task, model), grads(focused, fast)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    assert task.evaluate(model) == focused.evaluate(fast)
    mask = data.val_mask
    part = focused.valid
    torch.testing.assert_close(
        call(model, data)[mask], call(fast, part)[part.val_mask]
    )


@pytest.mark.parametrize('name', GLOBAL)
def test_models_that_need_the_whole_graph(name):
    torch.manual_seed(0)
    known = KnownGraph(graph())
    model = GLOBAL[name]().double()
    state = {key: x.clone() for key, x in model.state_dict().items()}
    assert find_parts(model, known, KEYS) == [known.whole] * 2
    assert all(torch.equal(x, state[k]) for k, x in model.state_dict().items())


def test_messages_against_the_direction_of_edges():
    torch.manual_seed(0)
    data = graph()
    data.edge_index = data.edge_index[:, :260]
    known = KnownGraph(data)
    assert (
        find_parts(LOCAL['graph']().double(), known, KEYS)[0].part is not None
    )
    assert find_parts(LOCAL['flow']().double(), known, KEYS)[0].part is None


def test_parts_of_most_nodes_do_not_pay():
    torch.manual_seed(0)
    known = KnownGraph(graph())
    known.data.val_mask = torch.arange(300) > 20
    model = LOCAL['gat']().double()
    assert find_parts(model, known, ['val_mask']) == [known.whole]


@pytest.mark.filterwarnings('ignore:Sparse')
def test_sparse_features():
    torch.manual_seed(0)
    data = graph()
    data.x = data.x.float().to_sparse_csr()
    known = KnownGraph(data)
    task, model = NodeTask(known), GCNConv(CHANNELS, 3)
    focused = task.focused(task.prepare(model))
    assert focused.train is focused.valid is data
    grads(focused, model)


def test_hops_are_those_of_training():
    """In evaluation, features are not dropped, and their sums are known."""
    torch.manual_seed(0)
    data = graph()

    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GCNConv(CHANNELS, 3)

        def forward(self, x, edge_index):
            return self.conv(F.dropout(x, 0.5, self.training), edge_index)

    task = NodeTask(KnownGraph(data))
    focused = task.focused(task.prepare(Dropped().double()))
    mask = data.train_mask
    near = torch.isin(data.edge_index[1], mask.nonzero().flatten())
    assert focused.train.num_edges == int(near.sum())
    focused = task.focused(task.prepare(GCNConv(CHANNELS, 3).double()))
    assert focused.train.num_edges == 0


@pytest.mark.parametrize('adds_up', [True, False])
@pytest.mark.parametrize('conv', [GCNConv, GraphConv])
def test_weights_of_edges(conv, adds_up):
    torch.manual_seed(0)
    data = graph(weighted=True)

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([conv(CHANNELS, 8), conv(8, 3)])

        def forward(self, x, edge_index, edge_weight):
            for i, layer in enumerate(self.convs):
                x = layer(x if i == 0 else x.tanh(), edge_index, edge_weight)
            return x

    model = Weighted().double()
    task = NodeTask(KnownGraph(data))
    fast = copy.deepcopy(model)
    focused = task.focused(task.prepare(fast, adds_up))
    assert focused.train.num_nodes < 0.5 * data.num_nodes
    for a, b in zip(grads(task, model), grads(focused, fast)):
        torch.testing.assert_close(a, b)


def test_distilled_tasks_train_on_all_nodes():
    torch.manual_seed(0)
    model = GCN(CHANNELS, 8, 2, 3).double()
    task = NodeTask(KnownGraph(graph()))
    task = task.distilled(model, 0.5)
    fast = copy.deepcopy(model)
    focused = task.focused(task.prepare(fast))
    assert focused.train is task.train and focused.valid is not task.valid
    for a, b in zip(grads(task, model), grads(focused, fast)):
        torch.testing.assert_close(a, b)
