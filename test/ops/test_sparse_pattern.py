import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import sparse_pattern
from torch_geometric_ext.ops.sparse_pattern import sparse_pattern_reference

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)


@given(
    size=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_sparse_pattern_equals_pytorch(size, density, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < density
    index = mask.flatten().nonzero().flatten()
    dense = torch.zeros(size).masked_scatter(
        mask, torch.arange(1.0, index.numel() + 1)
    )
    for function in [sparse_pattern, sparse_pattern_reference]:
        rowptr, col, colptr, row, perm = function(index, *size)
        row_sizes, col_sizes = mask.sum(1), mask.sum(0)
        assert rowptr.tolist() == [0, *row_sizes.cumsum(0).tolist()]
        assert colptr.tolist() == [0, *col_sizes.cumsum(0).tolist()]
        assert torch.equal(col.long(), mask.nonzero()[:, 1])
        assert torch.equal(row.long(), mask.t().nonzero()[:, 1])
        assert torch.equal(perm + 1.0, dense.t()[mask.t()])
        for x in [rowptr, col, colptr, row, perm]:
            assert x.dtype == torch.int and x.is_contiguous()


@withDevice
def test_sparse_pattern(device, ext):
    index = torch.tensor([1, 3, 4, 8], device=device)
    rowptr, col, colptr, row, perm = sparse_pattern(index, 3, 3)
    assert rowptr.device == index.device
    assert rowptr.tolist() == [0, 1, 3, 4]
    assert col.tolist() == [1, 0, 1, 2]
    assert colptr.tolist() == [0, 1, 3, 4]
    assert row.tolist() == [1, 0, 1, 2]
    assert perm.tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize('index', [[-1, 2], [2, 2], [3, 2], [0, 6], [2**62]])
def test_sparse_pattern_of_invalid_positions(ext, index):
    with pytest.raises(ValueError, match=r"'index' .* in \[0, 6\), without"):
        sparse_pattern(torch.tensor(index), 2, 3)


def test_sparse_pattern_errors(ext):
    index = torch.tensor([0])
    for size in [(-1, 2), (2, -1), (2**31, 1), (1, 2**31), (2**62, 2**62)]:
        with pytest.raises(ValueError, match=r"'num_rows', 'num_cols' and"):
            sparse_pattern(index, *size)
    for bad in [index.int(), index.view(1, 1)]:
        with pytest.raises(ValueError, match="'index' needs to be a one-dim"):
            sparse_pattern(bad, 2, 3)


@withKernels
def test_sparse_pattern_opcheck():
    op = torch.ops.torch_geometric_ext.sparse_pattern.default
    torch.library.opcheck(op, (torch.tensor([1, 3, 4]), 2, 3))
