import pytest
import torch

from devices import withDevice
from torch_geometric_ext.nn.dense.pattern import (
    complete,
    compress,
    flatten,
    random_index,
)


@pytest.mark.parametrize('numel', [0, 1, 7, 100, 4097])
@pytest.mark.parametrize('fraction', [0, 0.01, 0.25, 0.26, 0.7, 1])
def test_random_index(numel, fraction):
    size = round(fraction * numel)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        index = random_index(numel, size, generator)
        assert index.dtype == torch.long and index.shape == (size,)
        assert (index.diff() > 0).all()
        assert ((index >= 0) & (index < numel)).all()


@pytest.mark.parametrize('size', [2, 3])  # By draws and by a permutation.
def test_random_index_is_uniform(size):
    generator = torch.Generator().manual_seed(12345)
    draws = [random_index(8, size, generator) for _ in range(4000)]
    keys = torch.stack(draws) @ 8 ** torch.arange(size)
    num_sets = {2: 28, 3: 56}[size]
    count = keys.unique(return_counts=True)[1].double()
    assert count.numel() == num_sets
    expected = 4000 / num_sets
    # Nearly normal, with mean `num_sets` and variance `2 * num_sets`:
    statistic = ((count - expected) ** 2 / expected).sum()
    assert abs(statistic - num_sets) < 4 * (2 * num_sets) ** 0.5


def test_random_index_of_a_huge_matrix():
    generator = torch.Generator().manual_seed(12345)
    index = random_index(2**40, 10000, generator)
    assert index.numel() == 10000 and (index.diff() > 0).all()
    assert abs(index.double().mean() / 2**39 - 1) < 0.05


@pytest.mark.parametrize('size', [10, 90])
def test_random_index_generators(size):
    state = torch.get_rng_state()
    first, second = (
        random_index(100, size, torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    first = random_index(100, size)
    torch.manual_seed(0)
    assert torch.equal(random_index(100, size), first)
    with torch.device('meta'):  # Ignores the default device.
        assert random_index(100, size).device.type == 'cpu'


@withDevice
@pytest.mark.parametrize('size', [(5, 7), (1, 9), (9, 1), (64, 3)])
@pytest.mark.parametrize('density', [0.0, 0.3, 1.0])
def test_compress(device, size, density):
    generator = torch.Generator().manual_seed(12345)
    mask = torch.rand(size, generator=generator) < density
    index = mask.flatten().nonzero().flatten()
    pattern = compress(index.to(device), size)
    assert all(x.dtype == torch.int32 for x in pattern)
    assert all(x.device == device for x in pattern)

    rowptr, col, colptr, row, perm = (x.cpu() for x in pattern)
    assert torch.equal(rowptr[1:].long(), mask.sum(1).cumsum(0))
    assert torch.equal(col.long(), mask.nonzero()[:, 1])
    assert torch.equal(colptr[1:].long(), mask.sum(0).cumsum(0))
    assert torch.equal(row.long(), mask.t().nonzero()[:, 1])
    assert torch.equal(index[perm] // size[1], row.long())
    assert rowptr[0] == colptr[0] == 0
    positions = flatten(pattern.rowptr, pattern.col, size[1])
    assert torch.equal(positions.cpu(), index)


@pytest.mark.parametrize('size', [(0, 0), (0, 4), (4, 0)])
def test_compress_without_elements(size):
    pattern = compress(torch.empty(0, dtype=torch.long), size)
    assert torch.equal(pattern.rowptr, torch.zeros(size[0] + 1).int())
    assert torch.equal(pattern.colptr, torch.zeros(size[1] + 1).int())
    assert pattern.col.numel() == pattern.row.numel() == 0
    assert flatten(pattern.rowptr, pattern.col, size[1]).numel() == 0


def test_compress_beyond_32_bits():
    size = (2**20, 2**20)  # Positions exceed 32 bits.
    index = torch.tensor([5, 2**39 + 3, 2**40 - 1])
    pattern = compress(index, size)
    assert pattern.col.tolist() == [5, 3, 2**20 - 1]
    assert torch.equal(flatten(pattern.rowptr, pattern.col, size[1]), index)
    with pytest.raises(ValueError, match=r'fewer .* \(got 2,147,483,648 x 1'):
        compress(index[:1], (2**31, 1))


def test_complete():
    pattern = compress(torch.tensor([1, 3, 4, 8]), (3, 3))
    out = complete(torch.randn(4), *pattern[:3], (3, 3))
    assert all(torch.equal(a, b) for a, b in zip(out, pattern))


@pytest.mark.parametrize(
    'name,value,match',
    [
        ('values', torch.randn(3), r"'values' .* \[4\] \(got \[3\]\)"),
        ('rowptr', torch.tensor([0, 1, 3, 4]), "'rowptr' .* torch.int32"),
        ('rowptr', torch.tensor([0, 1, 4]).int(), "'rowptr' .* hold 4 asc"),
        ('rowptr', torch.tensor([0, 3, 1, 4]).int(), "'rowptr' .* hold 4 asc"),
        ('rowptr', torch.tensor([1, 1, 3, 4]).int(), "'rowptr' .* hold 4 asc"),
        ('rowptr', torch.tensor([0, 1, 3, 5]).int(), "'rowptr' .* hold 4 asc"),
        ('col', torch.tensor([1, 0, 1, 3]).int(), r"'col' .* \[0, 3\)"),
        ('col', torch.tensor([-1, 0, 1, 2]).int(), r"'col' .* \[0, 3\)"),
        ('col', torch.tensor([1, 1, 0, 2]).int(), "'col' .* ascending"),
        ('col', torch.tensor([1, 1, 1, 2]).int(), "'col' .* ascending"),
        ('col', torch.tensor([1.0, 0, 1, 2]), "'col' .* torch.int32"),
        ('colptr', torch.tensor([0, 1, 3]).int(), "'colptr' .* 3 columns"),
        ('colptr', torch.tensor([0, 2, 3, 4]).int(), "'colptr' .* 3 columns"),
        ('colptr', torch.tensor([0, 1, 3, 4]), "'colptr' .* torch.int32"),
    ],
)
def test_complete_errors(name, value, match):
    pattern = compress(torch.tensor([1, 3, 4, 8]), (3, 3))
    kwargs = {'values': torch.randn(4), **pattern._asdict(), name: value}
    names = ['values', 'rowptr', 'col', 'colptr']
    with pytest.raises(ValueError, match=match):
        complete(*[kwargs[name] for name in names], (3, 3))
