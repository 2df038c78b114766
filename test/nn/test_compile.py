"""Models compile without a graph break, and equal the models as they are."""

import copy
import io
import threading

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data

from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import (
    LevelwiseConv,
    MaskedGCNConv,
    RootAggregation,
    SparseLinear,
    TreeBatchNorm,
    shared_batch,
    sparsify,
)
from torch_geometric_ext.nn.current_batch import thread
from torch_geometric_ext.nn.tree_levels import rows_of
from torch_geometric_ext.transforms import ShareComputationTrees

F, HIDDEN = 3, 10  # Channels.
SIZES = [9, 12, 17, 21]  # Numbers of graphs, after which nothing compiles.


@pytest.fixture(autouse=True)
def reset():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make_graphs(num_graphs=64):
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for _ in range(num_graphs):
        num_nodes = 5 + int(torch.randint(8, (1,), generator=generator))
        row = torch.arange(num_nodes - 1)
        chord = torch.randint(num_nodes, (2, 3), generator=generator)
        edge_index = torch.cat([torch.stack([row, row + 1]), chord], dim=1)
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        label = torch.randint(F, (num_nodes,), generator=generator)
        x = torch.eye(F, dtype=torch.double)[label]
        graphs.append(Data(x=x, edge_index=edge_index))
    return graphs


def make_batches(sizes=SIZES, **kwargs):
    graphs = make_graphs()
    shared = ShareComputationTrees(2, **kwargs)(graphs)
    dataset = SharedTreeLoader(shared, batch_size=len(graphs)).dataset
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        index = torch.randperm(len(graphs), generator=generator)[:size]
        yield dataset.__getitems__(index.tolist())


class Residual(torch.nn.Module):
    """A model that mixes the rows of all levels."""

    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(F, HIDDEN)
        self.convs = torch.nn.ModuleList(
            pyg.GraphConv(HIDDEN, HIDDEN) for _ in range(2)
        )
        self.norm = torch.nn.BatchNorm1d(HIDDEN)

    def forward(self, x, edge_index):
        x = start = self.lin(x)
        xs = [x.tanh()]
        for conv in self.convs:
            h = self.norm(conv(x, edge_index)).sigmoid() * 2
            h += 1
            x = x + h + 0.1 * start
            xs.append(x)
        return torch.cat(xs, dim=-1)


class Model(torch.nn.Module):
    """A model that opens the block itself."""

    def __init__(self, gnn, is_gcn=False):
        super().__init__()
        self.gnn, self.aggr = gnn, RootAggregation('sum')
        self.is_gcn = is_gcn

    def forward(self, batch):
        args = [batch.edge_weight.double()] if self.is_gcn else []
        with shared_batch(batch):
            h = self.gnn(batch.x, batch.edge_index, *args)
        return self.aggr(h, batch)


def make_gnn(name, norm=True):
    torch.manual_seed(0)
    if name == 'Residual':
        return TreeBatchNorm.convert(Residual()).double()
    kwargs = {'normalize': False} if name == 'GCN' else {}
    norm = 'batch_norm' if norm else None
    gnn = getattr(pyg, name)(F, HIDDEN, 2, norm=norm, **kwargs)
    return TreeBatchNorm.convert(gnn).double()


def assert_same_step(model, other, batch):
    """Compare outputs, gradients and running statistics of two models."""
    out, expected = other(batch), model(batch)
    torch.testing.assert_close(out, expected)
    params = list(model.parameters()), list(other.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(out.square().mean(), params[1]),
        torch.autograd.grad(expected.square().mean(), params[0]),
    )
    for a, b in zip(model.buffers(), other.buffers()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    'name, levelwise',
    [
        ('GIN', True),
        ('GCN', True),
        ('GraphSAGE', True),
        ('Residual', True),
        ('GCN', False),
    ],
)
def test_shared_trees(name, levelwise):
    gnn, is_gcn = make_gnn(name), name == 'GCN'
    model, other = Model(gnn, is_gcn), Model(copy.deepcopy(gnn), is_gcn)
    if levelwise:
        LevelwiseConv.convert(other)
    other.gnn.compile(fullgraph=True, backend='aot_eager')
    batches = list(make_batches(gcn_norm=is_gcn))
    for training in [True, False]:
        model.train(training), other.train(training)
        for batch in batches[: 2 if training else 1]:
            assert_same_step(model, other, batch)
    assert thread.block is None


def test_rows():
    gnn = make_gnn('GIN', norm=False)
    compiled = LevelwiseConv.convert(copy.deepcopy(gnn))
    compiled.compile(fullgraph=True, backend='eager')
    for batch in make_batches():
        with shared_batch(batch) as fallbacks:
            h = compiled(batch.x, batch.edge_index)
            out = (h + batch.x.sum(dim=1, keepdim=True)).tanh()
        top = batch.num_sampled_nodes[0]
        assert h.size(0) == out.size(0) == top and fallbacks == []
        assert not rows_of(h).all_levels and rows_of(h).level == 2
        file = io.BytesIO()
        torch.save(h, file)
        file.seek(0)
        found = torch.load(file)  # A file holds no mini-batch.
        assert torch.equal(found, h) and rows_of(found) is None
    # Convolutions that are not wrapped run on all levels:
    gnn.compile(fullgraph=True, backend='eager')
    with shared_batch(batch) as fallbacks:
        out = gnn(batch.x, batch.edge_index)
    assert out.size(0) == sum(batch.num_sampled_nodes) and fallbacks == []
    assert torch.allclose(out[:top], h)


@pytest.mark.parametrize(
    'inner, levelwise, dynamic',
    [(False, True, True), (False, False, None), (True, True, None)],
)
def test_number_of_compilations(inner, levelwise, dynamic):
    model, num_graphs = Model(make_gnn('GIN')), []

    def backend(graph, inputs):
        num_graphs.append(1)
        return graph.forward

    expected = copy.deepcopy(model)
    if levelwise:
        LevelwiseConv.convert(model)
    # Whether the block is in the compiled code:
    compiled = model if inner else model.gnn
    compiled.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    for i, batch in enumerate(make_batches([*SIZES, *range(13, 34)])):
        out = model(batch)
        if i == len(SIZES) - 1:
            num = len(num_graphs)
        # Eager blocks add and remove hooks.
        torch.testing.assert_close(out, expected(batch))
    assert 1 <= num == len(num_graphs) <= 3


def test_optimized_modules():
    model = LevelwiseConv.convert(make_gnn('GraphSAGE'))
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    other = Model(copy.deepcopy(model))
    for batch in make_batches():
        with pytest.warns(UserWarning, match='global hooks'):
            assert_same_step(other, Model(compiled), batch)


def test_mini_batches_of_plain_graphs():
    model = Model(make_gnn('GIN'))
    other = LevelwiseConv.convert(copy.deepcopy(model))
    other.compile(fullgraph=True, backend='eager')
    plain = Batch.from_data_list(make_graphs(20))
    for batch in make_batches(SIZES[:2]):
        assert_same_step(model, other, batch)
        assert_same_step(model, other, plain)
    compiled = torch.compile(
        TreeBatchNorm(F).double(), fullgraph=True, backend='eager'
    )
    with pytest.raises(RuntimeError, match=r'with shared_batch\(batch\)'):
        compiled(plain.x)


def test_errors_leave_no_block():
    model = LevelwiseConv.convert(make_gnn('GIN'))
    model.compile(fullgraph=True, backend='eager')
    batch, *_ = make_batches(SIZES[:1])
    with pytest.raises(Exception, match="'x' needs one row for each of"):
        with shared_batch(batch):
            model(batch.x[1:], batch.edge_index)
    assert thread.block is None
    with shared_batch(batch):
        assert model(batch.x, batch.edge_index).size(1) == HIDDEN


def test_features_computed_before():
    """The compiled part of a model reads other rows than `batch.x`."""

    class Part(Residual):
        def forward(self, x, edge_index):
            start = (2 * x).tanh()
            for conv in self.convs:
                x = start + conv(x, edge_index)
            return x

    torch.manual_seed(0)
    model = Part().double()
    other = LevelwiseConv.convert(copy.deepcopy(model))
    other.compile(fullgraph=True, backend='eager')
    for batch in make_batches(SIZES[:2]):
        out = []
        for part in [model, other]:
            with shared_batch(batch):
                x = part.lin(batch.x)
                out.append(part(x, batch.edge_index))
        torch.testing.assert_close(*out)


def test_threads():
    """Each thread runs its own mini-batch by the same compiled model."""
    model = Model(make_gnn('GIN').eval())
    other = LevelwiseConv.convert(copy.deepcopy(model))
    other.gnn.compile(fullgraph=True, backend='eager')
    batches = list(make_batches())
    expected = [model(batch) for batch in batches]
    for batch in batches[:2]:
        other(batch)
    barrier, found = threading.Barrier(2), {}

    def run(i):
        barrier.wait()
        with shared_batch(batches[i]):
            for _ in range(10):
                barrier.wait()
                h = other.gnn(batches[i].x, batches[i].edge_index)
                thread.block.context.level = 0  # Of the next repetition.
        found[i] = other.aggr(h, batches[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in [2, 3]]
    for item in threads:
        item.start()
    for item in threads:
        item.join()
    assert all(torch.allclose(found[i], expected[i]) for i in [2, 3])


def test_inductor_on_shared_trees():
    model = Model(make_gnn('GraphSAGE'))
    other = LevelwiseConv.convert(copy.deepcopy(model))
    other.gnn.compile(fullgraph=True, dynamic=True)
    for batch in make_batches(SIZES[2:]):
        assert_same_step(model, other, batch)


EDGE_INDEX = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 4]])


class Net(torch.nn.Module):
    """Call a model with edges."""

    def __init__(self, model, **kwargs):
        super().__init__()
        self.model, self.kwargs = model, kwargs

    def forward(self, x):
        return self.model(x, EDGE_INDEX, **self.kwargs)


@pytest.mark.parametrize('block_size', [1, 8])
@pytest.mark.parametrize('name', ['GCN', 'GraphSAGE'])
def test_sparse_models(name, block_size):
    torch.manual_seed(0)
    gnn = getattr(pyg, name)(16, 24, 2, norm='batch_norm')
    model = Net(sparsify(gnn, 0.5, block_size=block_size))
    other = copy.deepcopy(model)
    other.compile(fullgraph=True, backend='aot_eager')
    for training in [True, False]:
        model.train(training), other.train(training)
        assert_same_step(model, other, torch.randn(5, 16))


@pytest.mark.parametrize('block_size', [1, 8])
def test_inductor_of_sparse_layers(block_size):
    model = SparseLinear(16, 24, sparsity=0.5, block_size=block_size)
    other = copy.deepcopy(model)
    other.compile(fullgraph=True)
    assert_same_step(model, other, torch.randn(7, 16))


@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
def test_masked_edges(backend):
    mask = torch.tensor([True, True, False, True, True, False, True])
    model = Net(MaskedGCNConv(16, 8, sparsity=0.5), edge_mask=mask)
    other = copy.deepcopy(model)
    other.compile(fullgraph=True, backend=backend)
    assert_same_step(model, other, torch.randn(5, 16))
