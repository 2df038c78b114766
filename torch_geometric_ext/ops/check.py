"""Checks of arguments for the reference operators.

`csrc/check.h` checks the same conditions in the kernels.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.ragged import row_index

# More levels of trees would be a mistake.
# `csrc/cpu/extract_trees_kernel.cpp` holds the same bound.
MAX_LAYERS = 1000

DTYPE_NAMES = {torch.long: 'int64', torch.int: 'int32'}


def check_integers(
    op: str,
    name: str,
    x: Tensor,
    dtypes: Tuple[torch.dtype, ...] = (torch.long,),
    size: Optional[int] = None,
    contiguous: bool = False,
) -> None:
    """Check the dtype, the number of dimensions, the size and, if set to
    :obj:`True`, the strides of a tensor.
    """
    if x.dim() != 1 or x.dtype not in dtypes:
        dtype = ' or '.join(DTYPE_NAMES[dtype] for dtype in dtypes)
        raise ValueError(
            f"{op}: '{name}' needs to be a one-dimensional {dtype} tensor "
            f'(got {x.dtype} of shape {list(x.shape)})'
        )
    if size is not None and x.numel() != size:
        raise ValueError(
            f"{op}: '{name}' needs {size} elements (got {x.numel()})"
        )
    if contiguous and not x.is_contiguous():
        raise ValueError(
            f"{op}: '{name}' needs to be contiguous (got strides {x.stride()})"
        )


def check_ptr(op: str, name: str, ptr: Tensor, size: int) -> None:
    """Check that row pointers ascend from zero to :obj:`size`."""
    if (
        ptr.numel() == 0
        or int(ptr[0]) != 0
        or int(ptr[-1]) != size
        or bool((ptr[1:] < ptr[:-1]).any())  # A difference may overflow.
    ):
        raise ValueError(f"{op}: '{name}' needs to ascend from 0 to {size}")


def check_num_layers(prefix: str, num_layers: int) -> None:
    """Check the number of levels of computation trees."""
    if not 0 <= num_layers <= MAX_LAYERS:
        raise ValueError(
            f"{prefix}'num_layers' needs to be in [0, {MAX_LAYERS}] (got "
            f'{num_layers})'
        )


def check_pattern(
    op: str,
    pattern: Tuple[Tensor, ...],
    num_weights: int,
    num_columns: int,
    check_invariants: bool,
) -> None:
    """Check the sparsity pattern of a weight.

    Args:
        op (str): The name of the operator.
        pattern (Tuple[torch.Tensor]): The tensors :obj:`rowptr`, :obj:`col`,
            :obj:`colptr`, :obj:`row` and :obj:`perm`.
        num_weights (int): The number of elements.
        num_columns (int): The number of columns.
        check_invariants (bool): If set to :obj:`False`, only shapes and dtypes
            are checked, which does not wait for the device.
    """
    rowptr, col, colptr, row, perm = pattern
    for name, x, size in [
        ('rowptr', rowptr, None),
        ('col', col, num_weights),
        ('colptr', colptr, num_columns + 1),
        ('row', row, num_weights),
        ('perm', perm, num_weights),
    ]:
        check_integers(op, name, x, (torch.int,), size, contiguous=True)
    if not check_invariants:
        return
    _check_compressed(op, 'rowptr', rowptr, 'col', col, num_columns)
    num_rows = rowptr.numel() - 1
    _check_compressed(op, 'colptr', colptr, 'row', row, num_rows)
    check_range(op, 'perm', perm, num_weights)
    # Columns ascend, hence no two elements of 'perm' are equal.
    if not (
        row_index(rowptr, num_weights)[perm].equal(row.long())
        and row_index(colptr, num_weights).equal(col[perm].long())
    ):
        raise ValueError(
            f"{op}: 'colptr', 'row' and 'perm' need to hold the {num_weights} "
            f"elements of 'rowptr' and 'col'"
        )


def _check_compressed(
    op: str, ptr_name: str, ptr: Tensor, name: str, index: Tensor, size: int
) -> None:
    """Check that elements between two pointers ascend within [0, size)."""
    check_ptr(op, ptr_name, ptr, index.numel())
    check_range(op, name, index, size)
    row = row_index(ptr, index.numel())
    if bool(((row[1:] == row[:-1]) & (index[1:] <= index[:-1])).any()):
        raise ValueError(
            f"{op}: '{name}' needs to ascend between two '{ptr_name}', "
            f'without duplicates'
        )


def check_range(op: str, name: str, x: Tensor, size: int) -> None:
    """Check that values are in [0, size)."""
    if bool(((x < 0) | (x >= size)).any()):
        raise IndexError(f"{op}: '{name}' needs to be in [0, {size})")
