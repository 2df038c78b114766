import copy

import pytest
import torch
from full_batch.models import add_edge_values, assert_equal
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GIN, GraphConv, GraphSAGE

from devices import withDevice
from torch_geometric_ext.full_batch import (
    StaticGraph,
    accelerate,
    aggregated_input,
)
from torch_geometric_ext.full_batch.adjacency import Adjacency
from torch_geometric_ext.full_batch.aggregated_input import (
    AggregatedInput,
    aggregate_sparse,
    find_cheaper,
)
from torch_geometric_ext.full_batch.sparse_input import (
    SparseInput,
    SparseInputs,
)
from torch_geometric_ext.nn import SparseLinear, sparsify

NUM_NODES, NUM_FEATURES = 30, 400


class MeanGNN(GraphSAGE):
    """A model of :class:`GraphConv` with a mean."""

    def init_conv(self, in_channels, out_channels, **kwargs):
        return GraphConv(in_channels, out_channels, aggr='mean')


MODELS = {'gcn': GCN, 'sage': GraphSAGE, 'gin': GIN, 'mean': MeanGNN}


def factors(device='cpu', dtype=torch.double, num_edges=300):
    """Five features of each node, and edges, some of them twice."""
    generator = torch.Generator().manual_seed(0)
    size = (NUM_NODES, NUM_FEATURES)
    order = torch.rand(size, generator=generator).argsort(dim=1)
    value = torch.rand(size, generator=generator).to(dtype)
    x = (value * (order < 5)).to(device)
    edges = torch.randint(NUM_NODES, (2, num_edges), generator=generator)
    edges[:, 1::5] = edges[:, ::5]
    adj = Adjacency(edges.to(device), None, NUM_NODES)
    nodes = torch.arange(0, NUM_NODES, 2, device=device)
    return SparseInput(x), adj.incoming(dtype, nodes, 'mean')


def make_communities(device=None):
    """Nodes with few features, and many edges inside of communities."""
    generator = torch.Generator().manual_seed(0)
    first = 30 * torch.arange(10).repeat_interleave(400)
    edges = torch.randint(30, (2, 4000), generator=generator) + first
    bridges = torch.randint(300, (2, 20), generator=generator)
    x = torch.rand(300, NUM_FEATURES, generator=generator).double()
    data = Data(x=x * (x > 0.99), edge_index=torch.cat([edges, bridges], 1))
    data.train_mask = torch.arange(300) % 100 == 0
    data.val_mask = torch.arange(300) % 150 == 40
    return data.to(device)


def find(*args):
    inputs, matrix = factors(*args)
    out = aggregate_sparse(inputs, matrix)
    return out, find_cheaper(out, inputs, matrix)


@withDevice
@pytest.mark.parametrize('max_density', [0.0, 1.0])
@pytest.mark.parametrize('block_size', [4, 2048])
def test_aggregate_sparse(max_density, block_size, device, monkeypatch):
    monkeypatch.setattr(aggregated_input, 'MAX_PRODUCT_DENSITY', max_density)
    monkeypatch.setattr(aggregated_input, 'BLOCK_SIZE', block_size)
    inputs, matrix = factors(device)
    out = aggregate_sparse(inputs, matrix)
    torch.testing.assert_close(out, matrix.to_dense() @ inputs.x)
    no_rows = matrix.to_dense()[:0].to_sparse_csr()
    assert aggregate_sparse(inputs, no_rows).shape == (0, NUM_FEATURES)
    nothing = SparseInput(inputs.x[:, :0])
    assert aggregate_sparse(nothing, matrix).shape == (15, 0)


def test_both_aggregations_are_the_same(monkeypatch):
    """Bit by bit."""
    inputs, matrix = factors(dtype=torch.float)
    outs = []
    for density in [0.0, 1.0]:
        monkeypatch.setattr(aggregated_input, 'MAX_PRODUCT_DENSITY', density)
        outs.append(aggregate_sparse(inputs, matrix))
    assert torch.equal(*outs)


@withDevice
def test_products(device):
    out, found = find(device)
    assert isinstance(found, AggregatedInput) and found.x is out
    weight = torch.randn(NUM_FEATURES, 4, device=device).double()
    weight.requires_grad_()
    torch.testing.assert_close(found.matmul(weight), out @ weight)
    assert torch.autograd.gradcheck(found.matmul, weight)
    assert torch.autograd.gradgradcheck(found.matmul, weight)


@withDevice
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('sparsity', [0.3, 0.98])
def test_sparse_layers(sparsity, bias, device):
    x, found = find(device, torch.float)
    kwargs = dict(sparsity=sparsity, bias=bias, seed=0)
    layer = SparseLinear(NUM_FEATURES, 8, **kwargs).to(device)
    results = []
    for inputs in [{}, {id(x): found}]:
        with SparseInputs(inputs):
            out = layer(x)
        params = list(layer.parameters())
        grads = torch.autograd.grad(out.square().sum(), params)
        results.append([out, *grads])
    torch.testing.assert_close(*results)


def test_the_cheaper_way():
    """It is found by the numbers of multiplications."""
    assert isinstance(find()[1], AggregatedInput)
    inputs, matrix = factors(num_edges=20)
    out = aggregate_sparse(inputs, matrix)
    found = find_cheaper(out, inputs, matrix)
    assert type(found) is SparseInput and found.x is out


def test_memory():
    found = find()[1]
    before = found.num_bytes
    num_values = found.rows.values().numel() + found.matrix.values().numel()
    assert before == 16 * num_values
    weight = torch.randn(NUM_FEATURES, 4).double().requires_grad_()
    found.matmul(weight).sum().backward()
    assert found.num_bytes == 2 * before


def test_checkpoints():
    x, found = find()
    weight = torch.randn(4, NUM_FEATURES).double().requires_grad_()

    def run(x):
        return torch.nn.functional.linear(x, weight).sin()

    grads = []
    for inputs in [{}, {id(x): found}]:
        with SparseInputs(inputs):
            out = checkpoint(run, x, use_reentrant=False)
        grads += torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close(*grads)


@withDevice
@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', list(MODELS))
def test_models_are_equal(name, weighted, sparse, device):
    """Outputs and gradients, at the border of a subgraph, too."""
    torch.manual_seed(0)
    data = make_communities(device)
    if weighted and name in ['gcn', 'mean']:
        data = add_edge_values(data)
    model = MODELS[name](NUM_FEATURES, 8, 2, 3).double().to(device)
    if sparse:
        model = sparsify(model, sparsity=0.5)
    fast, other = accelerate(model, StaticGraph(data)), copy.deepcopy(model)
    for nodes in [data.train_mask, data.val_mask, None]:
        assert_equal(fast, other, data, nodes)
        if nodes is not None:
            part = fast.select(nodes)
            assert part.nodes is not None
            found = [type(x) for x in part.inputs.values()]
            assert found == [SparseInput, AggregatedInput]
