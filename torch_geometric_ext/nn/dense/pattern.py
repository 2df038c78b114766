"""Build and check sparsity patterns in CSR and CSC format.

Flat positions are ascending indices into a flattened matrix.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.merge_positions import missing_positions
from torch_geometric_ext.ops.sparse_pattern import MAX_INDEX, sparse_pattern
from torch_geometric_ext.ops.top_positions import top_positions


class Pattern(NamedTuple):
    r"""Sparsity pattern of a matrix in CSR and CSC format.

    All tensors are of type :obj:`torch.int32`.

    Attributes:
        rowptr (torch.Tensor): CSR row pointers, of shape
            :math:`(\textrm{rows} + 1)`.
        col (torch.Tensor): CSR column indices, of shape
            :math:`(\textrm{nnz})`.
        colptr (torch.Tensor): CSC column pointers, of shape
            :math:`(\textrm{cols} + 1)`.
        row (torch.Tensor): CSC row indices, of shape
            :math:`(\textrm{nnz})`.
        perm (torch.Tensor): CSR position of each CSC element, of shape
            :math:`(\textrm{nnz})`.
    """

    rowptr: Tensor
    col: Tensor
    colptr: Tensor
    row: Tensor
    perm: Tensor


def random_index(
    numel: int, size: int, generator: Optional[torch.Generator] = None
) -> Tensor:
    """Draw :obj:`size` distinct positions of :obj:`range(numel)` uniformly.

    Takes memory in proportion to :obj:`size`.

    Args:
        numel (int): Number of positions to draw from.
        size (int): Number of positions to draw.
        generator (torch.Generator, optional): CPU generator.
            (default: the global generator)

    Returns:
        Ascending positions on the CPU (int64).
    """
    if 4 * size > numel:
        index = torch.randperm(numel, generator=generator, device='cpu')
        return _sort_distinct(index[:size], numel)
    index = torch.empty(0, dtype=torch.long, device='cpu')
    while index.numel() < size:  # Repeats once or twice in most cases.
        missing = size - index.numel()
        draw = torch.randint(
            numel,
            (missing + missing // 3 + 8,),
            generator=generator,
            device='cpu',
        )
        index = _sort_distinct(torch.cat([index, draw]), numel)
    surplus = index.numel() - size
    if surplus > 0:
        dropped = random_index(index.numel(), surplus, generator)
        rank = torch.arange(size, device='cpu')
        index = index.index_select(0, missing_positions(dropped, rank))
    return index


def _sort_distinct(index: Tensor, numel: int) -> Tensor:
    """Return the distinct positions of :obj:`range(numel)`, ascending."""
    # A mask of few positions is faster than a sort. A choice, as the sort
    # takes time in proportion to `index` only.
    if numel > 8 * index.numel():
        # A radix sort takes half of the time for 32 bits.
        return (index.int() if numel < MAX_INDEX else index).unique().long()
    mask = torch.zeros(numel, dtype=torch.bool, device='cpu')
    mask[index] = True
    return mask.nonzero().flatten()


def select_index(
    weight: Tensor,
    mask: Optional[Tensor] = None,
    sparsity: Optional[float] = None,
    index: Optional[Tensor] = None,
) -> Tensor:
    """Return the ascending flat positions of a weight that a mask, a sparsity
    (by magnitude, the first among equals) or positions select, or else of all
    elements but zeros.

    Raises:
        ValueError: If several of them are given, or one is invalid.
    """
    if sum(x is not None for x in [mask, sparsity, index]) > 1:
        raise ValueError(
            "At most one of 'mask', 'sparsity' and 'index' may be given"
        )
    if index is not None:
        check_index(index, weight.numel())
        return index
    flat = weight.flatten()
    if sparsity is not None:
        size = round((1 - sparsity) * flat.numel())
        return top_positions(flat.abs(), size)
    if mask is None:
        return flat.nonzero().flatten()
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ValueError(
            f"'mask' needs to be of type torch.bool and of shape "
            f'{list(weight.shape)} (got {mask.dtype} and {list(mask.shape)})'
        )
    return mask.flatten().nonzero().flatten()


def compress(index: Tensor, size: Tuple[int, int]) -> Pattern:
    """Return the pattern of ascending flat positions.

    Args:
        index (torch.Tensor): Ascending flat positions (int64).
        size (Tuple[int, int]): Number of rows and columns.

    Raises:
        ValueError: If the pattern exceeds 32-bit indices.
    """
    check_size(index.numel(), size)
    return Pattern(*sparse_pattern(index, *size))


def flatten(rowptr: Tensor, col: Tensor, num_cols: int) -> Tensor:
    """Return the ascending flat positions of a CSR matrix (int64)."""
    start = torch.arange(rowptr.numel() - 1, device=col.device) * num_cols
    start = start.repeat_interleave(rowptr.diff(), output_size=col.numel())
    return start.add_(col)


def check_index(index: Tensor, numel: int) -> None:
    """Raise a :class:`ValueError` unless :obj:`index` holds ascending
    positions in :obj:`range(numel)`.
    """
    if index.dim() != 1 or index.dtype != torch.long:
        raise ValueError(
            f"'index' needs to be a vector of torch.int64 (got "
            f'{index.dim()} dimensions of {index.dtype})'
        )
    if index.numel() > 0 and (
        index[0] < 0 or index[-1] >= numel or (index[1:] <= index[:-1]).any()
    ):
        raise ValueError(
            f"'index' needs to be ascending in [0, {numel}), without "
            f'duplicates'
        )


def check_size(num_weights: int, size: Tuple[int, int]) -> None:
    """Raise a :class:`ValueError` if a matrix exceeds 32-bit indices."""
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
    """Check a stored CSR matrix and add the tensors that are not stored.

    Args:
        values (torch.Tensor): Elements of the matrix.
        rowptr (torch.Tensor): CSR row pointers (int32).
        col (torch.Tensor): CSR column indices (int32).
        colptr (torch.Tensor): CSC column pointers (int32).
        size (Tuple[int, int]): Number of rows and columns.

    Raises:
        ValueError: If the tensors are inconsistent.
    """
    _check_rows(rowptr, col, size)
    if values.shape != col.shape:
        raise ValueError(
            f"'values' of 'SparseLinear' needs to have the shape of 'col', "
            f'{list(col.shape)} (got {list(values.shape)})'
        )
    pattern = compress(flatten(rowptr, col, size[1]), size)
    if colptr.dtype != torch.int32 or not pattern.colptr.equal(colptr):
        raise ValueError(
            f"'colptr' of 'SparseLinear' needs to hold the column pointers "
            f"of 'col' for {size[1]} columns as torch.int32 (got "
            f'{colptr.numel()} elements of {colptr.dtype})'
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
            f'ascending numbers from 0 to the number of weights, or of '
            f"blocks of the same 'block_size', "
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
