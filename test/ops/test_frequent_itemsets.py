import time
from _thread import interrupt_main
from itertools import combinations
from threading import Timer

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import frequent_itemsets
from torch_geometric_ext.ops.frequent_itemsets import (
    frequent_itemsets_reference,
)
from torch_geometric_ext.ops.ragged import row_ptr

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)
transactions = st.lists(st.sets(st.integers(0, 6)), max_size=8)


def kernel(*args):
    return torch.ops.torch_geometric_ext.frequent_itemsets(*args)


def to_tensors(rows):
    ptr = row_ptr(torch.tensor([len(row) for row in rows], dtype=torch.long))
    items = [i for row in rows for i in sorted(row)]
    return ptr, torch.tensor(items, dtype=torch.long)


def to_list(ptr, item, support):
    rows = item.split(ptr.diff().tolist())
    return [(tuple(x.tolist()), y) for x, y in zip(rows, support.tolist())]


def random_transactions(num_transactions, num_items, seed):
    """Transactions of popular and of rare items, with large ids."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(num_items, generator=generator) ** 4
    noise = torch.rand(num_transactions, num_items, generator=generator)
    row, col = (noise < share).nonzero().t()
    ptr = row_ptr(torch.bincount(row, minlength=num_transactions))
    return ptr, (1 << 31) - 1 - 1000 * (num_items - 1 - col)


def brute_force(rows, min_support, closed, max_size):
    out = {}
    items = sorted({i for row in rows for i in row})
    for size in range(1, len(items) + 1):
        for pattern in combinations(items, size):
            support = sum(row.issuperset(pattern) for row in rows)
            if support >= min_support:
                out[pattern] = support
    keep = [
        pattern
        for pattern, support in out.items()
        if max_size is None or len(pattern) <= max_size
        if not closed
        or not any(
            support == other and set(pattern) < set(larger)
            for larger, other in out.items()
        )
    ]
    keep.sort(key=lambda pattern: (-out[pattern], len(pattern), pattern))
    return [(pattern, out[pattern]) for pattern in keep]


@pytest.mark.parametrize('closed', [False, True])
@settings(max_examples=50)
@given(
    rows=transactions,
    min_support=st.integers(1, 3),
    max_size=st.none() | st.integers(1, 4),
)
def test_frequent_itemsets_by_brute_force(closed, rows, min_support, max_size):
    expected = brute_force(rows, min_support, closed, max_size)
    args = (*to_tensors(rows), min_support, 1000, closed, max_size)
    assert to_list(*frequent_itemsets(*args)) == expected
    assert to_list(*frequent_itemsets_reference(*args)) == expected


@pytest.mark.parametrize('closed', [False, True])
@given(rows=transactions, max_patterns=st.integers(1, 150))
def test_frequent_itemsets_are_prefixes(closed, rows, max_patterns):
    args = to_tensors(rows)
    every = to_list(*frequent_itemsets(*args, closed=closed))
    for function in [frequent_itemsets, frequent_itemsets_reference]:
        out = function(*args, max_patterns=max_patterns, closed=closed)
        assert to_list(*out) == every[:max_patterns]


@withKernels
@pytest.mark.parametrize('closed', [False, True])
@settings(max_examples=50)
@given(
    num_transactions=st.integers(0, 300),
    num_items=st.integers(1, 40),
    min_support=st.sampled_from([1, 2, 20]),
    max_patterns=st.sampled_from([1, 10, 300]),
    max_size=st.sampled_from([None, None, 3]),
    seed=st.integers(0, 1000),
)
def test_frequent_itemsets_equal_reference(
    closed,
    num_transactions,
    num_items,
    min_support,
    max_patterns,
    max_size,
    seed,
):
    args = random_transactions(num_transactions, num_items, seed)
    args = (*args, min_support, max_patterns, closed, max_size)
    expected = frequent_itemsets_reference(*args)
    for out, other in zip(kernel(*args), expected):
        assert torch.equal(out, other)


@withKernels
@pytest.mark.parametrize('closed', [False, True])
def test_frequent_itemsets_of_large_input(closed):
    generator = torch.Generator().manual_seed(12345)
    noise = torch.rand(2000, 500, generator=generator)
    noise += torch.linspace(0, 1, 500)
    item = noise.topk(14, largest=False).indices.sort().values.view(-1)
    ptr = torch.arange(2001) * 14
    every = frequent_itemsets(ptr, item, 2, closed=closed)
    assert every.support.numel() > 10_000
    assert (every.support.diff() <= 0).all()
    for max_patterns in [1000, 10_000]:
        out = frequent_itemsets(ptr, item, 1, max_patterns, closed)
        assert torch.equal(out.ptr, every.ptr[: max_patterns + 1])
        assert torch.equal(out.item, every.item[: int(out.ptr[-1])])
        assert torch.equal(out.support, every.support[:max_patterns])


@pytest.mark.parametrize('closed', [False, True])
def test_frequent_itemsets_do_not_depend_on_order(ext, closed):
    ptr, item = random_transactions(100, 20, seed=0)
    expected = frequent_itemsets(ptr, item, 1, 200, closed)
    rows = item.split(ptr.diff().tolist())
    perm = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    ptr = row_ptr(ptr.diff()[perm])
    item = torch.cat([rows[i] for i in perm.tolist()])
    for out, other in zip(
        frequent_itemsets(ptr, item, 1, 200, closed), expected
    ):
        assert torch.equal(out, other)


def test_frequent_itemsets_of_equal_support(ext):
    # All of the 2^50 subsets of each transaction have support 1.
    ptr, item = torch.arange(4) * 50, torch.arange(150)
    out = to_list(*frequent_itemsets(ptr, item, max_patterns=1000))
    assert out[:150] == [((i,), 1) for i in range(150)]
    pairs = combinations(range(150), 2)
    pairs = [pair for pair in pairs if pair[0] // 50 == pair[1] // 50]
    assert out[150:] == [(pair, 1) for pair in pairs[:850]]
    out = frequent_itemsets(ptr, item, closed=True)
    assert [len(x) for x, _ in to_list(*out)] == [50, 50, 50]


def test_frequent_itemsets_of_int32(ext):
    ptr, item = random_transactions(20, 10, seed=0)
    expected = frequent_itemsets(ptr, item)
    out = frequent_itemsets(ptr, item.int())
    assert out.ptr.dtype == out.support.dtype == torch.long
    assert out.item.dtype == torch.int
    assert to_list(*out) == to_list(*expected)


@pytest.mark.parametrize('closed', [False, True])
@pytest.mark.parametrize('min_support', [3, 10])
def test_frequent_itemsets_equal_mlxtend(ext, closed, min_support):
    mlxtend = pytest.importorskip('mlxtend.frequent_patterns')
    pandas = pytest.importorskip('pandas')
    ptr, item = random_transactions(200, 25, seed=0)
    names, inverse = item.unique(return_inverse=True)
    table = torch.zeros(200, names.numel(), dtype=torch.bool)
    table[torch.arange(200).repeat_interleave(ptr.diff()), inverse] = True
    table = pandas.DataFrame(table.numpy(), columns=names.tolist())
    # Subtract half a transaction, since the fraction is rounded:
    fraction = (min_support - 0.5) / 200
    result = mlxtend.fpgrowth(table, fraction, use_colnames=True)
    support = (result['support'] * 200).round().astype(int)
    expected = dict(zip(result['itemsets'], support))
    if closed:
        expected = {
            x: count
            for x, count in expected.items()
            if not any(x < y and count == expected[y] for y in expected)
        }
    out = frequent_itemsets(ptr, item, min_support, closed=closed)
    assert {frozenset(x): y for x, y in to_list(*out)} == expected
    assert out.support.numel() == len(expected) > 50


def test_frequent_itemsets_can_be_interrupted(ext, interrupts):
    noise = torch.rand(200, 100, generator=torch.Generator().manual_seed(0))
    row, col = (noise < 0.9).nonzero().t()
    ptr = row_ptr(torch.bincount(row))
    start = time.monotonic()
    Timer(0.2, interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):  # Some 20 seconds of work.
        frequent_itemsets(ptr, col, max_patterns=20_000_000)
    assert time.monotonic() - start < 5


def test_frequent_itemsets_reference_cancelled():
    cancel = torch.ones(1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match='frequent_itemsets: cancelled'):
        frequent_itemsets_reference(
            *random_transactions(20, 10, seed=0), cancel=cancel
        )


@withKernels
def test_frequent_itemsets_cancelled():
    args = (*random_transactions(20, 10, seed=0), 1, 100, False, None)
    cancel = torch.ones(1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match='frequent_itemsets: cancelled'):
        kernel(*args, cancel)
    with pytest.raises(ValueError, match="'cancel' needs to be a uint8"):
        kernel(*args, cancel.long())


def test_frequent_itemsets_errors(ext):
    ptr, item = torch.tensor([0, 2, 3]), torch.tensor([1, 4, 4])
    with pytest.raises(ValueError, match="'ptr' needs to be a .* int64"):
        frequent_itemsets(ptr.int(), item)
    with pytest.raises(ValueError, match="'ptr' .* ascend from 0 to 0"):
        frequent_itemsets(ptr[:0], item[:0])
    with pytest.raises(ValueError, match=r"'item' needs .* int64 or int32"):
        frequent_itemsets(ptr, item.float())
    with pytest.raises(ValueError, match="'ptr' .* ascend from 0 to 2"):
        frequent_itemsets(ptr, item[:2])
    with pytest.raises(ValueError, match="'ptr' .* ascend from 0 to 3"):
        frequent_itemsets(torch.tensor([0, 4, 2, 3]), item)
    for bad in [[4, 1, 4], [4, 4, 4], [-1, 4, 4], [1, 1 << 31, 4]]:
        with pytest.raises(ValueError, match=r"'item' .* in \[0, 2\^31\)"):
            frequent_itemsets(ptr, torch.tensor(bad))
    for name in ['min_support', 'max_patterns', 'max_size']:
        with pytest.raises(ValueError, match=f"'{name}' .* positive .got 0"):
            frequent_itemsets(ptr, item, **{name: 0})


@withKernels
@pytest.mark.parametrize('closed', [False, True])
def test_frequent_itemsets_opcheck(closed):
    args = (*random_transactions(20, 10, seed=0), 1, 100, closed)
    op = torch.ops.torch_geometric_ext.frequent_itemsets.default
    torch.library.opcheck(op, args)


@withDevice
def test_frequent_itemsets_device(device):
    ptr, item = random_transactions(30, 10, seed=0)
    expected = frequent_itemsets(ptr, item)
    args = ptr.to(device), item.to(device)
    for function in [frequent_itemsets, frequent_itemsets_reference]:
        for out, other in zip(function(*args), expected):
            assert out.device == args[0].device
            assert torch.equal(out.cpu(), other)
