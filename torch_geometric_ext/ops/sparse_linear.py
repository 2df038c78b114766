from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import wrap_torch_function

import torch_geometric_ext.typing
from torch_geometric_ext.ops.calibration import (
    ensure_calibration,
    load_calibration,
)
from torch_geometric_ext.ops.check import check_pattern
from torch_geometric_ext.ops.gpu_linear import (
    Gradients,
    Pattern,
    Weight,
    backward,
    backward_dense,
    multiply,
    multiply_dense,
)
from torch_geometric_ext.ops.operands import (
    cast_operands,
    check_bias,
    check_operands,
    on_rows,
)
from torch_geometric_ext.ops.register import register_operator


def _overridden_by(x: Tensor, *args: Any, **kwargs: Any) -> Tuple[Tensor]:
    return (x,)


@wrap_torch_function(_overridden_by)  # Modes can see a layer, not kernels.
def sparse_linear(
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
    r"""Apply a linear transformation with a sparse weight matrix.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}

    The weight comes in CSR format (:obj:`rowptr`, :obj:`col`, :obj:`values`)
    and, for the gradients, in CSC format (:obj:`colptr`, :obj:`row`, and the
    position :obj:`perm` of each element in :obj:`values`).

    Takes :math:`O(N (\textrm{nnz} + I + O))` time and, beside inputs and
    outputs, :math:`O(\textrm{nnz} + I + O)` memory for each thread, or
    :math:`O(N (I + O))` memory on a GPU. Where a dense matrix product is
    expected to be faster on this machine (see
    :func:`~torch_geometric_ext.ops.calibrate`), the kernel uses it instead and
    takes :math:`O(I \cdot O)` memory. On a GPU, products are dense until it is
    calibrated, and where Triton is not installed. The same holds under
    transforms of :mod:`torch.func` and forward-mode differentiation, which
    always use a dense product. The result is deterministic for a given number
    of threads. An inactive weight times a value that is not finite is zero or
    NaN, depending on the product.

    Args:
        x (torch.Tensor): The input. Products of half precision are summed in
            single precision and rounded once. Dense products round the weight
            to bfloat16, too, as :class:`torch.nn.Linear` does.
        values (torch.Tensor): The weights, row by row, of the dtype of
            :obj:`x` (any dtype but :obj:`torch.double` under autocast).
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
        check_invariants (bool, optional): If set to :obj:`False`, only checks
            the shapes and dtypes of the pattern and the ends of row pointers.
            Other errors in it are undefined behavior.
            :class:`~torch_geometric_ext.nn.SparseLinear` checks its pattern
            once, when it is set. The check takes :math:`O(\textrm{nnz})` time
            and waits for the device. (default: :obj:`True`)

    Shapes:
        - **input:** :obj:`x` :math:`(*, I)`, :obj:`values`, :obj:`col`,
          :obj:`row`, :obj:`perm` :math:`(\textrm{nnz})`, :obj:`bias`
          :math:`(O)`, :obj:`rowptr` :math:`(O + 1)`, :obj:`colptr`
          :math:`(I + 1)`, all indices of :obj:`torch.int32`
        - **output:** :math:`(*, O)`, of the dtype of :obj:`x`, or of the
          autocast dtype

    Raises:
        ValueError: If :obj:`x` has another number of features than the weight
            or another dtype than :obj:`values`, if another shape, dtype or
            device is invalid, or if the pattern is.
        IndexError: If a row or column of the pattern is out of range.
    """
    x, values, bias = cast_operands(
        'sparse_linear', x, values, bias, colptr.numel() - 1
    )
    if torch_geometric_ext.typing.WITH_EXT and x.is_cpu:
        is_native = x.dtype == torch.bfloat16
        ensure_calibration(x, x.dtype if is_native else values.dtype)
    args = (values, bias, rowptr, col, colptr, row, perm, check_invariants)
    return on_rows(_sparse_linear, x, *args)


def sparse_linear_crossover(
    num_rows: int, in_channels: int, out_channels: int
) -> float:
    """Return the density above which :func:`sparse_linear` computes its output
    by a dense product on CPU, in single precision and with the current number
    of threads.

    Never measures: without a calibration of this machine (see
    :func:`~torch_geometric_ext.ops.calibrate`), returns a low density. The
    backward pass has thresholds of its own. The reference always
    computes dense products, hence returns zero without kernels.

    Args:
        num_rows (int): The number of input samples.
        in_channels (int): Size of each input sample.
        out_channels (int): Size of each output sample.
    """
    if not torch_geometric_ext.typing.WITH_EXT:
        return 0.0
    load_calibration(torch.float)
    op: Callable = torch.ops.torch_geometric_ext.sparse_linear_crossover
    return op(num_rows, in_channels, out_channels)


def sparse_linear_reference(
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
    """Compute :func:`sparse_linear` in plain PyTorch by dense products with
    blocks of rows.
    """
    pattern = (rowptr, col, colptr, row, perm)
    weight = _check(x, values, bias, pattern, check_invariants)
    return multiply_dense(x, bias, weight)


def sparse_linear_backward_reference(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    needs_x: bool,
    needs_values: bool,
    needs_bias: bool,
    check_invariants: bool = True,
) -> Gradients:
    """Compute the gradients of :func:`sparse_linear` in plain PyTorch.

    A gradient that is not needed is empty.
    """
    pattern = (rowptr, col, colptr, row, perm)
    weight = _check_backward(grad, x, values, pattern, check_invariants)
    return backward_dense(grad, x, weight, (needs_x, needs_values, needs_bias))


def sparse_linear_gpu(
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
    """Compute :func:`sparse_linear` by the product that is faster on a GPU, as
    calibrated, and in plain PyTorch elsewhere.
    """
    pattern = (rowptr, col, colptr, row, perm)
    weight = _check(x, values, bias, pattern, check_invariants)
    return multiply(x, bias, weight)


def sparse_linear_backward_gpu(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    needs_x: bool,
    needs_values: bool,
    needs_bias: bool,
    check_invariants: bool = True,
) -> Gradients:
    """Compute the gradients of :func:`sparse_linear` as
    :func:`sparse_linear_gpu` does.
    """
    pattern = (rowptr, col, colptr, row, perm)
    weight = _check_backward(grad, x, values, pattern, check_invariants)
    return backward(grad, x, weight, (needs_x, needs_values, needs_bias))


def _check(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    pattern: Pattern,
    check_invariants: bool,
    op: str = 'sparse_linear',
) -> Weight:
    check_operands(op, x, values)
    check_pattern(op, pattern, values.numel(), x.size(1), check_invariants)
    size = (pattern[0].numel() - 1, x.size(1))
    check_bias(op, bias, values, size[0])
    return Weight(values, *pattern, size)


def _check_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    check_invariants: bool,
) -> Weight:
    op = 'sparse_linear_backward'
    weight = _check(x, values, None, pattern, check_invariants, op)
    if grad.shape != (x.size(0), weight.size[0]):
        raise ValueError(
            f"{op}: 'grad' needs to be of shape "
            f'{[x.size(0), weight.size[0]]} (got {list(grad.shape)})'
        )
    return weight


def sparse_linear_composite(
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
    """Compute :func:`sparse_linear` by a dense product that all transforms of
    :mod:`torch.func` support. Autograd saves the dense weight.
    """
    size = (rowptr.numel() - 1, colptr.numel() - 1)
    if check_invariants:
        pattern = (rowptr, col, colptr, row, perm)
        check_pattern('sparse_linear', pattern, col.numel(), size[1], True)
    index = row.long() * size[1] + col[perm]
    weight = values.new_zeros(size[0] * size[1])
    weight = weight.scatter(0, index, values[perm]).view(size)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(values.dtype), weight, bias).to(x.dtype)


class _SparseLinear(torch.autograd.Function):
    """Differentiable operator that saves sparse values for the backward pass.

    Autograd itself would save a dense weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, *args: Any) -> Tensor:
        ctx.save_for_backward(x, values, *args[1:-1])
        return sparse_linear_gpu(x, values, *args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        needs = ctx.needs_input_grad[:3]
        # The forward pass checked the pattern.
        args = (*ctx.saved_tensors, *needs, False)
        if torch.is_grad_enabled():  # Of a second derivative.
            grads = sparse_linear_backward_reference(grad, *args)
        else:
            grads = sparse_linear_backward_gpu(grad, *args)
        out = [x if needed else None for x, needed in zip(grads, needs)]
        return (*out, *[None] * 6)


def _double_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    needs_x: bool,
    needs_values: bool,
    needs_bias: bool,
    check_invariants: bool = True,
) -> Gradients:
    # A check would stop tracing, and PyTorch checks indices itself.
    pattern = (rowptr, col, colptr, row, perm)
    return sparse_linear_backward_reference(
        grad, x, values, *pattern, needs_x, needs_values, needs_bias, False
    )


def _fake(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    *args: Any,
) -> Tensor:
    return x.new_empty(x.size(0), rowptr.numel() - 1)


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, *args: Any
) -> Gradients:
    needs_x, needs_values, needs_bias, _ = args[-4:]
    return (
        x.new_empty(x.shape if needs_x else (0, 0)),
        values.new_empty(values.numel() if needs_values else 0),
        values.new_empty(grad.size(1) if needs_bias else 0),
    )


_sparse_linear = register_operator(
    'sparse_linear',
    _SparseLinear.apply,
    _fake,
    cuda=sparse_linear_gpu,
    composite=sparse_linear_composite,
)
register_operator(
    'sparse_linear_backward',
    sparse_linear_backward_reference,
    _fake_backward,
    cuda=sparse_linear_backward_gpu,
    autograd=_double_backward,
)
