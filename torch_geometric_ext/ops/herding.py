from typing import NamedTuple, Optional

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import check_integers, check_ptr
from torch_geometric_ext.ops.ragged import row_index, row_ptr
from torch_geometric_ext.ops.register import register_operator

# A score is a sum of five terms below this bound, which fits into 64 bits.
# `csrc/cpu/herding_kernel.cpp` holds the same bound.
MAX_TERM = 1e18

# Measured by `benchmark/transforms/herding.py`.
NUM_CANDIDATES = 2048
NUM_FINALISTS = 16

# A row of a group of many parts is evaluated at least once in as many visits.
# `csrc/cpu/herding_kernel.cpp` holds the same number.
MAX_PERIOD = 8


def herding(
    ptr: Tensor,
    item: Tensor,
    value: Tensor,
    group_ptr: Tensor,
    num_candidates: int = NUM_CANDIDATES,
    num_samples: Optional[int] = None,
    num_finalists: int = NUM_FINALISTS,
) -> Tensor:
    r"""Order the rows of each group by herding, such that the mean of the
    first :math:`k` rows is close to the mean of the group for every
    :math:`k`.

    Implements herding without replacement from the `"Herding Dynamical Weights
    to Learn" <https://dl.acm.org/doi/10.1145/1553374.1553517>`_ paper. Each
    step selects the row that brings the mean of the selected rows closest to
    the mean of the group, or the first such row. Row :math:`i` is sparse, with
    :obj:`value[ptr[i]:ptr[i + 1]]` in columns :obj:`item[ptr[i]:ptr[i + 1]]`.

    Integer values make the result independent of threads. A group of more than
    :obj:`num_candidates` rows is split into parts of consecutive rows, which
    steps visit in turn: spread similar rows over the order. One part is herded
    exactly. Else, a visit evaluates an eighth of a part, and
    :obj:`num_finalists` rows (more in first visits) of the lowest last scores.

    Takes :math:`O(Z + K C z / 8)` time for :math:`Z` entries, :math:`z` in a
    row, :math:`K` selected rows and :math:`C` candidates, and 40 bytes a row
    and 4 an entry.

    Args:
        ptr (torch.Tensor): The row pointers.
        item (torch.Tensor): The columns, distinct in a row (not checked).
        value (torch.Tensor): The values, in :math:`(-2^{31}, 2^{31})`.
        group_ptr (torch.Tensor): The row pointers of groups to rows.
        num_candidates (int, optional): The size of a part. (default: 2048)
        num_samples (int, optional): The largest number of rows to select from
            each group. (default: all of them)
        num_finalists (int, optional): See above. (default: 16)

    Shapes:
        - **input:** :obj:`ptr` :math:`(N + 1)` and :obj:`group_ptr`
          :math:`(G + 1)`, :obj:`torch.int64`; :obj:`item` and :obj:`value`
          :math:`(Z)`, :obj:`torch.int64` or :obj:`torch.int32`
        - **output:** the selected rows :math:`(N')`, group by group and in
          the order of selection, :obj:`torch.int64`

    Raises:
        ValueError: If an argument is invalid, or a group or its values are so
            large that scores could overflow 64 bits.

    .. code-block:: python

        >>> ptr = torch.arange(5)  # Rows 0, 1, 5, 6 in a single column.
        >>> value = torch.tensor([0, 1, 5, 6])
        >>> herding(ptr, torch.zeros(4).long(), value, torch.tensor([0, 4]))
        tensor([1, 2, 0, 3])
    """
    return _herding(
        ptr, item, value, group_ptr, num_candidates, num_samples, num_finalists
    )


def herding_reference(
    ptr: Tensor,
    item: Tensor,
    value: Tensor,
    group_ptr: Tensor,
    num_candidates: int = NUM_CANDIDATES,
    num_samples: Optional[int] = None,
    num_finalists: int = NUM_FINALISTS,
) -> Tensor:
    """Compute :func:`herding` in plain PyTorch."""
    _check(
        ptr, item, value, group_ptr, num_candidates, num_samples, num_finalists
    )
    row, value = row_index(ptr), value.long()
    out = []
    for begin, end in zip(group_ptr[:-1].tolist(), group_ptr[1:].tolist()):
        entry = slice(int(ptr[begin]), int(ptr[end]))
        columns, column = item[entry].unique(return_inverse=True)
        group = _Group(
            row[entry] - begin,
            column,
            value[entry],
            end - begin,
            columns.numel(),
        )
        size = min(end - begin, end if num_samples is None else num_samples)
        out.append(begin + _herd(group, num_candidates, size, num_finalists))
    return torch.cat(out) if out else ptr.new_empty(0)


class _Group(NamedTuple):
    """The entries of a group of sparse rows."""

    row: Tensor
    column: Tensor
    value: Tensor
    num_rows: int
    num_columns: int

    def row_sum(self, values: Tensor) -> Tensor:
        out = values.new_zeros(self.num_rows)
        return out.index_add_(0, self.row, values)

    def column_sum(self, values: Tensor) -> Tensor:
        out = values.new_zeros(self.num_columns)
        return out.index_add_(0, self.column, values)

    def dots(self, y: Tensor) -> Tensor:
        return self.row_sum(self.value * y[self.column])


class _Parts(NamedTuple):
    """The part of each row, and the visits that evaluate the row anyway."""

    part: Tensor
    turn: Tensor
    num_parts: int
    period: int


def _split(num_rows: int, num_candidates: int, device: torch.device) -> _Parts:
    num_parts = (num_rows + num_candidates - 1) // num_candidates
    period = min(num_parts, MAX_PERIOD)
    size = torch.full((num_parts,), num_rows // max(num_parts, 1))
    size[: num_rows % max(num_parts, 1)] += 1
    ptr = row_ptr(size).to(device)
    part = row_index(ptr, num_rows)
    position = torch.arange(num_rows, device=device) - ptr[part]
    turn = position * period // ptr.diff()[part]
    return _Parts(part, turn, num_parts, period)


def _herd(
    group: _Group,
    num_candidates: int,
    num_samples: int,
    num_finalists: int,
) -> Tensor:
    num_rows, device = group.num_rows, group.value.device
    norm = group.row_sum(group.value.double().square())
    highest = float(norm.max()) if num_rows > 0 else 0.0
    if num_rows**2 * highest >= MAX_TERM:
        raise ValueError(
            f"herding: 'value' needs smaller values or groups (got a squared "
            f'norm of {highest} in a group of {num_rows} rows)'
        )
    norm = norm.long()
    total = group.column_sum(group.value)
    sum_dot, selected_sum = group.dots(total), torch.zeros_like(total)
    parts = _split(num_rows, num_candidates, device)
    remaining = torch.ones_like(norm, dtype=torch.bool)
    score = torch.zeros_like(norm)
    out = norm.new_empty(num_samples)
    for j in range(num_samples):
        visit, part = divmod(j, parts.num_parts)
        candidates = remaining & (parts.part == part)
        evaluated = candidates & (parts.turn == visit % parts.period)
        size = 4 * int(candidates.sum()) // (visit + 1)
        best = _lowest(score, candidates & ~evaluated)
        evaluated[best[: max(num_finalists, size)]] = True
        fresh = norm + 2 * group.dots(selected_sum)
        fresh = num_rows * fresh - 2 * (j + 1) * sum_dot
        score = torch.where(evaluated, fresh, score)
        out[j] = chosen = _lowest(score, evaluated)[0]
        remaining[chosen] = False
        values = group.value.where(group.row == chosen, 0)
        selected_sum += group.column_sum(values)
    return out


def _lowest(score: Tensor, mask: Tensor) -> Tensor:
    """Return the rows of a mask, sorted by score and position."""
    row = mask.nonzero().view(-1)
    return row[score[row].argsort(stable=True)]


def _check(
    ptr: Tensor,
    item: Tensor,
    value: Tensor,
    group_ptr: Tensor,
    num_candidates: int,
    num_samples: Optional[int],
    num_finalists: int,
) -> None:
    dtypes = (torch.long, torch.int)
    check_integers('herding', 'ptr', ptr)
    check_integers('herding', 'item', item, dtypes)
    check_integers('herding', 'value', value, dtypes, item.numel())
    check_integers('herding', 'group_ptr', group_ptr)
    for name, number in [
        ('num_candidates', num_candidates),
        ('num_finalists', num_finalists),
    ]:
        if number < 1:
            raise ValueError(
                f"herding: '{name}' needs to be positive (got {number})"
            )
    if num_samples is not None and num_samples < 0:
        raise ValueError(
            f"herding: 'num_samples' needs to be non-negative (got "
            f'{num_samples})'
        )
    check_ptr('herding', 'ptr', ptr, item.numel())
    check_ptr('herding', 'group_ptr', group_ptr, ptr.numel() - 1)
    for name, x, low in [('item', item, 0), ('value', value, -(1 << 31) + 1)]:
        outside = x[(x < low) | (x > (1 << 31) - 1)]
        if outside.numel() > 0:
            bounds = '[0, 2^31)' if low == 0 else '(-2^31, 2^31)'
            raise ValueError(
                f"herding: '{name}' needs to be in {bounds} (got "
                f'{int(outside[0])})'
            )


def _fake(
    ptr: Tensor,
    item: Tensor,
    value: Tensor,
    group_ptr: Tensor,
    num_candidates: int,
    num_samples: Optional[int] = None,
    num_finalists: int = NUM_FINALISTS,
) -> Tensor:
    num_rows = torch.library.get_ctx().new_dynamic_size()
    return ptr.new_empty(num_rows)


_herding = register_operator('herding', herding_reference, _fake)
