"""Multiply by a sparse weight, by the product that is faster on a GPU."""

from typing import NamedTuple, Optional, Tuple

from torch import Tensor

from torch_geometric_ext.ops.block_weights import expand_blocks
from torch_geometric_ext.ops.csr_linear import csr_linear, csr_linear_backward
from torch_geometric_ext.ops.gpu_choice import (
    BOTH,
    FORWARD,
    VALUES,
    prefers_sparse,
)

Gradients = Tuple[Tensor, Tensor, Tensor]
Needs = Tuple[bool, bool, bool]
Pattern = Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Weight(NamedTuple):
    """Hold a sparse weight, whose pattern is checked.

    Args:
        values (torch.Tensor): The active weights.
        rowptr (torch.Tensor): The pattern of the weights or of the blocks, as
            in :func:`~torch_geometric_ext.ops.sparse_linear`.
        col (torch.Tensor): See :obj:`rowptr`.
        colptr (torch.Tensor): See :obj:`rowptr`.
        row (torch.Tensor): See :obj:`rowptr`.
        perm (torch.Tensor): See :obj:`rowptr`.
        size (Tuple[int, int]): The number of rows and columns.
        block_size (int): The size of blocks, or :obj:`1` for single weights.
    """

    values: Tensor
    rowptr: Tensor
    col: Tensor
    colptr: Tensor
    row: Tensor
    perm: Tensor
    size: Tuple[int, int]
    block_size: int = 1

    @property
    def pattern(self) -> Pattern:
        """The tensors of the pattern."""
        return self.rowptr, self.col, self.colptr, self.row, self.perm


def multiply(x: Tensor, bias: Optional[Tensor], weight: Weight) -> Tensor:
    """Multiply samples by a weight, and add a bias.

    Computes a dense product unless the samples are on a GPU and a calibration
    of the GPU found the Triton kernel to be faster.
    """
    size = (weight.size, weight.values.numel(), weight.block_size)
    if prefers_sparse(x, FORWARD, *size):
        return multiply_sparse(x, bias, weight)
    return multiply_dense(x, bias, weight)


def backward(
    grad: Tensor, x: Tensor, weight: Weight, needs: Needs
) -> Gradients:
    """Compute the gradients of the input, the weights and the bias of
    :func:`multiply`.

    A gradient that is not needed is empty.
    """
    size, (needs_x, needs_values, _) = weight.size, needs
    product = (BOTH if needs_x else VALUES) if needs_values else FORWARD
    if not needs_values:  # A product with the transposed weight.
        size = size[::-1]
    args = (product, size, weight.values.numel(), weight.block_size)
    # A sum of the gradient is the same in both.
    if (needs_x or needs_values) and prefers_sparse(grad, *args):
        return backward_sparse(grad, x, weight, needs)
    return backward_dense(grad, x, weight, needs)


def multiply_dense(
    x: Tensor, bias: Optional[Tensor], weight: Weight
) -> Tensor:
    """Compute :func:`multiply` by dense products in plain PyTorch."""
    return csr_linear(x, weight.values, bias, *_as_csr(weight))


def backward_dense(
    grad: Tensor, x: Tensor, weight: Weight, needs: Needs
) -> Gradients:
    """Compute :func:`backward` by dense products in plain PyTorch."""
    csr = (weight.values, *_as_csr(weight))
    return csr_linear_backward(grad, x, *csr, *needs)


def multiply_sparse(
    x: Tensor, bias: Optional[Tensor], weight: Weight
) -> Tensor:
    """Compute :func:`multiply` by a Triton kernel, without waiting for it."""
    args = (x, weight.values, bias, weight.rowptr, weight.col)
    if weight.block_size == 1:
        from torch_geometric_ext.ops.sparse_linear_triton import sparse_linear

        return sparse_linear(*args)
    from torch_geometric_ext.ops.block_sparse_linear_triton import (
        block_sparse_linear,
    )

    return block_sparse_linear(*args, weight.size[0], weight.block_size)


def backward_sparse(
    grad: Tensor, x: Tensor, weight: Weight, needs: Needs
) -> Gradients:
    """Compute :func:`backward` by Triton kernels, without waiting for them."""
    if grad.dtype not in [x.dtype, weight.values.dtype]:
        grad = grad.to(weight.values.dtype)  # Outputs get its dtype.
    args = (grad, x, weight.values)
    if weight.block_size == 1:
        from torch_geometric_ext.ops.sparse_linear_triton import (
            sparse_linear_backward,
        )

        pattern = weight.pattern[1:]
        grads = sparse_linear_backward(*args, *pattern, *needs[:2])
    else:
        from torch_geometric_ext.ops.block_sparse_linear_triton import (
            block_sparse_linear_backward,
        )

        needs_xw, size = needs[:2], weight.block_size
        grads = block_sparse_linear_backward(
            *args, *weight.pattern, size, *needs_xw
        )
    if not needs[2]:
        return (*grads, weight.values.new_empty(0))
    return (*grads, grad.sum(0, dtype=weight.values.dtype))


def _as_csr(weight: Weight) -> Tuple[Tensor, Tensor]:
    """Return the row pointers and the column of each weight."""
    if weight.block_size == 1:
        return weight.rowptr, weight.col
    size = (weight.size, weight.block_size, weight.values.numel())
    out = expand_blocks(weight.rowptr, weight.col, *size)
    return out.rowptr, out.col
