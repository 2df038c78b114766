from typing import Any, Optional, Tuple

import torch
from torch import Tensor

import torch_geometric_ext.typing
from torch_geometric_ext.ops.calibration import ensure_calibration
from torch_geometric_ext.ops.check import (
    check_integers,
    check_pattern,
    check_ptr,
    check_range,
)
from torch_geometric_ext.ops.csr_linear import dense_block, row_blocks
from torch_geometric_ext.ops.operands import casts, check_bias
from torch_geometric_ext.ops.ragged import row_index
from torch_geometric_ext.ops.register import (
    is_transformed,
    register_operator,
)


@torch.compiler.disable  # Compiled code supports no sparse tensors.
def csr_sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    check_invariants: bool = True,
) -> Tensor:
    r"""Apply a linear transformation with sparse weights to sparse features.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}

    The operator multiplies each nonzero feature by the active weights of that
    feature only: one multiply-add (MAC) for each such pair. Duplicate columns
    of :obj:`x` are summed, and columns may come in any order.

    Takes :math:`O(\textrm{MACs} + N O + I + \textrm{nnz})` time and, beside
    inputs and outputs, :math:`O(\textrm{nnz})` memory (for each thread in the
    backward pass). If few weights are inactive, the kernel scatters the weight
    to a dense matrix, which takes :math:`O(I \cdot O)` memory instead, and
    skips only the zeros of :obj:`x`. The operator is differentiable any number
    of times, except with respect to :obj:`x`. The result is deterministic for
    a given number of threads. :func:`torch.compile` runs the operator eagerly.

    Args:
        x (torch.Tensor): The features, of layout :obj:`torch.sparse_csr`.
        values (torch.Tensor): The weights, row by row, of the dtype of
            :obj:`x`. Autocast affects the output only.
        bias (torch.Tensor, optional): The bias, of the dtype of :obj:`x`.
        rowptr (torch.Tensor): The pattern of the weight, with the other four
            as in :func:`~torch_geometric_ext.ops.sparse_linear`.
        col (torch.Tensor): See :obj:`rowptr`.
        colptr (torch.Tensor): See :obj:`rowptr`.
        row (torch.Tensor): See :obj:`rowptr`.
        perm (torch.Tensor): See :obj:`rowptr`.
        check_invariants (bool, optional): If set to :obj:`False`, does not
            check the pattern, as in
            :func:`~torch_geometric_ext.ops.sparse_linear`. The features are
            checked in any case. (default: :obj:`True`)

    Shapes:
        - **input:** :obj:`x` :math:`(N, I)`, of :obj:`torch.float` or
          :obj:`torch.double` and with indices of :obj:`torch.int32` or
          :obj:`torch.int64`, :obj:`values` :math:`(\textrm{nnz})`,
          :obj:`bias` :math:`(O)`
        - **output:** :math:`(N, O)`, of the dtype of :obj:`x`, or of the
          autocast dtype

    Raises:
        ValueError: If :obj:`x` has another layout, shape or dtype, or a row
            pointer is invalid.
        IndexError: If an index is out of range (checked on CPU only).
        NotImplementedError: If :obj:`x` requires a gradient, or a transform
            of :mod:`torch.func` or forward-mode differentiation is active.
    """
    _check_x(x, values, colptr.numel() - 1)
    if torch_geometric_ext.typing.WITH_EXT and x.is_cpu:
        ensure_calibration(x, values.dtype)
    pattern = (rowptr, col, colptr, row, perm)
    out: Tensor = _Linear.apply(values, bias, x, check_invariants, *pattern)
    if casts(x):
        out = out.to(torch.get_autocast_dtype(x.device.type))
    return out


def _check_x(x: Tensor, values: Tensor, num_features: int) -> None:
    if x.layout != torch.sparse_csr:
        raise ValueError(
            f"csr_sparse_linear: 'x' needs to be a dense tensor or a matrix "
            f"in CSR format. Call 'x.to_sparse_csr()' once, before training "
            f'(got layout {x.layout})'
        )
    if x.dim() != 2 or x.size(1) != num_features:
        raise ValueError(
            f"csr_sparse_linear: 'x' needs to be a matrix of {num_features} "
            f"features, the 'in_channels' of its layer (got shape "
            f'{list(x.shape)})'
        )
    if x.dtype != values.dtype or x.dtype not in [torch.float, torch.double]:
        raise ValueError(
            f"csr_sparse_linear: 'x' and 'values' need to be both of "
            f'torch.float or both of torch.double (got {x.dtype} and '
            f'{values.dtype})'
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "csr_sparse_linear: 'x' in CSR format has no gradient. Pass "
            "'x.detach()', or 'x.to_dense()' if its gradient is needed"
        )
    if is_transformed():
        raise NotImplementedError(
            "csr_sparse_linear: 'torch.func' transforms and forward-mode "
            "differentiation do not support 'x' in CSR format. Pass "
            "'x.to_dense()', computed outside of the transform"
        )


class _Linear(torch.autograd.Function):
    """Multiply by the weight, whose gradient is linear in that of the
    output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        bias: Optional[Tensor],
        x: Tensor,
        check_invariants: bool,
        *pattern: Tensor,
    ) -> Tensor:
        ctx.x = x
        # Checkpoints need the saved tensors of `sparse_linear`, which may
        # recompute this product from dense features.
        ctx.save_for_backward(x, values, *pattern)
        args = (*_rows(x), values, bias, *pattern)
        return _linear(*args, check_invariants)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_values = grad_bias = None
        _, _, *pattern = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            grad_values = _Gradient.apply(grad, ctx.x, *pattern)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.sum(0)
        return grad_values, grad_bias, *[None] * 7


class _Gradient(torch.autograd.Function):
    """Compute the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, *pattern: Tensor) -> Tensor:
        ctx.x = x
        ctx.save_for_backward(*pattern)
        # The forward pass checked the pattern.
        return _backward(grad, *_rows(x), *pattern, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        out = _Linear.apply(grad, None, ctx.x, False, *ctx.saved_tensors)
        return out, *[None] * 6


def _rows(x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    return x.crow_indices(), x.col_indices(), x.values()


def csr_sparse_linear_reference(
    ptr: Tensor,
    index: Tensor,
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    check_invariants: bool = True,
) -> Tensor:
    """Run the forward pass of :func:`csr_sparse_linear` in plain PyTorch by
    products with dense blocks of the weight.
    """
    num_features = colptr.numel() - 1
    pattern = (rowptr, col, colptr, row, perm)
    num_weights = values.numel()
    check_pattern(
        'csr_sparse_linear',
        pattern,
        num_weights,
        num_features,
        check_invariants,
    )
    _check_rows(ptr, index, x, num_features)
    if values.dim() != 1 or values.dtype != x.dtype:
        raise ValueError(
            f"csr_sparse_linear: 'values' needs to be a vector of {x.dtype} "
            f'(got {values.dtype} of shape {list(values.shape)})'
        )
    check_bias('csr_sparse_linear', bias, values, rowptr.numel() - 1)
    size = (ptr.numel() - 1, num_features)
    out = [x.new_empty(size[0], 0)]
    with torch.autocast(x.device.type, enabled=False):
        rows = _csr(ptr, index, x, size)
        for block in row_blocks(rowptr, col, num_features):
            weight = dense_block(values, *block, num_features)
            out.append(rows @ weight.t())
    y = torch.cat(out, dim=1)
    return y if bias is None else y + bias


def csr_sparse_linear_backward_reference(
    grad: Tensor,
    ptr: Tensor,
    index: Tensor,
    x: Tensor,
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    check_invariants: bool = True,
) -> Tensor:
    """Compute the gradient of the weights of :func:`csr_sparse_linear` in
    plain PyTorch.
    """
    num_features = colptr.numel() - 1
    pattern = (rowptr, col, colptr, row, perm)
    check_pattern(
        'csr_sparse_linear_backward',
        pattern,
        col.numel(),
        num_features,
        check_invariants,
    )
    _check_rows(ptr, index, x, num_features)
    size = (ptr.numel() - 1, rowptr.numel() - 1)
    if grad.shape != size or grad.dtype != x.dtype:
        raise ValueError(
            f"csr_sparse_linear_backward: 'grad' needs to be of shape "
            f'{list(size)} and of {x.dtype} (got {list(grad.shape)} of '
            f'{grad.dtype})'
        )
    out = [x.new_empty(0)]
    with torch.autocast(x.device.type, enabled=False):
        cols = csr_transpose(ptr, index, x, num_features)
        for rows, _, position in row_blocks(rowptr, col, num_features):
            dense = (cols @ grad[:, rows]).t()
            out.append(dense.flatten().gather(0, position))
    return torch.cat(out)


def csr_transpose(
    ptr: Tensor, index: Tensor, x: Tensor, num_columns: int
) -> Tensor:
    r"""Return the transpose of a CSR matrix as a CSR matrix.

    Takes :math:`O(I + N + n \log n)` time for :math:`n` elements, and does
    not wait for the device.

    Args:
        ptr (torch.Tensor): The row pointers, of shape :math:`(N + 1)`.
        index (torch.Tensor): The column of each element.
        x (torch.Tensor): The elements.
        num_columns (int): The number :math:`I` of columns.
    """
    row = row_index(ptr, index.numel())
    column, perm = index.sort(stable=True)
    bounds = torch.arange(num_columns + 1, device=index.device)
    out_ptr = torch.searchsorted(column.long(), bounds)
    return _csr(out_ptr, row[perm], x[perm], (num_columns, ptr.numel() - 1))


def _csr(
    ptr: Tensor, index: Tensor, x: Tensor, size: Tuple[int, int]
) -> Tensor:
    # Products of PyTorch read strided tensors as if they were contiguous.
    rows = (ptr.contiguous(), index.contiguous(), x.contiguous())
    # Checks wait for the device, and PyTorch warns if they are not refused.
    return torch.sparse_csr_tensor(*rows, size, check_invariants=False)


def _check_rows(
    ptr: Tensor, index: Tensor, x: Tensor, num_features: int
) -> None:
    """Check the features, and their indices unless this waits for the
    device.
    """
    name = 'csr_sparse_linear'
    if x.dim() != 1 or x.dtype not in [torch.float, torch.double]:
        raise ValueError(
            f"{name}: 'x' needs to be a vector of float or double (got "
            f'{x.dtype} of shape {list(x.shape)})'
        )
    check_integers(name, 'ptr', ptr, (torch.int, torch.long))
    check_integers(name, 'index', index, (ptr.dtype,), x.numel())
    if ptr.is_cpu:
        check_ptr(name, 'ptr', ptr, index.numel())
        check_range(name, 'index', index, num_features)


def _fake(
    ptr: Tensor,
    index: Tensor,
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    *args: Any,
) -> Tensor:
    return x.new_empty(ptr.numel() - 1, rowptr.numel() - 1)


def _fake_backward(
    grad: Tensor,
    ptr: Tensor,
    index: Tensor,
    x: Tensor,
    rowptr: Tensor,
    col: Tensor,
    *args: Any,
) -> Tensor:
    return x.new_empty(col.numel())


_linear = register_operator(
    'csr_sparse_linear', csr_sparse_linear_reference, _fake
)
_backward = register_operator(
    'csr_sparse_linear_backward',
    csr_sparse_linear_backward_reference,
    _fake_backward,
)
