import pytest
import torch

from devices import withDevice
from torch_geometric_ext.full_batch.adjacency import Adjacency

NUM_NODES = 9


def make_edges(device=None, weighted=True, num_edges=30):
    """Edges with multi-edges and self-loops, and a node without any."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(NUM_NODES - 1, (2, num_edges), generator=generator)
    weight = torch.rand(num_edges, generator=generator).double()
    return index.to(device), weight.to(device) if weighted else None


def dense(index, weight, aggr):
    out = torch.zeros(NUM_NODES, NUM_NODES, device=index.device).double()
    value = torch.ones_like(index[0]).double() if weight is None else weight
    out.index_put_((index[1], index[0]), value, accumulate=True)
    if aggr == 'mean':
        out /= torch.bincount(index[1], minlength=NUM_NODES).clamp(1)[:, None]
    return out


@withDevice
@pytest.mark.parametrize('num_edges', [0, 30])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('aggr', ['add', 'sum', 'mean'])
def test_matmul(device, aggr, weighted, num_edges):
    index, weight = make_edges(device, weighted, num_edges)
    adj = Adjacency(index, weight, NUM_NODES)
    x = torch.randn(NUM_NODES, 4, device=device).double().requires_grad_()
    out, expected = adj.matmul(x, aggr), dense(index, weight, aggr) @ x
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(y.sin().sum(), x) for y in [out, expected]]
    torch.testing.assert_close(*grads)
    found = adj.matmul(x.detach().float(), aggr)
    assert found.dtype == torch.float
    torch.testing.assert_close(found.double(), out, rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradgradcheck(lambda x: adj.matmul(x, aggr), x)


@withDevice
@pytest.mark.parametrize('aggr', ['sum', 'mean'])
def test_weighted_matmul(device, aggr):
    index, _ = make_edges(device)
    adj = Adjacency(index, None, NUM_NODES)
    value = torch.randn(30, 2, device=device).double().requires_grad_()
    x = torch.randn(NUM_NODES, 2, 3, device=device).double().requires_grad_()
    expected = torch.zeros_like(x).index_add(
        0, index[1], value[..., None] * x[index[0]]
    )
    if aggr == 'mean':
        degree = torch.bincount(index[1], minlength=NUM_NODES).clamp(1)
        expected = expected / degree.view(-1, 1, 1)
    out = adj.weighted_matmul(value, x, aggr)
    torch.testing.assert_close(out, expected)
    grads = [
        torch.autograd.grad(y.sin().sum(), [value, x]) for y in [out, expected]
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('aggr', ['sum', 'mean'])
def test_incoming(aggr):
    index, weight = make_edges()
    adj = Adjacency(index, weight, NUM_NODES)
    expected = dense(index, weight, aggr)
    nodes = torch.tensor([0, 3, 8])
    for targets, rows in [(None, expected), (nodes, expected[nodes])]:
        found = adj.incoming(torch.double, targets, aggr)
        torch.testing.assert_close(found.to_dense(), rows)


def test_subgraph():
    index, weight = make_edges()
    adj = Adjacency(index, weight, NUM_NODES)
    targets = torch.tensor([2, 5])
    nodes = torch.cat([targets, adj.sources(targets)]).unique()
    part, e_id = adj.subgraph(nodes, targets)
    keep = torch.isin(index[1], targets).nonzero().flatten()
    assert torch.equal(e_id.sort().values, keep)
    assert torch.equal(nodes[part.edge_index], index[:, e_id])
    assert torch.equal(part.weight, weight[e_id])
    x = torch.randn(NUM_NODES, 4).double()
    rows = torch.searchsorted(nodes, targets)
    torch.testing.assert_close(
        part.matmul(x[nodes])[rows], adj.matmul(x)[targets]
    )


def test_num_bytes():
    adj = Adjacency(*make_edges(), NUM_NODES)
    assert adj.num_bytes == 0
    x = torch.randn(NUM_NODES, 4).double().requires_grad_()
    size = 8 * (NUM_NODES + 1 + 2 * 30) + 8 * 30
    for _ in range(2):
        adj.matmul(x)
        assert adj.num_bytes == size
    for _ in range(2):  # Only gradients need the transpose.
        adj.matmul(x).sum().backward()
        assert adj.num_bytes == 2 * size
