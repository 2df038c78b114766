from typing import Optional

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import check_integers, check_ptr
from torch_geometric_ext.ops.ragged import row_index
from torch_geometric_ext.ops.register import register_operator

# A score is a sum of five terms below this bound, which fits into 64 bits.
# `csrc/cpu/herding_kernel.cpp` holds the same bound.
MAX_TERM = 1e18


def herding(
    ptr: Tensor,
    item: Tensor,
    value: Tensor,
    group_ptr: Tensor,
    num_candidates: int = 1024,
    num_samples: Optional[int] = None,
) -> Tensor:
    r"""Order the rows of each group by herding, such that the mean of the
    first :math:`k` rows is close to the mean of the group for every
    :math:`k`.

    Implements herding without replacement from the `"Herding Dynamical Weights
    to Learn" <https://dl.acm.org/doi/10.1145/1553374.1553517>`_ paper. Each
    step selects the row that brings the mean of the selected rows closest to
    the mean of the group in Euclidean distance; the first of several such rows
    wins. Row :math:`i` is sparse and holds :obj:`value[ptr[i]:ptr[i + 1]]` in
    the columns :obj:`item[ptr[i]:ptr[i + 1]]`.

    Values are integers. Hence the result depends neither on the number of
    threads nor on rounding. A group of more than :obj:`num_candidates` rows is
    split into parts of equal size, and the steps visit the parts in turn.
    Takes :math:`O(Z C)` time for groups with :math:`Z` entries and :math:`C`
    candidates, and 8 bytes for each entry and, on each thread, for each
    distinct column. On CPU, groups run in parallel.

    Args:
        ptr (torch.Tensor): The row pointers.
        item (torch.Tensor): The columns, in :math:`[0, 2^{31})`, distinct
            within a row (not checked).
        value (torch.Tensor): The values, in :math:`(-2^{31}, 2^{31})`.
        group_ptr (torch.Tensor): The row pointers of groups to rows.
        num_candidates (int, optional): The largest number of rows that one
            step compares. (default: :obj:`1024`)
        num_samples (int, optional): The largest number of rows to select from
            each group. (default: all of them)

    Shapes:
        - **input:** :obj:`ptr` :math:`(N + 1)`, :obj:`item` and :obj:`value`
          :math:`(Z)`, :obj:`group_ptr` :math:`(G + 1)`, all
          :obj:`torch.int64`
        - **output:** the selected rows :math:`(N')`, group by group and in
          the order of selection, :obj:`torch.int64`

    Raises:
        ValueError: If a shape, dtype or value is invalid, or if a group is so
            large or its values are so large that scores could overflow 64
            bits.

    .. code-block:: python

        >>> ptr = torch.arange(5)  # Rows 0, 1, 5, 6 in a single column.
        >>> value = torch.tensor([0, 1, 5, 6])
        >>> herding(ptr, torch.zeros(4).long(), value, torch.tensor([0, 4]))
        tensor([1, 2, 0, 3])
    """
    return _herding(ptr, item, value, group_ptr, num_candidates, num_samples)


def herding_reference(
    ptr: Tensor,
    item: Tensor,
    value: Tensor,
    group_ptr: Tensor,
    num_candidates: int = 1024,
    num_samples: Optional[int] = None,
) -> Tensor:
    """Compute :func:`herding` in plain PyTorch."""
    _check(ptr, item, value, group_ptr, num_candidates, num_samples)
    row = row_index(ptr)
    out = []
    for begin, end in zip(group_ptr[:-1].tolist(), group_ptr[1:].tolist()):
        entry = slice(int(ptr[begin]), int(ptr[end]))
        columns, column = item[entry].unique(return_inverse=True)
        out.append(
            begin
            + _herd(
                row[entry] - begin,
                column,
                value[entry],
                end - begin,
                columns.numel(),
                num_candidates,
                min(end - begin, end if num_samples is None else num_samples),
            )
        )
    return torch.cat(out) if out else ptr.new_empty(0)


def _herd(
    row: Tensor,
    column: Tensor,
    value: Tensor,
    num_rows: int,
    num_columns: int,
    num_candidates: int,
    num_samples: int,
) -> Tensor:
    def dots(y: Tensor) -> Tensor:
        out = value.new_zeros(num_rows)
        return out.index_add_(0, row, value * y[column])

    def column_sum(values: Tensor) -> Tensor:
        out = value.new_zeros(num_columns)
        return out.index_add_(0, column, values)

    norm = torch.zeros(num_rows, dtype=torch.double, device=value.device)
    norm.index_add_(0, row, value.double().square())
    highest = float(norm.max()) if num_rows > 0 else 0.0
    if num_rows**2 * highest >= MAX_TERM:
        raise ValueError(
            f"herding: 'value' needs smaller values or groups (got a squared "
            f'norm of {highest} in a group of {num_rows} rows)'
        )
    norm = norm.long()
    sum_dot, selected_dot = dots(column_sum(value)), torch.zeros_like(norm)
    selected = torch.zeros_like(norm, dtype=torch.bool)
    num_parts = (num_rows + num_candidates - 1) // num_candidates
    part = torch.arange(num_rows, device=norm.device) % max(num_parts, 1)
    out = norm.new_empty(num_samples)
    highest_score = torch.iinfo(torch.long).max
    for j in range(num_samples):
        score = num_rows * (norm + 2 * selected_dot) - 2 * (j + 1) * sum_dot
        # Select the first of equal scores, which 'argmin' does not promise.
        score = score.masked_fill(
            selected | (part != j % num_parts), highest_score
        )
        best = (score == score.min()).long().argmax()
        out[j] = best
        selected[best] = True
        selected_dot += dots(column_sum(value.where(row == best, 0)))
    return out


def _check(
    ptr: Tensor,
    item: Tensor,
    value: Tensor,
    group_ptr: Tensor,
    num_candidates: int,
    num_samples: Optional[int],
) -> None:
    check_integers('herding', 'ptr', ptr)
    check_integers('herding', 'item', item)
    check_integers('herding', 'value', value, size=item.numel())
    check_integers('herding', 'group_ptr', group_ptr)
    if num_candidates < 1:
        raise ValueError(
            f"herding: 'num_candidates' needs to be positive (got "
            f'{num_candidates})'
        )
    if num_samples is not None and num_samples < 0:
        raise ValueError(
            f"herding: 'num_samples' needs to be non-negative (got "
            f'{num_samples})'
        )
    check_ptr('herding', 'ptr', ptr, item.numel())
    check_ptr('herding', 'group_ptr', group_ptr, ptr.numel() - 1)
    for name, x, low in [('item', item, 0), ('value', value, -(1 << 31) + 1)]:
        outside = x[(x < low) | (x >= 1 << 31)]
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
) -> Tensor:
    num_rows = torch.library.get_ctx().new_dynamic_size()
    return ptr.new_empty(num_rows)


_herding = register_operator('herding', herding_reference, _fake)
