import pytest
import torch

from torch_geometric_ext.sparsity.ranking import RunningTop, top_mask


def first_largest(score, size):
    """Return the expected positions, by a stable sort."""
    perm = score.sort(descending=True, stable=True).indices[:size]
    return perm.sort().values


@pytest.mark.parametrize('dtype', [torch.float, torch.half, torch.bfloat16])
def test_top_mask(dtype):
    score = torch.tensor([1, 3, 2, 3, 3, 0, 2]).to(dtype)
    for size in range(8):
        index = top_mask(score, size).nonzero().flatten()
        assert torch.equal(index, first_largest(score, size))
    score[0] = float('inf')
    assert top_mask(score, 2).nonzero().flatten().tolist() == [0, 1]
    assert top_mask(score[:0], 0).numel() == 0


@pytest.mark.parametrize('size', [1, 7, 100, 400])
def test_running_top(size):
    generator = torch.Generator().manual_seed(size)
    score = torch.randint(-1, 6, (1000,), generator=generator).float()
    top = RunningTop(size)
    for begin in range(0, 1000, 64):
        top.update(score[begin : begin + 64], begin)
        assert top._num_candidates <= 2 * size + 64
    assert torch.equal(top.index(), first_largest(score, size))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_running_top_of_nan(value):
    score = torch.tensor([1.0, value, 3.0, value, value, value])
    top = RunningTop(3)
    for begin in range(0, 6, 2):
        top.update(score[begin : begin + 2], begin)
    assert top.index().tolist() == [1, 3, 4]
