import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import herding
from torch_geometric_ext.ops.herding import herding_reference
from torch_geometric_ext.ops.ragged import row_ptr

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)


def random_rows(group_sizes, seed, num_columns=4, low=-2, high=4, density=0.6):
    generator = torch.Generator().manual_seed(seed)
    size = sum(group_sizes)
    mask = torch.rand(size, num_columns, generator=generator) < density
    item = mask.nonzero()[:, 1]
    value = torch.randint(low, high, (item.numel(),), generator=generator)
    return (
        row_ptr(mask.sum(dim=1)),
        item,
        value,
        row_ptr(torch.tensor(group_sizes, dtype=torch.long)),
    )


def dense(ptr, item, value, group_ptr):
    num_columns = int(item.max()) + 1 if item.numel() > 0 else 1
    out = np.zeros((ptr.numel() - 1, num_columns), dtype=object)
    for i in range(len(out)):
        for k in range(int(ptr[i]), int(ptr[i + 1])):
            out[i, int(item[k])] += int(value[k])
    return out


def brute_force(ptr, item, value, group_ptr, num_candidates):
    x, out = dense(ptr, item, value, group_ptr), []
    for begin, end in zip(group_ptr[:-1].tolist(), group_ptr[1:].tolist()):
        size = end - begin
        num_parts = -(-size // num_candidates)
        mean = [Fraction(v, size or 1) for v in x[begin:end].sum(axis=0)]
        taken = []
        for j in range(size):
            best, nearest = -1, None
            for i in np.array_split(range(size), num_parts)[j % num_parts]:
                if begin + i in taken:
                    continue
                total = x[[*taken, begin + i]].sum(axis=0)
                distance = sum(
                    (Fraction(v, j + 1) - m) ** 2 for v, m in zip(total, mean)
                )
                if nearest is None or distance < nearest:
                    best, nearest = begin + i, distance
            taken.append(best)
        out += taken
    return out


@given(
    group_sizes=st.lists(st.integers(0, 9), max_size=3),
    num_candidates=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_herding_by_brute_force(group_sizes, num_candidates, seed):
    args = random_rows(group_sizes, seed)
    expected = brute_force(*args, num_candidates)  # Evaluates all rows.
    assert herding(*args, num_candidates, None, 9).tolist() == expected
    out = herding_reference(*args, num_candidates, None, 9)
    assert out.tolist() == expected


@withKernels
@given(
    group_sizes=st.lists(st.integers(0, 60), max_size=4),
    num_candidates=st.sampled_from([1, 2, 7, 50, 2**63 - 1]),
    num_finalists=st.sampled_from([1, 3, 2**63 - 1]),
    num_columns=st.sampled_from([9, 500]),  # Some hold one entry.
    high=st.sampled_from([1, 2, 10**6]),
    seed=st.integers(0, 1000),
)
def test_herding_equals_reference(
    group_sizes, num_candidates, num_finalists, num_columns, high, seed
):
    density = 5 / num_columns
    args = random_rows(group_sizes, seed, num_columns, -1, high, density)
    settings = (num_candidates, None, num_finalists)
    out = torch.ops.torch_geometric_ext.herding(*args, *settings)
    assert torch.equal(out, herding_reference(*args, *settings))
    for begin, end in zip(args[3][:-1], args[3][1:]):
        assert out[begin:end].sort().values.tolist() == list(range(begin, end))


@withKernels
def test_herding_does_not_depend_on_threads():
    args = random_rows([100, 0, 40, 300, 1], seed=0, num_columns=20)
    expected = herding_reference(*args)
    default = torch.get_num_threads()
    try:
        for num_threads in [1, 2, 4]:
            torch.set_num_threads(num_threads)
            assert torch.equal(herding(*args), expected)
    finally:
        torch.set_num_threads(default)


def test_herding_does_not_depend_on_other_groups(ext):
    args = random_rows([6, 7], seed=3)
    ptr, item, value, _ = args
    split = int(ptr[6])
    first = herding(ptr[:7], item[:split], value[:split], torch.tensor([0, 6]))
    second = herding(
        ptr[6:] - split, item[split:], value[split:], torch.tensor([0, 7])
    )
    assert torch.equal(herding(*args), torch.cat([first, second + 6]))


def test_herding_approaches_the_mean(ext):
    args = random_rows([200], seed=0)
    x = torch.tensor(dense(*args).astype(float))
    order = herding(*args)
    size = torch.arange(1, 201).view(-1, 1)
    error = (x[order].cumsum(0) / size - x.mean(0)).norm(dim=1)
    # Herding converges as 1 / k, a random order as 1 / sqrt(k). The last steps
    # have few candidates.
    assert bool((error * size.view(-1))[:100].max() < 3)
    assert float(error[-1]) < 1e-12


def test_herding_empty(ext):
    zero, none = torch.zeros(1).long(), torch.empty(0).long()
    assert herding(zero, none, none, zero).tolist() == []
    ptr, groups = torch.zeros(4).long(), torch.tensor([0, 0, 2, 2, 3])
    assert herding(ptr, none, none, groups).tolist() == [0, 1, 2]
    assert herding(zero, none, none, torch.zeros(3).long()).tolist() == []


def test_herding_of_int32(ext):
    ptr, item, value, groups = random_rows([8, 3], seed=5)
    expected = herding(ptr, item, value, groups)
    out = herding(ptr, item.int(), value.int(), groups)
    assert torch.equal(out, expected) and out.dtype == torch.long


def test_stale_scores_lose_little_quality():
    args = random_rows([3000], seed=0, num_columns=30)
    x = torch.tensor(dense(*args).astype(float))
    size = torch.arange(1, 3001).view(-1, 1)

    def error(order):
        mean = x[order].cumsum(0) / size
        return (mean - x.mean(0)).norm(dim=1)[10:2000]

    out = herding(*args, num_candidates=256)
    exact = herding(*args, num_candidates=256, num_finalists=256)
    assert not torch.equal(out, exact)
    assert float((error(out) / error(exact)).mean()) < 1.2
    random = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    assert float((error(out) / error(random)).mean()) < 0.5


def test_herding_of_views(ext):
    ptr, item, value, groups = random_rows([8], seed=5)
    views = [torch.stack([x, x], dim=1)[:, 0] for x in [ptr, item, value]]
    expected = herding(ptr, item, value, groups)
    assert torch.equal(herding(*views, groups), expected)


def test_herding_errors(ext):
    ptr, item = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    value, groups = torch.tensor([1, 2]), torch.tensor([0, 2])
    args = (ptr, item, value, groups)
    for i, name in enumerate(['ptr', 'item', 'value', 'group_ptr']):
        for bad in [args[i].short(), args[i].view(1, -1), args[i].double()]:
            with pytest.raises(ValueError, match=f"'{name}' needs to be a on"):
                herding(*args[:i], bad, *args[i + 1 :])
    with pytest.raises(ValueError, match=r"'value' needs 2 .* \(got 1\)"):
        herding(ptr, item, value[:1], groups)
    for bad in [[], [0, 2, 1, 2], [1, 2], [0, 1], [0, 3]]:
        bad = torch.tensor(bad).long()
        with pytest.raises(ValueError, match="'ptr' needs to ascend .* to 2"):
            herding(bad, item, value, groups)
        match = "'group_ptr' needs to ascend from 0 to 2"
        with pytest.raises(ValueError, match=match):
            herding(ptr, item, value, bad)
    for num in [0, -1]:
        with pytest.raises(ValueError, match=f"'num_cand.* \\(got {num}\\)"):
            herding(*args, num)
        with pytest.raises(ValueError, match=f"'num_fin.* \\(got {num}\\)"):
            herding(*args, 1, None, num)
    for bad in [-1, 2**31]:
        match = rf"'item' needs to be in \[0, 2\^31\) \(got {bad}\)"
        with pytest.raises(ValueError, match=match):
            herding(ptr, torch.tensor([bad, 0]), value, groups)


@pytest.mark.parametrize('high', [2**29, 2**32, -(2**63)])
def test_herding_refuses_large_values(ext, high):
    ptr, item = torch.tensor([0, 1, 2]), torch.tensor([0, 0])
    groups = torch.tensor([0, 2])
    value = torch.tensor([high, 1])
    match = r"'value' needs (smaller values .* of 2 rows|.* \(-2\^31, 2\^31\))"
    with pytest.raises(ValueError, match=match):
        herding(ptr, item, value, groups)
    # Scores are exact for the largest accepted values:
    args = (ptr, item, torch.tensor([499_999_999, -499_999_999]), groups)
    assert herding(*args).tolist() == brute_force(*args, 2)


@withKernels
def test_herding_opcheck():
    op = torch.ops.torch_geometric_ext.herding.default
    torch.library.opcheck(op, (*random_rows([5, 0, 7], seed=0), 3))


@withKernels
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_herding_memory_is_bounded_by_the_data():
    script = """
import resource
import torch
from torch_geometric_ext.ops import herding

ptr, group_ptr = torch.arange(5), torch.tensor([0, 4])
value, last = torch.tensor([0, 1, 5, 6]), torch.full((4,), 2**31 - 1)
used = int(open('/proc/self/statm').read().split()[0])
limit = used * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert herding(ptr, last, value, group_ptr).tolist() == [1, 2, 0, 3]
"""
    subprocess.run([sys.executable, '-c', script], check=True)


@withDevice
def test_herding_device(device):
    args = random_rows([9, 0, 12], seed=1)
    expected = herding(*args, 5)
    out = herding(*(x.to(device) for x in args), 5)
    assert out.device == torch.empty(0, device=device).device
    assert torch.equal(out.cpu(), expected)


def test_herding_num_samples(ext):
    ptr, item, value, groups = random_rows([8, 0, 3], seed=3)
    order = herding(ptr, item, value, groups, 4)
    for num_samples in [0, 2, 5, 100]:
        out = herding(ptr, item, value, groups, 4, num_samples)
        expected = [
            part[:num_samples] for part in order.split(groups.diff().tolist())
        ]
        assert torch.equal(out, torch.cat(expected))
    with pytest.raises(ValueError, match=r"'num_samples' .* \(got -1\)"):
        herding(ptr, item, value, groups, 4, -1)
