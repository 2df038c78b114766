"""Training on shared computation trees equals training on plain graphs."""

import copy
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    GIN,
    MLP,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GINEConv,
    PNAConv,
    SAGEConv,
)
from torch_geometric.utils import degree

from devices import withDevice
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import (
    LevelwiseConv,
    RootAggregation,
    TreeBatchNorm,
    check_exact,
    shared_batch,
)
from torch_geometric_ext.transforms import ShareComputationTrees

NUM_LABELS, HIDDEN = 3, 8


def random_graphs(seed, num_graphs=6, directed=False, loops=True):
    """Small graphs with loops, multi-edges and isolated nodes."""
    generator = torch.Generator().manual_seed(seed)

    def randint(high, size=()):
        return torch.randint(high, size, generator=generator)

    graphs = []
    for _ in range(num_graphs):
        num_nodes = int(randint(7)) + 1
        edge_index = randint(num_nodes, (2, int(randint(9))))
        if not loops:
            edge_index = edge_index[:, edge_index[0] != edge_index[1]]
        edge_label = randint(2, (edge_index.size(1),))
        if not directed:
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
            edge_label = edge_label.repeat(2)
        graphs.append(
            Data(
                x=F.one_hot(randint(NUM_LABELS, (num_nodes,)), NUM_LABELS),
                edge_index=edge_index,
                edge_attr=F.one_hot(edge_label, 2),
                y=randint(2, (1,)),
            )
        )
    return graphs


def make_conv(name, in_channels, deg):
    if name == 'GIN':
        # At zero, a node and its neighbor may swap places, which makes ties of
        # different trees.
        nn = torch.nn.Linear(in_channels, HIDDEN)
        return GINConv(nn, eps=0.1, train_eps=True)
    if name == 'SAGE':
        return SAGEConv(in_channels, HIDDEN)
    if name == 'GAT':
        return GATConv(in_channels, HIDDEN // 2, heads=2, edge_dim=2)
    if name == 'GATv2':
        return GATv2Conv(in_channels, HIDDEN, edge_dim=2)
    if name == 'GINE':
        nn = torch.nn.Linear(in_channels, HIDDEN)
        return GINEConv(nn, edge_dim=2)
    if name == 'GCN':
        return GCNConv(in_channels, HIDDEN)
    aggrs = ['mean', 'max', 'std', 'min', 'sum']
    scalers = ['identity', 'amplification', 'attenuation']
    return PNAConv(in_channels, HIDDEN, aggrs, scalers, deg, edge_dim=2)


class Net(torch.nn.Module):
    def __init__(self, name, num_layers, aggr, deg, norm=False):
        super().__init__()
        sizes = [NUM_LABELS] + num_layers * [HIDDEN]
        self.edges = name in ['GAT', 'GATv2', 'GINE', 'PNA']
        self.convs = torch.nn.ModuleList(
            make_conv(name, size, deg) for size in sizes[:-1]
        )
        self.norms = torch.nn.ModuleList(
            # Rounding of equal nodes is divided by the root of 'eps':
            torch.nn.BatchNorm1d(HIDDEN, eps=0.1)
            if norm
            else torch.nn.Identity()
            for _ in self.convs
        )
        self.aggr = RootAggregation(aggr)
        self.head = torch.nn.Linear(HIDDEN, 2)

    def forward(self, batch):
        dtype = self.head.weight.dtype
        h, args = batch.x.to(dtype), ()
        if self.edges:
            args = (batch.edge_attr.to(dtype),)
        elif 'edge_weight' in batch:
            args = (batch.edge_weight.to(dtype),)
        with shared_batch(batch):
            for conv, norm in zip(self.convs, self.norms):
                h = norm(conv(h, batch.edge_index, *args)).tanh()
        return self.head(self.aggr(h, batch))


def make_pair(name, num_layers, aggr, graphs, dtype, norm=False):
    """A model for plain graphs, and the same for shared trees."""
    torch.manual_seed(0)
    deg = torch.zeros(20, dtype=torch.long)
    for data in graphs:
        d = degree(data.edge_index[1], data.num_nodes, dtype=torch.long)
        deg += d.bincount(minlength=20)
    plain = Net(name, num_layers, aggr, deg, norm).to(dtype)
    shared = copy.deepcopy(plain)
    for conv in shared.convs:
        if name == 'GCN':
            conv.normalize = conv.add_self_loops = False
    TreeBatchNorm.convert(shared)
    return plain, shared


def make_batches(name, num_layers, graphs, dtype=torch.double):
    graphs = [to_double(data, dtype) for data in graphs]
    transform = ShareComputationTrees(
        num_layers,
        gcn_norm=name == 'GCN',
        self_loops='remove' if name.startswith('GAT') else 'keep',
        edge_attr=name in ['GAT', 'GATv2', 'GINE', 'PNA'],
    )
    with warnings.catch_warnings():
        # Small random graphs share little, which is not the question here.
        warnings.simplefilter('ignore')
        shared = transform(graphs)
    plain = Batch.from_data_list(graphs)
    return plain, shared


def to_double(data, dtype=torch.double):
    data = copy.copy(data)
    data.x = data.x.to(dtype)
    return data


def gradients(model, batch):
    model.zero_grad()
    loss = F.cross_entropy(model(batch), batch.y)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def assert_equal(plain, shared, plain_batch, batch, tol):
    loss, grads = gradients(plain, plain_batch)
    out, others = gradients(shared, batch)
    assert float((loss - out).abs()) <= tol * float(loss.abs())
    largest = max(float(g.abs().max()) for g in grads)
    for grad, other in zip(grads, others):
        assert float((grad - other).abs().max()) <= tol * largest


@settings(max_examples=60)
@given(
    name=st.sampled_from(
        ['GIN', 'SAGE', 'GAT', 'GATv2', 'GINE', 'PNA', 'GCN']
    ),
    num_layers=st.integers(1, 4),
    aggr=st.sampled_from(['sum', 'mean', 'max']),
    double=st.booleans(),
    directed=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_loss_and_gradients(
    name, num_layers, aggr, double, directed, norm, seed
):
    double = double or name == 'PNA'
    graphs = random_graphs(seed, directed=directed)
    dtype = torch.double if double else torch.float
    # Normalization divides by deviations that may be as small as rounding:
    norm = norm and double
    pair = make_pair(name, num_layers, aggr, graphs, dtype, norm)
    plain_batch, shared = make_batches(name, num_layers, graphs, dtype)
    loader = SharedTreeLoader(shared, batch_size=len(graphs))
    tol = 1e-10 if double else 1e-5
    batch = next(iter(loader))
    for _ in range(2):  # On all levels at first, then level by level.
        assert_equal(*pair, plain_batch, batch, tol)


@settings(max_examples=20)
@given(
    name=st.sampled_from(['GIN', 'SAGE', 'GATv2', 'GCN']),
    num_layers=st.integers(1, 3),
    norm=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_levelwise_loss_and_gradients(name, num_layers, norm, seed):
    graphs = random_graphs(seed)
    plain, shared = make_pair(
        name, num_layers, 'sum', graphs, torch.double, norm
    )
    plain_batch, trees = make_batches(name, num_layers, graphs)
    shared = LevelwiseConv.convert(shared)
    for subset in [range(len(graphs)), [4, 1, 1]]:
        batch = SharedTreeLoader(trees).dataset.__getitems__(list(subset))
        plain_batch = Batch.from_data_list(
            [to_double(graphs[i]) for i in subset]
        )
        assert_equal(plain, shared, plain_batch, batch, 1e-10)
    # Outside of shared trees, it is the plain model:
    if name != 'GCN':
        assert_equal(plain, shared, plain_batch, plain_batch, 1e-12)


@pytest.mark.parametrize('name', ['GIN', 'SAGE', 'GAT', 'PNA', 'GCN'])
def test_weights_after_training(name):
    graphs = random_graphs(seed=1, num_graphs=32)
    pair = make_pair(name, 2, 'mean', graphs, torch.double, norm=True)
    _, trees = make_batches(name, 2, graphs)
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for model in pair
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        index = torch.randperm(32, generator=generator)[:8].tolist()
        batches = [
            Batch.from_data_list([to_double(graphs[i]) for i in index]),
            SharedTreeLoader(trees).dataset.__getitems__(index),
        ]
        for model, batch, optimizer in zip(pair, batches, optimizers):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), batch.y).backward()
            optimizer.step()
    for expected, out in zip(*(model.state_dict().values() for model in pair)):
        assert torch.allclose(out.double(), expected.double(), atol=1e-8)

    # In evaluation, running statistics take the place of those of the batch:
    with torch.no_grad():
        expected, out = (m.eval()(b) for m, b in zip(pair, batches))
    assert torch.allclose(out, expected, atol=1e-8)


@pytest.mark.parametrize('aggr', ['softmax', 'std', 'median', 'min'])
def test_other_readouts(aggr):
    graphs = random_graphs(seed=2)
    pair = make_pair('GIN', 2, aggr, graphs, torch.double)
    plain_batch, trees = make_batches('GIN', 2, graphs)
    batch = next(iter(SharedTreeLoader(trees, len(graphs))))
    assert_equal(*pair, plain_batch, batch, 1e-10)


@pytest.mark.parametrize('num_layers', [1, 2, 3])
def test_basic_models_with_trimming(num_layers):
    graphs = [to_double(data) for data in random_graphs(seed=3)]
    _, trees = make_batches('GIN', num_layers, graphs)
    batch = SharedTreeLoader(trees).dataset.__getitems__([0, 3, 2])
    plain_batch = Batch.from_data_list([graphs[i] for i in [0, 3, 2]])
    aggr = RootAggregation('sum')
    for jk in [None, 'max']:
        model = GIN(NUM_LABELS, HIDDEN, num_layers, jk=jk).double()
        check_exact(model, trees)
        h = model(plain_batch.x, plain_batch.edge_index)
        expected = aggr(h, plain_batch)
        h = model(batch.x, batch.edge_index)
        assert torch.allclose(aggr(h, batch), expected)
        if jk is None:
            h = model(
                batch.x,
                batch.edge_index,
                num_sampled_nodes_per_hop=batch.num_sampled_nodes,
                num_sampled_edges_per_hop=batch.num_sampled_edges,
            )
            assert num_layers == 1 or h.size(0) < batch.num_nodes
            assert torch.allclose(aggr(h, batch), expected)


def make_mlp(*sizes):
    return MLP([*sizes], norm=None)


# Convolutions for node features of size 8 and edge features of size 2:
F_IN = F_OUT = HIDDEN
EDGES = dict(edge_dim=2)
CONVS = [
    lambda: pyg.AGNNConv(),
    lambda: pyg.CGConv(F_IN, dim=2, batch_norm=True),
    lambda: pyg.EdgeConv(make_mlp(2 * F_IN, F_OUT)),
    lambda: pyg.FeaStConv(F_IN, F_OUT, heads=2),
    lambda: pyg.FiLMConv(F_IN, F_OUT),
    lambda: pyg.GATConv(F_IN, F_OUT, **EDGES),
    lambda: pyg.GATv2Conv(F_IN, F_OUT, **EDGES),
    lambda: pyg.GENConv(F_IN, F_OUT, 'softmax', **EDGES),
    lambda: pyg.GINConv(make_mlp(F_IN, F_OUT, F_OUT)),
    lambda: pyg.GINEConv(make_mlp(F_IN, F_OUT), **EDGES),
    lambda: pyg.GMMConv(F_IN, F_OUT, 2, kernel_size=3),
    lambda: pyg.GeneralConv(F_IN, F_OUT, 2, attention=True),
    lambda: pyg.GraphConv(F_IN, F_OUT, 'max'),
    lambda: pyg.LEConv(F_IN, F_OUT),
    lambda: pyg.MFConv(F_IN, F_OUT, max_degree=3),
    lambda: pyg.NNConv(F_IN, F_OUT, make_mlp(2, F_IN * F_OUT)),
    lambda: make_conv('PNA', F_IN, torch.ones(9).long()),
    lambda: pyg.ResGatedGraphConv(F_IN, F_OUT, **EDGES),
    lambda: pyg.RGCNConv(F_IN, F_OUT, num_relations=2),
    lambda: pyg.SAGEConv(F_IN, F_OUT, ['mean', 'std']),
    lambda: pyg.SimpleConv('mean', combine_root='sum'),
    lambda: pyg.TransformerConv(F_IN, F_OUT, 2, concat=False, **EDGES),
    lambda: pyg.ClusterGCNConv(F_IN, F_OUT),
]


class Stack(torch.nn.Module):
    """Two layers of any convolution, and a readout."""

    def __init__(self, make, levelwise):
        super().__init__()
        self.levelwise = levelwise
        self.encoder = torch.nn.Linear(NUM_LABELS, F_IN)
        self.convs = torch.nn.ModuleList(make() for _ in range(2))
        self.aggr = RootAggregation('sum')
        self.head = torch.nn.Linear(F_OUT, 2)

    def forward(self, batch):
        h = self.encoder(batch.x)
        with shared_batch(batch, self.levelwise) as fallbacks:
            for layer in self.convs:
                h = layer(h, batch.edge_index, *self.edges(layer, batch))
                h = h.tanh()
        self.fallbacks = fallbacks
        return self.head(self.aggr(h, batch))

    @staticmethod
    def edges(layer, batch):
        names = inspect.signature(layer.forward).parameters
        if 'edge_attr' in names:
            return (batch.edge_attr.double(),)
        return (batch.edge_type,) if 'edge_type' in names else ()


REPLACE_LOOPS = (
    pyg.AGNNConv,
    pyg.ClusterGCNConv,
    pyg.FeaStConv,
    pyg.GATConv,
    pyg.GATv2Conv,
)


@pytest.mark.parametrize('levelwise', [True, False])
@pytest.mark.parametrize('make', CONVS)
def test_every_convolution_that_passes_the_check(make, levelwise):
    graphs = [to_double(data) for data in random_graphs(6, directed=True)]
    for data in graphs:
        data.edge_type = data.edge_attr.argmax(dim=-1)
    torch.manual_seed(0)
    plain = Stack(make, levelwise).double()
    remove = isinstance(plain.convs[0], REPLACE_LOOPS)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loops = ShareComputationTrees(2)(graphs)
        trees = ShareComputationTrees(2, self_loops='remove')(graphs)
    shared = TreeBatchNorm.convert(copy.deepcopy(plain))
    if remove:
        with pytest.raises(ValueError, match='self_loops="remove"'):
            check_exact(shared.convs, loops)
    else:
        trees = loops
    check_exact(shared.convs, trees)
    batch = next(iter(SharedTreeLoader(trees, len(graphs))))
    plain_batch = Batch.from_data_list(graphs)
    for _ in range(2):  # On all levels at first, then level by level.
        assert_equal(plain, shared, plain_batch, batch, 1e-10)
    assert shared.fallbacks == []


def test_too_few_levels_differ():
    # The tests above would not notice if they compared nothing:
    graphs = random_graphs(seed=4)
    plain, shared = make_pair('GIN', 3, 'sum', graphs, torch.double)
    plain_batch, trees = make_batches('GIN', 2, graphs)
    batch = next(iter(SharedTreeLoader(trees, len(graphs))))
    assert not torch.allclose(plain(plain_batch), shared(batch))


@withDevice
@pytest.mark.parametrize('name', ['GIN', 'SAGE', 'GATv2', 'GCN'])
def test_exact_sharing_on_device(name, device):
    graphs = random_graphs(seed=5)
    plain, shared = make_pair(name, 2, 'sum', graphs, torch.double, norm=True)
    plain_batch, trees = make_batches(name, 2, graphs)
    batch = next(iter(SharedTreeLoader(trees, len(graphs)))).to(device)
    plain, shared = plain.to(device), shared.to(device)
    assert_equal(plain, shared, plain_batch.to(device), batch, 1e-9)
