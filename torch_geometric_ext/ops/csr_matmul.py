from typing import Any, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import (
    check_integers,
    check_ptr,
    check_range,
)
from torch_geometric_ext.ops.ragged import row_index
from torch_geometric_ext.ops.register import register_operator

Rows = Tuple[Tensor, Tensor, Tensor]


def csr_matmul(
    value: Tensor,
    x: Tensor,
    rowptr: Tensor,
    col: Tensor,
    row_perm: Tensor,
    colptr: Tensor,
    row: Tensor,
    col_perm: Tensor,
) -> Tensor:
    r"""Aggregate features along edges, times a value for each edge and head.

    .. math::
        \mathbf{x}^{\prime}_{i, h} = \sum_{(j, i) \in \mathcal{E}}
        \alpha_{ji, h} \, \mathbf{x}_{j, h}

    No message is written to memory. The edges come in compressed rows, one
    for each target, and for the gradient in compressed columns, one for each
    source. Takes :math:`O(|\mathcal{E}| H C)` time, in the forward and in the
    backward pass, and no memory beside inputs, outputs and gradients on CPU.
    Differentiable any number of times. Sums are in the order of the edges of
    a row, so that the result is deterministic for any number of threads.

    Args:
        value (torch.Tensor): The value of each edge and head.
        x (torch.Tensor): The features of the sources.
        rowptr (torch.Tensor): The boundaries of the rows.
        col (torch.Tensor): The sources, row by row.
        row_perm (torch.Tensor): The positions in :obj:`value`, row by row.
        colptr (torch.Tensor): The boundaries of the columns.
        row (torch.Tensor): The targets, column by column.
        col_perm (torch.Tensor): The positions in :obj:`value`, column by
            column.

    Shapes:
        - **input:** :obj:`value` :math:`(|\mathcal{E}|, H)`, :obj:`x`
          :math:`(N, H, C)`, both :obj:`torch.float` or :obj:`torch.double`;
          :obj:`rowptr` :math:`(M + 1)`, :obj:`colptr` :math:`(N + 1)`, and
          :obj:`col`, :obj:`row`, :obj:`row_perm`, :obj:`col_perm`
          :math:`(|\mathcal{E}|)`, all :obj:`torch.int64`
        - **output:** :math:`(M, H, C)`

    Raises:
        ValueError: If a shape or type is off.
        IndexError: If a boundary or an index is out of range (checked on CPU
            only).
    """
    rows, cols = (rowptr, col, row_perm), (colptr, row, col_perm)
    if x.dim() == 3 and colptr.numel() != x.size(0) + 1:
        raise ValueError(
            f"csr_matmul: 'colptr' needs one element more than 'x' has rows, "
            f'{x.size(0) + 1} (got {colptr.numel()})'
        )
    out: Tensor = _Matmul.apply(value, x, rows, cols)
    return out


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, x: Tensor, rows: Rows, cols: Rows
    ) -> Tensor:
        ctx.save_for_backward(value, x)
        ctx.rows, ctx.cols = rows, cols
        return _matmul(value, x, *rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        value, x = ctx.saved_tensors
        grad_value = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_value = _DotProducts.apply(grad, x, ctx.rows, ctx.cols)
        if ctx.needs_input_grad[1]:
            grad_x = _Matmul.apply(value, grad, ctx.cols, ctx.rows)
        return grad_value, grad_x, None, None


class _DotProducts(torch.autograd.Function):
    """Compute the dot product of both ends of each edge."""

    @staticmethod
    def forward(
        ctx: Any, target: Tensor, x: Tensor, rows: Rows, cols: Rows
    ) -> Tensor:
        ctx.save_for_backward(target, x)
        ctx.rows, ctx.cols = rows, cols
        return _dot_products(target, x, *rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        target, x = ctx.saved_tensors
        grad_target = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_target = _Matmul.apply(grad, x, ctx.rows, ctx.cols)
        if ctx.needs_input_grad[1]:
            grad_x = _Matmul.apply(grad, target, ctx.cols, ctx.rows)
        return grad_target, grad_x, None, None


def csr_matmul_reference(
    value: Tensor, x: Tensor, ptr: Tensor, col: Tensor, perm: Tensor
) -> Tensor:
    """Run the forward pass of :func:`csr_matmul` in plain PyTorch."""
    size = (col.numel(), x.size(1)) if x.dim() == 3 else None
    if value.shape != size or not _are_floats(value, x):
        raise ValueError(
            f"csr_matmul: 'value' needs to be of shape [{col.numel()}, H] and "
            f"'x' of shape [N, H, C] and of one type (got "
            f'{list(value.shape)} of {value.dtype} and {list(x.shape)} of '
            f'{x.dtype})'
        )
    _check_rows('csr_matmul', ptr, col, perm, x.size(0))
    row = row_index(ptr, col.numel())
    out = x.new_zeros(ptr.numel() - 1, *x.shape[1:])
    return out.index_add_(0, row, value[perm].unsqueeze(-1) * x[col])


def csr_dot_products_reference(
    target: Tensor, x: Tensor, ptr: Tensor, col: Tensor, perm: Tensor
) -> Tensor:
    """Run the gradient of values of :func:`csr_matmul` in plain PyTorch."""
    op = 'csr_dot_products'
    size = (ptr.numel() - 1, *x.shape[1:])
    if x.dim() != 3 or target.shape != size or not _are_floats(target, x):
        raise ValueError(
            f"{op}: 'grad' needs to be of shape [{size[0]}, H, C] and 'x' of "
            f'shape [N, H, C] and of one type (got {list(target.shape)} of '
            f'{target.dtype} and {list(x.shape)} of {x.dtype})'
        )
    _check_rows(op, ptr, col, perm, x.size(0))
    row = row_index(ptr, col.numel())
    out = x.new_zeros(col.numel(), x.size(1))
    out[perm] = (target[row] * x[col]).sum(dim=-1)
    return out


def _are_floats(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.dtype in [torch.float, torch.double]


def _check_rows(
    op: str, ptr: Tensor, col: Tensor, perm: Tensor, num_cols: int
) -> None:
    """Check the edges unless this waits for the device."""
    check_integers(op, 'ptr', ptr, contiguous=True)
    check_integers(op, 'col', col, contiguous=True)
    check_integers(op, 'perm', perm, size=col.numel(), contiguous=True)
    if ptr.is_cpu and not torch.compiler.is_compiling():
        check_ptr(op, 'ptr', ptr, col.numel())
        check_range(op, 'col', col, num_cols)
        check_range(op, 'perm', perm, col.numel())


def _fake_matmul(
    value: Tensor, x: Tensor, ptr: Tensor, col: Tensor, perm: Tensor
) -> Tensor:
    return x.new_empty(ptr.numel() - 1, *x.shape[1:])


def _fake_dot_products(
    target: Tensor, x: Tensor, ptr: Tensor, col: Tensor, perm: Tensor
) -> Tensor:
    return x.new_empty(col.numel(), x.size(1))


_matmul = register_operator('csr_matmul', csr_matmul_reference, _fake_matmul)
_dot_products = register_operator(
    'csr_dot_products', csr_dot_products_reference, _fake_dot_products
)
