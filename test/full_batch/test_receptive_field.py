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
    GraphUNet,
    GroupAddRev,
    LayerNorm,
    Linear,
    PairNorm,
    Sequential,
    SGConv,
    TAGConv,
)
from torch_geometric.testing import withCUDA
from torch_geometric.utils import degree

from torch_geometric_ext.full_batch.receptive_field import find_num_hops
from torch_geometric_ext.full_batch.static_graph import KnownGraph, call
from torch_geometric_ext.lottery import node_task
from torch_geometric_ext.lottery.node_task import NodeTask

CHANNELS = 6
KEYS = ['train_mask', 'val_mask']


def graph(num_nodes=300, device=None, **kwargs):
    """A sparse graph with multi-edges, loops and isolated nodes, and few
    labels: most of it is out of their reach.
    """
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(num_nodes - 9, (2, 260), generator=generator)
    edges[1, :5] = edges[0, :5]
    edges = torch.cat([edges, edges[:, 9:12]], dim=1)
    edges = torch.cat([edges, edges[:, 5:].flip(0)], dim=1)
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


class Mean(nn.Module):
    """Looks at all nodes, in ways that are easily missed."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = GCNConv(CHANNELS, 8)
        self.lin = nn.Linear(8, 3)
        self.gate = nn.Parameter(torch.zeros(1))
        self.register_buffer('mean', torch.zeros(8))

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        if self.kind == 'gate':  # Zero at first.
            h = h + self.gate * h.mean(dim=0)
        elif self.kind == 'training':
            h = h - 0.3 * h.mean(dim=0) if self.training else h
        elif self.kind == 'statistics':
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(dim=0)
            h = h - self.mean
        elif self.kind == 'seen':
            if not hasattr(self, 'first'):
                self.first = h.detach().mean(dim=0)
            h = h - self.first
        elif self.kind == 'number':
            h = h * x.size(0)
        return self.lin(h.relu())


GLOBAL = {
    **{
        kind: lambda kind=kind: Mean(kind)
        for kind in ['gate', 'training', 'statistics', 'seen', 'number']
    },
    'pair norm': lambda: Net(GCNConv, norm=PairNorm()),
    'unet': lambda: GraphUNet(CHANNELS, 8, 3, depth=2),
    'reversible': lambda: Net(
        lambda a, b: GroupAddRev(GCNConv(a // 2, b // 2), num_groups=2)
    ),
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
    focused = task.focused(fast)
    fast = task.prepare(fast)
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


@pytest.mark.filterwarnings('ignore:Sparse')
@pytest.mark.parametrize('name', GLOBAL)
def test_models_that_need_the_whole_graph(name):
    torch.manual_seed(0)
    known = KnownGraph(graph())
    model = GLOBAL[name]().double()
    state = {key: x.clone() for key, x in model.state_dict().items()}
    assert find_num_hops(model, known) is None
    assert all(torch.equal(x, state[k]) for k, x in model.state_dict().items())


class Hubs(nn.Module):
    """Compares nodes with all others, which no part of a ring tells."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(CHANNELS, 8)
        self.last = GCNConv(8, 3)

    def forward(self, x, edge_index):
        size = degree(edge_index[1], x.size(0))
        x = self.conv(x, edge_index).relu()
        x = x * torch.where(size > size.median(), 2, 1)[:, None]
        if x.size(0) > 200:
            x = x - x.mean(dim=0)
        return self.last(x, edge_index)


def test_the_graph_itself_is_tried_once(monkeypatch):
    torch.manual_seed(0)
    task, calls = NodeTask(KnownGraph(graph())), []
    monkeypatch.setattr(node_task, 'find_num_hops', lambda *args: 2)
    model = Hubs().double()
    model.register_forward_hook(lambda *args: calls.append(args[0]))
    for _ in range(2):
        assert task.focused(model) is task
        task = task.pruned(torch.ones(521).bool())
    assert len(calls) == 2  # On all nodes, and on a part.
    task = NodeTask(KnownGraph(graph()))
    assert task.focused(LOCAL['gcn']().double()) is not task


def test_messages_against_the_direction_of_edges():
    torch.manual_seed(0)
    data = graph()
    known, flow = KnownGraph(data), LOCAL['flow']().double()
    assert known.is_undirected and find_num_hops(flow, known) == 3
    data.edge_index = data.edge_index[:, :260]
    known = KnownGraph(data)
    assert not known.is_undirected and find_num_hops(flow, known) is None
    assert find_num_hops(LOCAL['graph']().double(), known) == 2


def test_parts_of_most_nodes_do_not_pay():
    torch.manual_seed(0)
    data = graph()
    data.val_mask = torch.arange(300) > 20
    task = NodeTask(KnownGraph(data))
    focused = task.focused(LOCAL['gat']().double())
    assert focused.valid is data and focused.train is not data


def test_what_is_seen_by_sums_is_the_layer_as_it_is_called():
    """Whatever is hooked, replaced or cast, the result is the same."""

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([GCNConv(CHANNELS, 8), GCNConv(8, 3)])

        def forward(self, x, edge_index):
            h = self.convs[0](x.float(), edge_index).relu()
            return self.convs[1](h, edge_index)

    torch.manual_seed(0)
    doubled = GCNConv(CHANNELS, 3)
    doubled.message = lambda x_j, edge_weight: 2 * x_j
    biased = GCNConv(CHANNELS, 3)
    biased.lin = nn.Linear(CHANNELS, 3)
    deep = GCNConv(CHANNELS, 3)
    deep.lin = nn.Sequential(
        nn.Linear(CHANNELS, 4), nn.ReLU(), nn.Linear(4, 3)
    )
    tied = GraphSAGE(CHANNELS, 3, 1)
    tied.convs[0].lin_r = tied.convs[0].lin_l
    for model in [doubled, biased, deep, tied, Cast()]:
        for dtype in [torch.float, torch.half]:
            data = graph()
            data.x = data.x.to(
                dtype if isinstance(model, Cast) else torch.float
            )
            task, fast = NodeTask(KnownGraph(data)), copy.deepcopy(model)
            focused = task.focused(fast)
            fast = task.prepare(fast)
            for a, b in zip(grads(task, model), grads(focused, fast)):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, CHANNELS)
        self.conv = GCNConv(CHANNELS, 3)

    def forward(self, x, edge_index):
        return self.conv(self.embedding(x.long().view(-1)), edge_index)


class Dense(Linear):
    def __init__(self):
        super().__init__(CHANNELS, 3)

    def forward(self, x, edge_index):
        return super().forward(x)


class Adversarial(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(CHANNELS, 3)

    def forward(self, x, edge_index):
        if self.training:
            x = x.clone().requires_grad_()
            out = self.conv(x, edge_index).square().sum()
            x = x + torch.autograd.grad(out, x)[0].sign()
        return self.conv(x, edge_index)


@pytest.mark.parametrize(
    'change, model',
    [
        (lambda data: {'x': torch.arange(300) % 9}, Embedded),
        (lambda data: {'x': (torch.arange(300) % 9).view(-1, 1)}, Embedded),
        (lambda data: {'x': (torch.arange(300) % 9).float()}, Embedded),
        (lambda data: {'e_id': torch.arange(3)}, Dense),
        (lambda data: {'e_id': 'none'}, Dense),
        (lambda data: {'edge_attr': [1, 2, 3]}, Dense),
        (lambda data: {'edge_attr': torch.rand(7)}, Dense),
        (lambda data: {'edge_index': data.edge_index[:, :0]}, Dense),
        (lambda data: {'edge_index': torch.empty(2, 0)}, Dense),
        (lambda data: {'x': data.x.requires_grad_()}, Dense),
        (lambda data: {}, Adversarial),
    ],
)
def test_odd_graphs_and_models(change, model):
    torch.manual_seed(0)
    data = graph()
    data.x = data.x.float()
    for key, value in change(data).items():
        data[key] = value
    model = model()
    task, fast = NodeTask(KnownGraph(data)), copy.deepcopy(model)
    focused = task.focused(fast)
    fast = task.prepare(fast)
    for a, b in zip(grads(task, model), grads(focused, fast)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_features_that_learn():
    torch.manual_seed(0)
    data = graph()
    data.x.requires_grad_()
    model = GCN(CHANNELS, 8, 2, 3).double()
    task = NodeTask(KnownGraph(data))
    focused = task.focused(model)
    focused.loss(task.prepare(model), focused.batches()[0]).backward()
    assert data.x.grad.abs().sum() > 0


@pytest.mark.filterwarnings('ignore:Sparse')
def test_sparse_features():
    torch.manual_seed(0)
    data = graph()
    data.x = data.x.float().to_sparse_csr()
    known = KnownGraph(data)
    task, model = NodeTask(known), GCNConv(CHANNELS, 3)
    focused = task.focused(model)
    model = task.prepare(model)
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
    focused = task.focused(Dropped().double())
    mask = data.train_mask
    near = torch.isin(data.edge_index[1], mask.nonzero().flatten())
    assert focused.train.num_edges == int(near.sum())
    focused = task.focused(GCNConv(CHANNELS, 3).double())
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
    focused = task.focused(fast, adds_up)
    fast = task.prepare(fast, adds_up)
    assert focused.train.num_nodes < 0.5 * data.num_nodes
    for a, b in zip(grads(task, model), grads(focused, fast)):
        torch.testing.assert_close(a, b)


@withCUDA
@pytest.mark.parametrize('share', [0.5, 1.0])
def test_distilled_tasks_train_on_all_nodes(share, device):
    torch.manual_seed(0)
    model = GCN(CHANNELS, 8, 2, 3).double().to(device)
    task = NodeTask(KnownGraph(graph(device=device)))
    task = task.distilled(model, share)
    fast = copy.deepcopy(model)
    focused = task.focused(fast)
    fast = task.prepare(fast)
    assert focused.train is task.train and focused.valid is not task.valid
    for a, b in zip(grads(task, model), grads(focused, fast)):
        torch.testing.assert_close(a, b)


@withCUDA
@pytest.mark.parametrize('prune', [False, True])
def test_distilled_tasks_train_on_what_a_sample_needs(
    monkeypatch, prune, device
):
    monkeypatch.setattr(node_task, 'MIN_TARGETS', 20)
    torch.manual_seed(0)
    model = GCN(CHANNELS, 8, 2, 3).double().to(device)
    task = NodeTask(KnownGraph(graph(device=device)))
    task = task.distilled(model, 0.75, torch.Generator())
    if prune:
        mask = torch.arange(task.graph.data.num_edges) % 3 > 0
        task = task.pruned(mask.to(device))
    assert task.sample.numel() == 20
    fast = copy.deepcopy(model)
    focused = task.focused(fast)
    fast = task.prepare(fast)
    assert focused.train.num_nodes < 0.5 * task.train.num_nodes
    assert task.focused(model).train is focused.train  # It is found once.
    again = focused.focused(model)
    assert again.train is focused.train

    data = task.graph.data
    model.zero_grad()
    out = model(data.x, data.edge_index)
    loss = 0.25 * F.cross_entropy(
        out[data.train_mask], data.y[data.train_mask]
    )
    targets = task.targets[task.sample]
    loss = loss + 0.75 * F.cross_entropy(out[task.sample], targets)
    loss.backward()
    expected = [loss, *(x.grad for x in model.parameters())]
    for other in [focused, again]:
        for a, b in zip(expected, grads(other, fast)):
            torch.testing.assert_close(a, b)


def test_all_targets_are_used_where_that_is_free(monkeypatch):
    monkeypatch.setattr(node_task, 'MIN_TARGETS', 280)
    torch.manual_seed(0)
    task = NodeTask(KnownGraph(graph()))
    for model in [
        GCN(CHANNELS, 8, 6, 3),
        GCN(CHANNELS, 8, 2, 3, norm='graph'),
    ]:
        model = model.double()
        other = task.distilled(model, 0.75, torch.Generator())
        focused = other.focused(model)
        assert focused.train is task.train and focused.told.nodes is None
        assert len(focused.told.probs) == task.train.num_nodes
