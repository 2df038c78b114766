from typing import Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import check_integers
from torch_geometric_ext.ops.register import register_operator

# The bound of `torch.int32`. `csrc/cpu/sparse_pattern_kernel.cpp` holds the
# same bound.
MAX_INDEX = 2**31 - 1

Tensors = Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def sparse_pattern(index: Tensor, num_rows: int, num_cols: int) -> Tensors:
    r"""Convert the flat positions of the elements of a sparse matrix to CSR
    and CSC format.

    Takes :math:`O(\textrm{nnz} + \textrm{rows} + \textrm{cols})` time on CPU:
    a counting sort orders the elements by columns.

    Args:
        index (torch.Tensor): The ascending positions in the flattened matrix.
        num_rows (int): The number of rows.
        num_cols (int): The number of columns.

    Shapes:
        - **input:** :obj:`index` :math:`(\textrm{nnz})`, :obj:`torch.int64`
        - **output:** CSR row pointers :math:`(\textrm{rows} + 1)`, columns
          :math:`(\textrm{nnz})`, CSC column pointers
          :math:`(\textrm{cols} + 1)`, rows :math:`(\textrm{nnz})`, and the CSR
          position of each CSC element :math:`(\textrm{nnz})`, all
          :obj:`torch.int32`

    Raises:
        ValueError: If positions do not ascend within the matrix, or if a size
            exceeds 32-bit indices.

    .. code-block:: python

        >>> rowptr, col, *_ = sparse_pattern(torch.tensor([1, 3, 4]), 2, 3)
        >>> rowptr.tolist(), col.tolist()
        ([0, 1, 3], [1, 0, 1])
    """
    out: Tensors = _sparse_pattern(index, num_rows, num_cols)
    return out


def sparse_pattern_reference(
    index: Tensor, num_rows: int, num_cols: int
) -> Tensors:
    """Compute :func:`sparse_pattern` in plain PyTorch."""
    check_integers('sparse_pattern', 'index', index)
    sizes = num_rows, num_cols, index.numel()
    if min(sizes) < 0 or max(sizes) >= MAX_INDEX:
        raise ValueError(
            f"sparse_pattern: 'num_rows', 'num_cols' and the size of 'index' "
            f'need to be in [0, {MAX_INDEX}) (got {num_rows}, {num_cols} and '
            f'{index.numel()})'
        )
    numel = num_rows * num_cols
    if index.numel() > 0 and not index.is_meta:
        ascends = bool((index[1:] > index[:-1]).all())
        if not ascends or int(index[0]) < 0 or int(index[-1]) >= numel:
            raise ValueError(
                f"sparse_pattern: 'index' needs to be ascending in "
                f'[0, {numel}), without duplicates'
            )
    row = torch.div(index, max(num_cols, 1), rounding_mode='floor')
    col = index - row * num_cols
    perm = torch.sort(col, stable=True).indices
    rowptr, colptr = _pointer(row, num_rows), _pointer(col, num_cols)
    return rowptr, col.int(), colptr, row[perm].int(), perm.int()


def _pointer(index: Tensor, size: int) -> Tensor:
    count = torch.zeros(size + 1, dtype=torch.long, device=index.device)
    count.scatter_add_(0, index + 1, torch.ones_like(index))
    return count.cumsum(0).int()


def _fake(index: Tensor, num_rows: int, num_cols: int) -> Tensors:
    num_weights = index.numel()
    sizes = num_rows + 1, num_weights, num_cols + 1, num_weights, num_weights
    a, b, c, d, e = (index.new_empty(x, dtype=torch.int) for x in sizes)
    return a, b, c, d, e


_sparse_pattern = register_operator(
    'sparse_pattern', sparse_pattern_reference, _fake
)
