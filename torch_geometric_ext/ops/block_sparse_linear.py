from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import wrap_torch_function

import torch_geometric_ext.typing
from torch_geometric_ext.ops.block_weights import (
    BLOCK_SIZES,
    count_columns,
    expand_blocks,
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
def block_sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    size: Tuple[int, int],
    block_size: int,
    check_invariants: bool = True,
) -> Tensor:
    r"""Compute :func:`~torch_geometric_ext.ops.sparse_linear` for active
    weights that form square blocks.

    The weight is a grid of :math:`R \times C` blocks, with
    :math:`R = \lceil O / B \rceil` and :math:`C = \lceil I / B \rceil`. The
    pattern holds the active blocks as the other operator holds the active
    weights. The values are the same, in row-major order. Blocks at the last
    rows and columns hold the weights that exist, and no padding.

    Takes :math:`O(N (\textrm{nnz} + I + O))` time and, beside inputs and
    outputs, :math:`O(\textrm{nnz})` memory, and :math:`O(I + O)` for each
    thread, or :math:`O(I \cdot O)` where a dense product is faster. On a GPU,
    products are dense until :func:`~torch_geometric_ext.ops.calibrate`
    measured it. Its kernels use tensor cores: half precision rounds the
    weights to the dtype of :obj:`x`, and single precision uses TensorFloat-32
    if :obj:`torch.backends.cuda.matmul` allows it, as
    :class:`torch.nn.Linear` does.

    Args:
        x (torch.Tensor): The input, of shape :math:`(*, I)`.
        values (torch.Tensor): The weights, of shape :math:`(\textrm{nnz})`.
        bias (torch.Tensor, optional): The bias, of shape :math:`(O)`.
        rowptr (torch.Tensor): The row pointers, of shape :math:`(R + 1)`.
        col (torch.Tensor): The column of each block.
        colptr (torch.Tensor): The column pointers, of shape :math:`(C + 1)`.
        row (torch.Tensor): The row of each block, column by column.
        perm (torch.Tensor): The position in :obj:`col` of each block, column
            by column.
        size (Tuple[int, int]): The numbers :math:`O` and :math:`I`.
        block_size (int): The size :math:`B` (:obj:`8`, :obj:`16`, :obj:`32`).
        check_invariants (bool, optional): As in the other operator.
            (default: :obj:`True`)

    Returns:
        The output, of shape :math:`(*, O)`.

    Raises:
        ValueError: If an argument has an invalid shape, dtype or device, if
            the pattern is invalid, or if :obj:`values` does not hold the
            weights of all blocks.
        IndexError: If a row or column of the pattern is out of range.
    """
    x, values, bias = cast_operands(
        'block_sparse_linear', x, values, bias, size[1]
    )
    pattern = (rowptr, col, colptr, row, perm)
    args = (values, bias, *pattern, size[0], block_size, check_invariants)
    return on_rows(_block_sparse_linear, x, *args)


def block_sparse_linear_crossover() -> float:
    """Return the density above which
    :func:`~torch_geometric_ext.ops.block_sparse_linear` computes a dense
    product on CPU.

    The reference always computes dense products, hence returns zero without
    kernels.
    """
    if not torch_geometric_ext.typing.WITH_EXT:
        return 0.0
    op: Callable = torch.ops.torch_geometric_ext.block_sparse_linear_crossover
    return op()


def block_sparse_linear_reference(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    out_channels: int,
    block_size: int,
    check_invariants: bool = True,
) -> Tensor:
    """Compute :func:`block_sparse_linear` in plain PyTorch by dense products
    with some rows of weights at a time.
    """
    pattern, size = (
        (rowptr, col, colptr, row, perm),
        (out_channels, block_size),
    )
    weight = _check(x, values, bias, pattern, *size, check_invariants)
    return multiply_dense(x, bias, weight)


def block_sparse_linear_backward_reference(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    block_size: int,
    needs_x: bool,
    needs_values: bool,
    needs_bias: bool,
    check_invariants: bool = True,
) -> Gradients:
    """Compute the gradients of :func:`block_sparse_linear` in plain PyTorch.

    A gradient that is not needed is empty.
    """
    pattern, args = (
        (rowptr, col, colptr, row, perm),
        (block_size, check_invariants),
    )
    weight = _check_backward(grad, x, values, pattern, *args)
    return backward_dense(grad, x, weight, (needs_x, needs_values, needs_bias))


def block_sparse_linear_gpu(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    out_channels: int,
    block_size: int,
    check_invariants: bool = True,
) -> Tensor:
    """Compute :func:`block_sparse_linear` by the product that is faster on a
    GPU, as calibrated, and in plain PyTorch elsewhere.
    """
    pattern, size = (
        (rowptr, col, colptr, row, perm),
        (out_channels, block_size),
    )
    weight = _check(x, values, bias, pattern, *size, check_invariants)
    return multiply(x, bias, weight)


def block_sparse_linear_backward_gpu(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    block_size: int,
    needs_x: bool,
    needs_values: bool,
    needs_bias: bool,
    check_invariants: bool = True,
) -> Gradients:
    """Compute the gradients of :func:`block_sparse_linear` as
    :func:`block_sparse_linear_gpu` does.
    """
    pattern, args = (
        (rowptr, col, colptr, row, perm),
        (block_size, check_invariants),
    )
    weight = _check_backward(grad, x, values, pattern, *args)
    return backward(grad, x, weight, (needs_x, needs_values, needs_bias))


def _check(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    pattern: Pattern,
    out_channels: int,
    block_size: int,
    check_invariants: bool,
    op: str = 'block_sparse_linear',
) -> Weight:
    if block_size not in BLOCK_SIZES:
        raise ValueError(
            f"{op}: 'block_size' needs to be 8, 16 or 32 (got {block_size})"
        )
    check_operands(op, x, values)
    rowptr, col = pattern[:2]
    num_cols = -(-x.size(1) // block_size)
    check_pattern(op, pattern, col.numel(), num_cols, check_invariants)
    if out_channels < 0 or rowptr.numel() - 1 != -(
        -out_channels // block_size
    ):
        raise ValueError(
            f"{op}: 'rowptr' needs a pointer for each {block_size} of the "
            f'{out_channels} outputs (got {rowptr.numel() - 1})'
        )
    size = (out_channels, x.size(1))
    if check_invariants:
        num_weights = int(count_columns(rowptr, col, size, block_size).sum())
        if values.numel() != num_weights:
            raise ValueError(
                f"{op}: 'values' needs {num_weights} elements, the weights "
                f'of {col.numel()} blocks (got {values.numel()})'
            )
    check_bias(op, bias, values, out_channels)
    return Weight(values, *pattern, size, block_size)


def _check_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    block_size: int,
    check_invariants: bool,
) -> Weight:
    op = 'block_sparse_linear_backward'
    if grad.dim() != 2 or x.dim() != 2 or grad.size(0) != x.size(0):
        raise ValueError(
            f"{op}: 'grad' needs to be a matrix with a row for each one of "
            f"'x' (got {list(grad.shape)} and {list(x.shape)})"
        )
    args = (grad.size(1), block_size, check_invariants, op)
    return _check(x, values, None, pattern, *args)


def block_sparse_linear_composite(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    out_channels: int,
    block_size: int,
    check_invariants: bool = True,
) -> Tensor:
    """Compute :func:`block_sparse_linear` by a dense product that all
    transforms of :mod:`torch.func` support. Autograd saves the dense weight.
    """
    size = (out_channels, x.size(-1))
    if check_invariants:
        pattern, num_cols = (
            (rowptr, col, colptr, row, perm),
            colptr.numel() - 1,
        )
        check_pattern(
            'block_sparse_linear', pattern, col.numel(), num_cols, True
        )
    weights = expand_blocks(rowptr, col, size, block_size, values.size(-1))
    weight = values.new_zeros(size[0] * size[1])
    index = weights.row * size[1] + weights.col
    weight = weight.scatter(0, index, values).view(size)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(values.dtype), weight, bias).to(x.dtype)


class _BlockSparseLinear(torch.autograd.Function):
    """Differentiable operator that saves sparse values for the backward pass.

    Autograd itself would save a dense weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, *args: Any) -> Tensor:
        ctx.save_for_backward(x, values, *args[1:6])
        ctx.block_size = args[7]
        return block_sparse_linear_gpu(x, values, *args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        needs = ctx.needs_input_grad[:3]
        # The forward pass checked the pattern.
        args = [*ctx.saved_tensors, ctx.block_size, *needs, False]
        if torch.is_grad_enabled():  # Of a second derivative.
            grads = block_sparse_linear_backward_reference(grad, *args)
        else:
            grads = block_sparse_linear_backward_gpu(grad, *args)
        out = [x if needed else None for x, needed in zip(grads, needs)]
        return (*out, *[None] * 8)


def _double_backward(
    grad: Tensor, x: Tensor, values: Tensor, *args: Any
) -> Gradients:
    # A check would stop tracing, and PyTorch checks indices itself.
    args = (*args[:9], False)
    return block_sparse_linear_backward_reference(grad, x, values, *args)


def _fake(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    out_channels: int,
    *args: Any,
) -> Tensor:
    return x.new_empty(x.size(0), out_channels)


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, *args: Any
) -> Gradients:
    needs_x, needs_values, needs_bias = args[6:9]
    return (
        x.new_empty(x.shape if needs_x else (0, 0)),
        values.new_empty(values.numel() if needs_values else 0),
        values.new_empty(grad.size(1) if needs_bias else 0),
    )


_block_sparse_linear = register_operator(
    'block_sparse_linear',
    _BlockSparseLinear.apply,
    _fake,
    cuda=block_sparse_linear_gpu,
    composite=block_sparse_linear_composite,
)
register_operator(
    'block_sparse_linear_backward',
    block_sparse_linear_backward_reference,
    _fake_backward,
    cuda=block_sparse_linear_backward_gpu,
    autograd=_double_backward,
)
