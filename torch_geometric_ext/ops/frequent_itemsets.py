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
    """The output of :func:`frequent_itemsets`."""

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
    r"""Mine frequent itemsets, best first.

    Transaction :math:`i` holds the items :obj:`item[ptr[i]:ptr[i + 1]]`. A
    pattern is a non-empty set of items. Its support is the number of
    transactions that hold all of its items. A pattern is closed if each of its
    proper supersets has less support. The search for closed patterns follows
    the prefix-preserving closure extension of the `"LCM ver. 2: Efficient
    Mining Algorithms for Frequent/Closed/Maximal Itemsets"
    <https://ceur-ws.org/Vol-126/uno.pdf>`_ paper.

    Patterns are sorted by descending support, then by ascending size, then
    lexicographically by their ascending items. The result is complete, free of
    duplicates, and independent of the order of transactions. A smaller
    :obj:`max_patterns` gives a prefix of the result.

    The best-first search drops a pattern once it knows :obj:`max_patterns`
    better patterns. It stores bitsets of transactions for items, not for
    patterns. Beside its output, it takes about 30 bytes for each item of a
    transaction, 60 bytes for each distinct item, and 4 bytes for each item of
    at most three times :obj:`max_patterns` patterns. It runs on CPU for inputs
    on any device. :obj:`KeyboardInterrupt` stops it.

    Args:
        ptr (torch.Tensor): The row pointers of transactions to items.
        item (torch.Tensor): The items, in :math:`[0, 2^{31})`, ascending and
            distinct within each transaction.
        min_support (int, optional): The smallest support of a pattern.
            (default: :obj:`1`)
        max_patterns (int, optional): The largest number of patterns.
            (default: :obj:`1_000_000`)
        closed (bool, optional): If set to :obj:`True`, will only return
            closed patterns. (default: :obj:`False`)
        max_size (int, optional): The largest number of items of a pattern.
            Larger patterns are not returned, but still decide which patterns
            are closed. (default: :obj:`None`)

    Shapes:
        - **input:** :obj:`ptr` :math:`(N + 1)` of :obj:`torch.int64`,
          :obj:`item` :math:`(E)` of :obj:`torch.int64` or :obj:`torch.int32`
        - **output:** the row pointers :obj:`ptr` :math:`(P + 1)` of patterns
          to their ascending items :obj:`item` :math:`(I)`, and
          :obj:`support` :math:`(P)`; :obj:`item` has the dtype of the input,
          all others are :obj:`torch.int64`

    Raises:
        ValueError: If a shape, dtype or value is invalid.

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
    """Compute :func:`frequent_itemsets` in plain Python."""
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
    # Python integers are bitsets of transactions.
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
        # Each pattern has one parent: the pattern without its last item or,
        # if closed, the pattern that it extends with its prefix preserved.
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
    falls[inner - 1] = False  # Items restart with each transaction.
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
