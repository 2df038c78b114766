from heapq import heappop, heappush
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import check_integers, check_ptr
from torch_geometric_ext.ops.interruptible import interruptible
from torch_geometric_ext.ops.register import register_operator

Tensors = Tuple[Tensor, Tensor, Tensor]
Pattern = Tuple[int, ...]


class FrequentItemsets(NamedTuple):
    """What :func:`frequent_itemsets` returns."""

    ptr: Tensor
    item: Tensor
    support: Tensor


def frequent_itemsets(
    ptr: Tensor,
    item: Tensor,
    min_support: int = 1,
    max_patterns: int = 1_000_000,
    closed: bool = False,
    max_size: Optional[int] = None,
) -> FrequentItemsets:
    r"""Mines the sets of items that many transactions have in common, best
    first.

    Transaction :math:`i` holds the items :obj:`item[ptr[i]:ptr[i + 1]]`. The
    support of a pattern, a non-empty set of items, is the number of
    transactions that hold all of its items. A pattern is closed if every
    larger one has less support.

    Patterns are returned by descending support, those of the same support by
    ascending size, and those of the same size in lexicographic order of their
    ascending items. This order does not depend on the order of transactions,
    and :obj:`max_patterns` only cuts it off: the result is a prefix of every
    longer one. No pattern is missed, and none is returned twice.

    The search is best first and drops patterns that :obj:`max_patterns`
    better ones are known of. It holds bitsets of transactions for items, not
    for patterns. On top of its output, it takes about 30 bytes for each item
    of a transaction, 60 for each distinct item, and 4 for each item of at
    most three times :obj:`max_patterns` patterns. It runs on CPU, whatever
    the device of its inputs, and can be interrupted from the keyboard.

    Args:
        ptr (torch.Tensor): The boundaries of the transactions.
        item (torch.Tensor): Their items, in :math:`[0, 2^{31})`, ascending
            and distinct within each transaction.
        min_support (int, optional): The smallest support of a pattern.
            (default: :obj:`1`)
        max_patterns (int, optional): The largest number of patterns.
            (default: :obj:`1_000_000`)
        closed (bool, optional): If set to :obj:`True`, will only return
            closed patterns. (default: :obj:`False`)
        max_size (int, optional): The largest number of items of a pattern.
            Larger patterns still count for what is closed.
            (default: :obj:`None`)

    Shapes:
        - **input:** :obj:`ptr` :math:`(N + 1)` of :obj:`torch.int64`,
          :obj:`item` :math:`(E)` of :obj:`torch.int64` or :obj:`torch.int32`
        - **output:** the boundaries :obj:`ptr` :math:`(P + 1)` of the
          patterns, their ascending items :obj:`item` :math:`(I)` (of the
          type they came in), and :obj:`support` :math:`(P)`

    Raises:
        ValueError: If a shape, type or value is off.

    .. code-block:: python

        >>> out = frequent_itemsets(
        ...     ptr=torch.tensor([0, 3, 5, 7]),
        ...     item=torch.tensor([1, 4, 7, 1, 4, 4, 7]),
        ...     closed=True,
        ... )
        >>> [x.tolist() for x in out.item.split(out.ptr.diff().tolist())]
        [[4], [1, 4], [4, 7], [1, 4, 7]]
        >>> out.support
        tensor([3, 2, 2, 1])
    """
    args = (ptr, item, min_support, max_patterns, closed, max_size)
    return FrequentItemsets(*interruptible(_frequent_itemsets, *args))


def frequent_itemsets_reference(
    ptr: Tensor,
    item: Tensor,
    min_support: int = 1,
    max_patterns: int = 1_000_000,
    closed: bool = False,
    max_size: Optional[int] = None,
    cancel: Optional[Tensor] = None,
) -> Tensors:
    """The operator :func:`frequent_itemsets` in plain Python."""
    _check(ptr, item, min_support, max_patterns, max_size)
    patterns: List[Pattern] = []
    support: List[int] = []
    for pattern, count in _search(ptr, item, min_support, closed, max_size):
        if len(patterns) == max_patterns:
            break
        if cancel is not None and cancel.item() != 0:
            raise RuntimeError('frequent_itemsets: cancelled')
        patterns.append(pattern)
        support.append(count)
    size = torch.tensor([0] + [len(pattern) for pattern in patterns])
    return (
        size.cumsum(0).to(ptr.device),
        item.new_tensor([i for pattern in patterns for i in pattern]),
        ptr.new_tensor(support),
    )


def _search(
    ptr: Tensor,
    item: Tensor,
    min_support: int,
    closed: bool,
    max_size: Optional[int],
) -> Iterator[Tuple[Pattern, int]]:
    # A bitset of transactions for each item, and for a pattern without items:
    tids: Dict[int, int] = {}
    for i, row in enumerate(item.tensor_split(ptr[1:-1].cpu())):
        for x in row.tolist():
            tids[x] = tids.get(x, 0) | 1 << i
    tids = {x: y for x, y in tids.items() if y.bit_count() >= min_support}
    names = sorted(tids)
    everything = (1 << ptr.numel() - 1) - 1

    def closure(cover: int) -> Pattern:
        return tuple(x for x in names if cover & ~tids[x] == 0)

    root = closure(everything) if closed and everything else ()
    heap = [(1 - ptr.numel(), len(root), root, everything, 0)]
    while heap:
        support, size, pattern, cover, begin = heappop(heap)
        if max_size is not None and size > max_size:
            continue
        if size > 0:
            yield pattern, -support
        # Each pattern is reached once: without its last item or, if closed,
        # by the first item from which on its closure is the same.
        for i, x in enumerate(names[begin:], begin + 1):
            child = cover & tids[x]
            if child.bit_count() < min_support or x in pattern:
                continue
            larger = (*pattern, x)
            if closed:
                larger = closure(child)
                if any(y < x and y not in pattern for y in larger):
                    continue
            entry = (-child.bit_count(), len(larger), larger, child, i)
            heappush(heap, entry)


def _check(
    ptr: Tensor,
    item: Tensor,
    min_support: int,
    max_patterns: int,
    max_size: Optional[int],
) -> None:
    op = 'frequent_itemsets'
    check_integers(op, 'ptr', ptr)
    check_integers(op, 'item', item, (torch.long, torch.int))
    for name, value in [
        ('min_support', min_support),
        ('max_patterns', max_patterns),
        ('max_size', max_size),
    ]:
        if value is not None and value <= 0:
            raise ValueError(
                f"{op}: '{name}' needs to be positive (got {value})"
            )
    check_ptr(op, 'ptr', ptr, item.numel())
    item = item.long()
    falls = item.diff() <= 0
    inner = ptr[(ptr > 0) & (ptr < item.numel())]
    falls[inner - 1] = False  # From one transaction to the next.
    if bool(falls.any()) or bool(((item < 0) | (item >= 1 << 31)).any()):
        raise ValueError(
            f"{op}: 'item' needs to be ascending and distinct within each "
            f'transaction, and in [0, 2^31)'
        )


def _cuda(ptr: Tensor, item: Tensor, *args: Any) -> Tensors:
    out = _frequent_itemsets(ptr.cpu(), item.cpu(), *args)
    return tuple(x.to(ptr.device) for x in out)


def _fake(
    ptr: Tensor,
    item: Tensor,
    min_support: int = 1,
    max_patterns: int = 1_000_000,
    closed: bool = False,
    max_size: Optional[int] = None,
    cancel: Optional[Tensor] = None,
) -> Tensors:
    ctx = torch.library.get_ctx()
    num_patterns = ctx.new_dynamic_size()
    return (
        ptr.new_empty(num_patterns + 1),
        item.new_empty(ctx.new_dynamic_size()),
        ptr.new_empty(num_patterns),
    )


_frequent_itemsets = register_operator(
    'frequent_itemsets', frequent_itemsets_reference, _fake, cuda=_cuda
)
