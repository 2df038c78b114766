import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import merge_positions, missing_positions
from torch_geometric_ext.ops.merge_positions import (
    merge_positions_reference,
    missing_positions_reference,
)

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)

SETS = st.sets(st.integers(0, 30) | st.integers(0, 2**62 - 1)).map(sorted)


def positions(values):
    return torch.tensor(values, dtype=torch.long)


@given(index=SETS, other=SETS)
def test_merge_positions_equals_sets(index, other):
    expected = sorted({*index, *other})
    rank = {x: i for i, x in enumerate(index)}
    source = [rank.get(x, len(index)) for x in expected]
    for function in [merge_positions, merge_positions_reference]:
        out = function(positions(index), positions(other))
        assert [x.tolist() for x in out] == [expected, source]


@given(
    index=st.sets(st.integers(0, 40)).map(sorted),
    rank=st.lists(st.integers(0, 60)).map(sorted),
)
def test_missing_positions_equals_sets(index, rank):
    missing = [x for x in range(120) if x not in index]
    expected = [missing[i] for i in rank]
    for function in [missing_positions, missing_positions_reference]:
        out = function(positions(index), positions(rank))
        assert out.tolist() == expected


@withDevice
def test_merge_positions(device, ext):
    index = torch.tensor([1, 4, 6], device=device)
    other = torch.tensor([0, 4, 5], device=device)
    out, source = merge_positions(index, other)
    assert out.device == index.device and source.device == index.device
    assert out.tolist() == [0, 1, 4, 5, 6]
    assert source.tolist() == [3, 0, 1, 3, 2]
    missing = missing_positions(index, other)
    assert missing.device == index.device
    assert missing.tolist() == [0, 7, 8]
    assert missing_positions(index, index[:0]).numel() == 0


@pytest.mark.parametrize('bad', [[-1], [1, 1], [2, 1], [2**62], [2**63 - 1]])
def test_merge_positions_of_invalid_positions(ext, bad):
    bad, good = torch.tensor(bad), torch.tensor([3])
    message = 'needs to be ascending in'
    with pytest.raises(ValueError, match=f"merge.*'index' {message}"):
        merge_positions(bad, good)
    with pytest.raises(ValueError, match=f"merge.*'other' {message}"):
        merge_positions(good, bad)
    with pytest.raises(ValueError, match=f"missing.*'index' {message}"):
        missing_positions(bad, good)
    if bad.unique().numel() == bad.numel():  # Ranks may be equal.
        with pytest.raises(ValueError, match=f"missing.*'rank' {message}"):
            missing_positions(good, bad)


def test_merge_positions_errors(ext):
    index = torch.tensor([3])
    for bad in [index.int(), index.view(1, 1)]:
        with pytest.raises(ValueError, match="'other' needs to be a one-dim"):
            merge_positions(index, bad)
        with pytest.raises(ValueError, match="'rank' needs to be a one-dim"):
            missing_positions(index, bad)


@withKernels
def test_merge_positions_opcheck():
    args = torch.tensor([1, 3, 4]), torch.tensor([0, 3])
    ops = torch.ops.torch_geometric_ext
    torch.library.opcheck(ops.merge_positions.default, args)
    torch.library.opcheck(ops.missing_positions.default, args)
