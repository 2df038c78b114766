from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import check_integers, check_ptr
from torch_geometric_ext.ops.ragged import row_index
from torch_geometric_ext.ops.register import register_operator
from torch_geometric_ext.ops.sparse_linear import dense_block, row_blocks


def csr_sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
) -> Tensor:
    r"""Apply a linear transformation with a sparse weight matrix to sparse
    features.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}

    The operator multiplies each nonzero feature by the active weights of that
    feature only. The format of the weight is that of
    :func:`~torch_geometric_ext.ops.sparse_linear`. Duplicate columns of
    :obj:`x` are summed, and columns may come in any order.

    Takes :math:`O(\textrm{MACs} + N O + I + \textrm{nnz})` time, where MACs
    is the number of pairs of a nonzero feature and an active weight of that
    feature, and, beside inputs and outputs, :math:`O(\textrm{nnz})` memory
    (for each thread in the backward pass). If the weight has few inactive
    elements, the kernel scatters it to a dense matrix, which takes
    :math:`O(I \cdot O)` memory, and skips only the zeros of :obj:`x`. The
    operator is differentiable any number of times, except with respect to
    :obj:`x`. The result is deterministic for a given number of threads.

    Args:
        x (torch.Tensor): The features, in CSR format
            (:obj:`torch.sparse_csr`).
        values (torch.Tensor): The weights, row by row. Under autocast, the
            operator computes in their dtype and rounds the output.
        bias (torch.Tensor, optional): The bias, of the dtype of
            :obj:`values`.
        rowptr (torch.Tensor): The row pointers.
        col (torch.Tensor): The column of each weight, ascending within each
            row.
        colptr (torch.Tensor): The column pointers.
        row (torch.Tensor): The row of each weight, column by column, ascending
            within each column.
        perm (torch.Tensor): The position of each weight in :obj:`values`,
            column by column.

    Shapes:
        - **input:** :obj:`x` :math:`(N, I)`, of :obj:`torch.float` or
          :obj:`torch.double` and with indices of :obj:`torch.int32` or
          :obj:`torch.int64`; :obj:`values`, :obj:`col`, :obj:`row`,
          :obj:`perm` :math:`(\textrm{nnz})`, :obj:`bias` :math:`(O)`,
          :obj:`rowptr` :math:`(O + 1)`, :obj:`colptr` :math:`(I + 1)`, all
          indices of the weight of :obj:`torch.int32`
        - **output:** :math:`(N, O)`, of the dtype of :obj:`values`, or of the
          autocast dtype

    Raises:
        ValueError: If :obj:`x` has another layout, number of dimensions or
            number of features, or another dtype than :obj:`values`, or if a
            row pointer is invalid.
        IndexError: If an index is out of range (checked on CPU only).
        NotImplementedError: If :obj:`x` requires a gradient.
    """
    _check_x(x, values, colptr.numel() - 1)
    args = (x.crow_indices(), x.col_indices(), x.values())
    pattern = (rowptr, col, colptr, row, perm)
    out: Tensor = _Linear.apply(values, bias, *args, *pattern)
    device = x.device.type
    if (
        values.dtype == torch.float
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        out = out.to(torch.get_autocast_dtype(device))
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


class _Linear(torch.autograd.Function):
    """Multiply by the weight, whose gradient is linear in that of the
    output.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, bias: Optional[Tensor], *args: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*args)
        ptr, index, x, *pattern = args
        return _linear(ptr, index, x, values, bias, *pattern)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_values = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_values = _Gradient.apply(grad, *ctx.saved_tensors)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.sum(0)
        return grad_values, grad_bias, *[None] * 8


class _Gradient(torch.autograd.Function):
    """Compute the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *args: Tensor) -> Tensor:
        ctx.save_for_backward(*args)
        return _backward(grad, *args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        return _Linear.apply(grad, None, *ctx.saved_tensors), *[None] * 8


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
) -> Tensor:
    """Run the forward pass of :func:`csr_sparse_linear` in plain PyTorch by
    products with dense blocks of the weight.
    """
    num_features = colptr.numel() - 1
    _check_rows(ptr, index, num_features)
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
) -> Tensor:
    """Compute the gradient of the weights of :func:`csr_sparse_linear` in
    plain PyTorch.
    """
    num_features = colptr.numel() - 1
    _check_rows(ptr, index, num_features)
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
    # Checks wait for the device, and PyTorch warns if they are not refused.
    return torch.sparse_csr_tensor(ptr, index, x, size, check_invariants=False)


def _check_rows(ptr: Tensor, index: Tensor, num_features: int) -> None:
    """Check the indices of features unless this waits for the device."""
    if ptr.device.type != 'cpu':
        return
    name, dtypes = 'csr_sparse_linear', (torch.int, torch.long)
    check_integers(name, 'ptr', ptr, dtypes)
    check_integers(name, 'index', index, dtypes)
    check_ptr(name, 'ptr', ptr, index.numel())
    if bool(((index < 0) | (index >= num_features)).any()):
        raise IndexError(f"{name}: 'index' needs to be in [0, {num_features})")


def _fake(
    ptr: Tensor,
    index: Tensor,
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    *args: Tensor,
) -> Tensor:
    return x.new_empty(ptr.numel() - 1, rowptr.numel() - 1)


def _fake_backward(
    grad: Tensor,
    ptr: Tensor,
    index: Tensor,
    x: Tensor,
    rowptr: Tensor,
    col: Tensor,
    *args: Tensor,
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
