import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import top_positions
from torch_geometric_ext.ops.top_positions import top_positions_reference

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)


def kernel(*args):
    return torch.ops.torch_geometric_ext.top_positions(*args)


def brute_force(score, size, bound=None):
    """Sort a list by score, then by position."""
    score = [math.inf if math.isnan(x) else x for x in score.tolist()]
    index = [i for i, x in enumerate(score) if bound is None or x > bound]
    index.sort(key=lambda i: (-score[i], i))
    return sorted(index[:size])


VALUES = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.0, 1e-40, math.inf, -math.inf, math.nan]
)


@given(
    score=st.lists(VALUES, max_size=20)
    | st.lists(st.floats(width=32), max_size=70),
    size=st.integers(0, 25),
    bound=st.none() | VALUES.filter(lambda x: not math.isnan(x)),
    dtype=st.sampled_from([torch.float, torch.double]),
)
def test_top_positions_equals_brute_force(score, size, bound, dtype):
    score = torch.tensor(score, dtype=dtype)
    if bound is not None:
        bound = float(torch.tensor(bound, dtype=dtype))
    expected = brute_force(score, size, bound)
    assert top_positions_reference(score, size, bound).tolist() == expected
    assert top_positions(score, size, bound).tolist() == expected


@given(
    score=st.lists(st.sampled_from([1.0, math.inf, math.nan]), max_size=6),
    size=st.integers(0, 6),
    bound=st.sampled_from([None, 0.0, 1.0, math.inf]),
)
def test_top_positions_of_infinite_scores(score, size, bound):
    score = torch.tensor(score)
    expected = brute_force(score, size, bound)
    assert top_positions_reference(score, size, bound).tolist() == expected
    assert top_positions(score, size, bound).tolist() == expected


@withKernels
@pytest.mark.parametrize('num_threads', [1, 2, 3])
@pytest.mark.parametrize(
    'size', [0, 1, 9_000, 70_000, 299_999, 300_000, 400_000]
)
@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_top_positions_of_large_input(num_threads, size, dtype):
    generator = torch.Generator().manual_seed(12345)
    score = torch.randn(300_000, generator=generator).to(dtype)
    score[::5] = 0.5  # Ties across chunks.
    score[::1001] = float('nan')
    score[::1003] = float('inf')
    default = torch.get_num_threads()
    try:
        for bound in [None, -1.0, 0.5, 10.0]:
            torch.set_num_threads(default)
            expected = top_positions_reference(score, size, bound)
            torch.set_num_threads(num_threads)
            assert torch.equal(kernel(score, size, bound), expected)
            pair = torch.stack([score, score], dim=1)  # With strides.
            assert torch.equal(kernel(pair[:, 1], size, bound), expected)
    finally:
        torch.set_num_threads(default)


@withKernels
@pytest.mark.parametrize('period', [2, 97, 292, 1024])
@pytest.mark.parametrize('value', [5.0, -5.0, float('nan'), float('inf')])
def test_top_positions_of_an_unusual_sample(period, value):
    # The kernel samples scores at equal distances, here of 292 positions:
    generator = torch.Generator().manual_seed(12345)
    score = torch.randn(300_000, generator=generator)
    score[::period] = value
    for size in [1, 500, 30_000]:
        for bound in [None, -5.0, 3.0]:
            expected = top_positions_reference(score, size, bound)
            assert torch.equal(kernel(score, size, bound), expected)


@withDevice
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.float])
def test_top_positions(dtype, device, ext):
    score = torch.tensor([1, 3, 2, 3, 3, 0, 2], dtype=dtype, device=device)
    for size in range(9):
        out = top_positions(score, size)
        assert out.device == score.device and out.dtype == torch.long
        assert out.tolist() == brute_force(score, size)
    assert top_positions(score, 9, 2.0).tolist() == [1, 3, 4]


def test_top_positions_errors(ext):
    with pytest.raises(ValueError, match='one-dimensional float32 or float64'):
        top_positions(torch.ones(3, 1), 1)
    with pytest.raises(ValueError, match='one-dimensional float32 or float64'):
        top_positions(torch.ones(3, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r'non-negative \(got -1\)'):
        top_positions(torch.ones(3), -1)
    with pytest.raises(ValueError, match="'bound' needs to be a number"):
        top_positions(torch.ones(3), 1, float('nan'))


@withKernels
@pytest.mark.parametrize('bound', [None, 0.5])
def test_top_positions_opcheck(bound):
    op = torch.ops.torch_geometric_ext.top_positions.default
    torch.library.opcheck(op, (torch.rand(10), 3, bound))
