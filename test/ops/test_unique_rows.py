import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import unique_rows
from torch_geometric_ext.ops.unique_rows import unique_rows_reference

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int,
    torch.long,
    torch.half,
    torch.bfloat16,
    torch.float,
    torch.double,
]


def kernel(*args):
    return torch.ops.torch_geometric_ext.unique_rows(*args)


def brute_force(x):
    rows = [tuple(row) for row in x.tolist()]
    distinct = sorted(set(rows))
    ids = [distinct.index(row) for row in rows]
    return torch.tensor(ids), torch.tensor(
        [rows.index(row) for row in distinct]
    )


@given(
    size=st.integers(1, 40),
    width=st.integers(1, 9),
    high=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_unique_rows_by_brute_force(size, width, high, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-high, high, (size, width), generator=generator)
    for value in [x, x / 2, x.t().contiguous().t()]:
        for out, expected in zip(unique_rows(value), brute_force(value)):
            assert torch.equal(out, expected)


@withKernels
@given(
    size=st.integers(0, 60),
    width=st.integers(0, 6),
    dtype=st.sampled_from(DTYPES),
    known=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_unique_rows_equals_reference(size, width, dtype, known, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 3, (size, width), generator=generator)
    x = (x - 1 if dtype.is_signed else x).to(dtype)
    num_known = 0
    if known and size > 0:  # Distinct rows in any order, then all.
        _, index = unique_rows_reference(x)
        num_known = index.numel()
        order = torch.randperm(num_known, generator=generator)
        x = torch.cat([x[index[order]], x])
    expected = unique_rows_reference(x, num_known)
    for out, other in zip(kernel(x, num_known), expected):
        assert torch.equal(out, other)
    assert torch.equal(out[:num_known], torch.arange(num_known))


@withKernels
@pytest.mark.parametrize('num_threads', [1, 2, 3])
def test_unique_rows_of_large_input(num_threads):
    generator = torch.Generator().manual_seed(12345)
    x = torch.randint(0, 40, (100_000, 3), generator=generator)
    expected = unique_rows_reference(x)
    default = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        for out, other in zip(kernel(x, 0), expected):
            assert torch.equal(out, other)
    finally:
        torch.set_num_threads(default)


def test_unique_rows_known(ext):
    x = torch.tensor([[5], [2], [9], [1], [5], [7]])
    ids, index = unique_rows(x, num_known=3)
    assert ids.tolist() == [0, 1, 2, 3, 0, 4]
    assert index.tolist() == [0, 1, 2, 3, 5]


def test_unique_rows_signed_zero_and_infinity(ext):
    inf = float('inf')
    x = torch.tensor([[0.0], [-0.0], [inf], [-inf], [-1.5]])
    assert unique_rows(x)[0].tolist() == [2, 2, 3, 0, 1]


def test_unique_rows_errors(ext):
    x = torch.tensor([[1.0], [1.0]])
    with pytest.raises(ValueError, match="'x' needs to be two-dimensional"):
        unique_rows(x[0])
    with pytest.raises(ValueError, match="'x' needs to be real"):
        unique_rows(x * 1j)
    with pytest.raises(ValueError, match="'x' contains NaN"):
        unique_rows(x / 0 - x / 0)
    with pytest.raises(
        ValueError, match=r"unique_rows: 'num_known' .* \[0, 2\]"
    ):
        unique_rows(x, num_known=3)
    with pytest.raises(ValueError, match='unique_rows: the first 2 rows need'):
        unique_rows(x, num_known=2)


@withKernels
def test_unique_rows_opcheck():
    x = torch.randint(0, 3, (20, 2))
    op = torch.ops.torch_geometric_ext.unique_rows.default
    torch.library.opcheck(op, (x, 0))


@withDevice
def test_unique_rows_device(device):
    x = torch.tensor([[2, 0], [1, 5], [2, 0]], device=device)
    ids, index = unique_rows(x)
    assert ids.device == index.device == x.device
    assert ids.tolist() == [1, 0, 1] and index.tolist() == [1, 0]
