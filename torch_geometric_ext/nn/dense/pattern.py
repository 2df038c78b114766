"""Patterns of sparse matrices: which weights exist.

A pattern is either the ascending, flat positions of its elements, or their
compressed rows (`rowptr`, `col`) and columns (`colptr`, `row`, `perm`).
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

MAX_INDEX = 2**31 - 1


class Pattern(NamedTuple):
    """Compressed rows and columns, all of :obj:`torch.int32`."""

    rowptr: Tensor
    col: Tensor
    colptr: Tensor
    row: Tensor
    perm: Tensor


def random_index(
    numel: int, size: int, generator: Optional[torch.Generator] = None
) -> Tensor:
    """Draws :obj:`size` of :obj:`numel` positions uniformly, ascending, in
    memory proportional to :obj:`size`.
    """
    if 4 * size > numel:
        index = torch.randperm(numel, generator=generator, device='cpu')
        return index[:size].sort().values
    index = torch.empty(0, dtype=torch.long, device='cpu')
    while index.numel() < size:  # Two rounds are likely to do.
        missing = size - index.numel()
        draw = torch.randint(
            numel,
            (missing + missing // 3 + 8,),
            generator=generator,
            device='cpu',
        )
        index = torch.cat([index, draw]).unique()
    surplus = index.numel() - size
    if surplus > 0:
        mask = index.new_ones(index.numel(), dtype=torch.bool)
        mask[random_index(index.numel(), surplus, generator)] = False
        index = index[mask]
    return index


def compress(index: Tensor, size: Tuple[int, int]) -> Pattern:
    """Compresses flat positions in a matrix of :obj:`size`."""
    num_rows, num_cols = size
    check_size(index.numel(), size)
    row = torch.div(index, max(num_cols, 1), rounding_mode='floor')
    col = index - row * num_cols
    perm = torch.sort(col, stable=True).indices
    return Pattern(
        rowptr=_pointer(row, num_rows),
        col=col.int(),
        colptr=_pointer(col, num_cols),
        row=row[perm].int(),
        perm=perm.int(),
    )


def flatten(rowptr: Tensor, col: Tensor, num_cols: int) -> Tensor:
    """The flat positions of compressed rows."""
    row = torch.arange(rowptr.numel() - 1, device=col.device)
    row = row.repeat_interleave(rowptr.diff(), output_size=col.numel())
    return row * num_cols + col


def check_index(index: Tensor, numel: int) -> None:
    """Raises unless positions ascend in a matrix of :obj:`numel`."""
    if index.dim() != 1 or index.dtype != torch.long:
        raise ValueError(
            f"'index' needs to be a vector of torch.int64 (got "
            f'{index.dim()} dimensions of {index.dtype})'
        )
    if index.numel() > 0 and (
        index[0] < 0 or index[-1] >= numel or (index.diff() <= 0).any()
    ):
        raise ValueError(
            f"'index' needs to be ascending in [0, {numel}), without "
            f'duplicates'
        )


def check_size(num_weights: int, size: Tuple[int, int]) -> None:
    """Raises if indices do not fit into :obj:`torch.int32`."""
    num_rows, num_cols = size
    if max(num_weights, num_rows, num_cols) >= MAX_INDEX:
        raise ValueError(
            f"'SparseLinear' needs fewer than {MAX_INDEX:,} rows, columns and "
            f'weights (got {num_rows:,} x {num_cols:,} with {num_weights:,} '
            f'weights)'
        )


def complete(
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    size: Tuple[int, int],
) -> Pattern:
    """The pattern of what was stored of a matrix of :obj:`size`. Raises if it
    is none.
    """
    _check_rows(rowptr, col, size)
    if values.shape != col.shape:
        raise ValueError(
            f"'values' of 'SparseLinear' needs to be of the shape of 'col', "
            f'{list(col.shape)} (got {list(values.shape)})'
        )
    pattern = compress(flatten(rowptr, col, size[1]), size)
    if colptr.dtype != torch.int32 or not pattern.colptr.equal(colptr):
        raise ValueError(
            f"'colptr' of 'SparseLinear' needs to count the weights of 'col' "
            f'before each of {size[1]} columns, as torch.int32'
        )
    return pattern


def _check_rows(rowptr: Tensor, col: Tensor, size: Tuple[int, int]) -> None:
    num_rows, num_cols = size
    for name, x in [('rowptr', rowptr), ('col', col)]:
        if x.dtype != torch.int32 or x.dim() != 1:
            raise ValueError(
                f"'{name}' of 'SparseLinear' needs to be a vector of "
                f'torch.int32 (got {x.dim()} dimensions of {x.dtype})'
            )
    if (
        rowptr.numel() != num_rows + 1
        or rowptr[0] != 0
        or rowptr[-1] != col.numel()
        or (rowptr.diff() < 0).any()
    ):
        raise ValueError(
            f"'rowptr' of 'SparseLinear' needs to hold {num_rows + 1} "
            f'ascending numbers from 0 to the number of weights, '
            f'{col.numel()} (got {rowptr.numel()} from '
            f'{rowptr[:1].tolist()} to {rowptr[-1:].tolist()})'
        )
    if col.numel() > 0 and (col.min() < 0 or col.max() >= num_cols):
        raise ValueError(
            f"'col' of 'SparseLinear' needs to be in [0, {num_cols}) (got "
            f'numbers from {int(col.min())} to {int(col.max())})'
        )
    if (flatten(rowptr, col, num_cols).diff() <= 0).any():
        raise ValueError(
            "'col' of 'SparseLinear' needs to be ascending within each row, "
            'without duplicates'
        )


def _pointer(index: Tensor, size: int) -> Tensor:
    count = torch.zeros(size + 1, dtype=torch.long, device=index.device)
    count.scatter_add_(0, index + 1, torch.ones_like(index))
    return count.cumsum(0).int()
