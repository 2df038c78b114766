"""Products with a constant sparse matrix, forward and backward."""

import warnings
from typing import Any, Callable, NamedTuple, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.ragged import row_ptr

DTYPES = [torch.float, torch.double]  # Of sparse matrices on all devices.


class CSRPair(NamedTuple):
    """A constant sparse matrix and its transpose, both in CSR format.

    Args:
        matrix (torch.Tensor): The matrix, of shape :obj:`[M, N]`.
        transpose (torch.Tensor): Its transpose, for the backward pass.
    """

    matrix: Tensor
    transpose: Tensor

    @classmethod
    def from_edges(
        cls, source: Tensor, target: Tensor, value: Tensor, num_nodes: int
    ) -> 'CSRPair':
        r"""Return the matrix that sums the features of sources at targets.

        Takes :math:`O(|\mathcal{E}| \log |\mathcal{E}|)` time. Indices take
        32 bits where they fit, as the sparse products of CPUs read them.

        Args:
            source (torch.Tensor): The source of each edge (int64).
            target (torch.Tensor): The target of each edge (int64).
            value (torch.Tensor): The value of each edge.
            num_nodes (int): The number of nodes.

        Raises:
            IndexError: If an edge is out of range.
        """
        if max(value.numel(), num_nodes) < 1 << 31:
            source, target = source.int(), target.int()
        pair = []
        for row, col in [(target, source), (source, target)]:
            ptr, col, perm = compress(row, col, num_nodes)
            if ptr.numel() != num_nodes + 1:
                raise IndexError(
                    f"'edge_index' needs to be in [0, {num_nodes}) (got "
                    f'{ptr.numel() - 2})'
                )
            ptr = ptr.to(col.dtype)
            pair.append(csr_matrix(ptr, col, value[perm], num_nodes))
        return cls(*pair)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply by features, of shape :obj:`[N, C]`."""
        return csr_product(x, self.matrix, self.transpose)


def csr_product(x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
    r"""Multiply by a constant sparse matrix.

    PyTorch's own backward pass transposes the matrix in each step. Here, the
    gradient is a product with the given transpose. Differentiable any number
    of times. Takes :math:`O(|\mathcal{E}| C)` time and writes no messages.

    Args:
        x (torch.Tensor): The features.
        matrix (torch.Tensor): The matrix, in CSR format.
        transpose (torch.Tensor): Its transpose, in CSR format.

    Shapes:
        - **input:** :obj:`x` :math:`(N, C)`, :obj:`matrix` :math:`(M, N)` and
          :obj:`transpose` :math:`(N, M)`, all of one floating-point type
        - **output:** :math:`(M, C)`
    """
    return multiply(x, lambda transposed: transpose if transposed else matrix)


def multiply(x: Tensor, get_matrix: Callable[[bool], Tensor]) -> Tensor:
    """Multiply by a constant sparse matrix that is made when needed.

    Args:
        x (torch.Tensor): The features, of shape :obj:`[N, C]`.
        get_matrix (callable): Returns the matrix, or its transpose, which only
            gradients need, in CSR format.
    """
    out: Tensor = _Product.apply(x, get_matrix, False)
    return out


class _Product(torch.autograd.Function):
    """Multiply by a matrix or its transpose, of any order of derivatives."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, get_matrix: Callable, transposed: bool
    ) -> Any:
        ctx.args = get_matrix, not transposed
        with torch.autocast(x.device.type, enabled=False):
            return get_matrix(transposed) @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Product.apply(grad, *ctx.args), None, None


def compress(
    row: Tensor, col: Tensor, num_rows: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the boundaries of rows, the columns row by row, and the position
    of each entry before the sort, which is stable.
    """
    perm = row.argsort(stable=True)
    size = torch.bincount(row, minlength=num_rows)
    return row_ptr(size), col[perm], perm


def csr_matrix(
    ptr: Tensor, col: Tensor, value: Tensor, num_cols: int
) -> Tensor:
    """Return a matrix in CSR format."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch calls CSR a beta feature.
        return torch.sparse_csr_tensor(
            ptr, col, value, (ptr.numel() - 1, num_cols)
        )
