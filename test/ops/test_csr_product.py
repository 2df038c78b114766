import pytest
import torch

from devices import withDevice
from torch_geometric_ext.ops.csr_product import CSRPair, compress


@withDevice
@pytest.mark.parametrize('num_edges', [0, 1, 30])
def test_csr_pair(device, num_edges):
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(9, (2, num_edges), generator=generator)
    source, target = index.to(device)
    value = torch.rand(num_edges, generator=generator).double().to(device)
    pair = CSRPair.from_edges(source, target, value, 9)
    dense = torch.zeros(9, 9, dtype=torch.double, device=device)
    dense.index_put_((target, source), value, accumulate=True)
    torch.testing.assert_close(pair.matrix.to_dense(), dense)
    torch.testing.assert_close(pair.transpose.to_dense(), dense.t())
    assert pair.matrix.col_indices().dtype == torch.int
    x = torch.rand(9, 3, dtype=torch.double, device=device).requires_grad_()
    torch.testing.assert_close(pair.matmul(x), dense @ x)
    assert torch.autograd.gradcheck(pair.matmul, x)
    assert torch.autograd.gradgradcheck(pair.matmul, x)


def test_compress_is_stable():
    row = torch.tensor([2, 0, 2, 0, 2])
    ptr, col, perm = compress(row, torch.arange(5), 4)
    assert ptr.tolist() == [0, 2, 2, 5, 5]
    assert perm.tolist() == col.tolist() == [1, 3, 0, 2, 4]


@pytest.mark.parametrize('source, target', [([3], [0]), ([0], [3])])
def test_edges_out_of_range(source, target):
    edges = torch.tensor(source), torch.tensor(target)
    with pytest.raises(IndexError, match=r'\[0, 3\) \(got 3\)'):
        CSRPair.from_edges(*edges, torch.ones(1), 3)
    with pytest.raises(RuntimeError, match='negative'):
        CSRPair.from_edges(edges[0] - 9, edges[1] * 0, torch.ones(1), 3)
