from typing import Any, Callable, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_geometric_ext.typing
from torch_geometric_ext.ops.register import register_operator

# The references work on blocks of so many dense elements:
BLOCK_SIZE = 1 << 24


def sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
) -> Tensor:
    r"""Applies a linear transformation whose weight matrix is sparse.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}.

    The weight comes in compressed rows (:obj:`rowptr`, :obj:`col`,
    :obj:`values`) and, for the gradients, in compressed columns
    (:obj:`colptr`, :obj:`row`, and :obj:`perm`, which tells the position of
    each element in :obj:`values`).
    :class:`~torch_geometric_ext.nn.SparseLinear` owns and checks them; here,
    only their sizes and types are.

    Takes :math:`O(N (\textrm{nnz} + I + O))` time and, beside inputs and
    outputs, :math:`O(\textrm{nnz} + I + O)` memory for each thread. Where a
    dense matrix product is faster, it is used instead, which takes
    :math:`O(I \cdot O)` memory for a moment. The result is deterministic for
    a given number of threads.

    Args:
        x (torch.Tensor): The input. Half precision is computed in single
            precision, and its output is rounded to half precision.
        values (torch.Tensor): The weights that exist, row by row, of the type
            of :obj:`x` (any but double under autocast).
        bias (torch.Tensor, optional): The bias, of the type of
            :obj:`values`.
        rowptr (torch.Tensor): The boundaries of the rows.
        col (torch.Tensor): The columns, ascending within each row.
        colptr (torch.Tensor): The boundaries of the columns.
        row (torch.Tensor): The rows, ascending within each column.
        perm (torch.Tensor): The positions in :obj:`values`, column by column.

    Shapes:
        - **input:** :obj:`x` :math:`(*, I)`, :obj:`values`, :obj:`col`,
          :obj:`row`, :obj:`perm` :math:`(\textrm{nnz})`, :obj:`bias`
          :math:`(O)`, :obj:`rowptr` :math:`(O + 1)`, :obj:`colptr`
          :math:`(I + 1)`, all indices of :obj:`torch.int32`
        - **output:** :math:`(*, O)`

    Raises:
        ValueError: If a shape, type or device is off.
    """
    num_features = colptr.numel() - 1
    if x.dim() == 0 or x.size(-1) != num_features:
        raise ValueError(
            f"sparse_linear: 'x' needs to hold {num_features} features, the "
            f"'in_channels' of its layer (got shape {list(x.shape)})"
        )
    if _casts(x) and values.dtype != torch.double:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    elif x.dtype != values.dtype:
        raise ValueError(
            f"sparse_linear: 'x' needs to be of the type of 'values', "
            f'{values.dtype} (got {x.dtype})'
        )
    if values.dtype in [torch.half, torch.bfloat16]:
        values, bias = values.float(), None if bias is None else bias.float()
    args = (values, bias, rowptr, col, colptr, row, perm)
    if x.dim() == 2:  # Views cost as much as a small product.
        return _sparse_linear(x, *args)
    rows = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)
    out = _sparse_linear(rows, *args)
    return out.view(*x.shape[:-1], out.size(-1))


def _casts(x: Tensor) -> bool:
    """Whether autocast changes the type of an input."""
    device = x.device.type
    return (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and x.is_floating_point()
        and x.dtype != torch.double
    )


def sparse_linear_crossover(
    num_rows: int, in_channels: int, out_channels: int
) -> float:
    """The density above which :func:`sparse_linear` computes its output by a
    dense product. Its backward pass decides by itself.

    Args:
        num_rows (int): The number of input samples.
        in_channels (int): Size of each input sample.
        out_channels (int): Size of each output sample.
    """
    if not torch_geometric_ext.typing.WITH_EXT:
        return 0.0
    op: Callable = torch.ops.torch_geometric_ext.sparse_linear_crossover
    return op(num_rows, in_channels, out_channels)


def row_blocks(
    rowptr: Tensor, col: Tensor, in_channels: int
) -> Iterator[Tuple[slice, slice, Tensor]]:
    """Yields blocks of rows, the range of their elements, and the positions
    of these elements in the flat, dense block.
    """
    num_rows = rowptr.numel() - 1
    step = max(BLOCK_SIZE // max(in_channels, 1), 1)
    for begin in range(0, num_rows, step):
        rows = slice(begin, min(begin + step, num_rows))
        items = slice(0, col.numel())
        if step < num_rows:  # Else, there is no need to wait for the device.
            items = slice(*rowptr[[rows.start, rows.stop]].tolist())
        row = torch.arange(rows.stop - rows.start, device=col.device)
        row = row.repeat_interleave(
            rowptr[rows.start : rows.stop + 1].diff(),
            output_size=items.stop - items.start,
        )
        yield rows, items, row * in_channels + col[items]


def dense_block(
    values: Tensor, rows: slice, items: slice, index: Tensor, in_channels: int
) -> Tensor:
    """The dense weight of a block of rows, differentiable in its values."""
    size = (rows.stop - rows.start, in_channels)
    out = values.new_zeros(size[0] * size[1])
    return out.scatter(0, index, values[items]).view(size)


def sparse_linear_reference(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
) -> Tensor:
    """The operator behind :func:`sparse_linear` in plain PyTorch, by dense
    products with blocks of rows.
    """
    out = [x.new_empty(x.size(0), 0, dtype=values.dtype)]
    with torch.autocast(x.device.type, enabled=False):
        for block in row_blocks(rowptr, col, x.size(1)):
            weight = dense_block(values, *block, x.size(1))
            out.append(F.linear(x.to(values.dtype), weight))
        y = torch.cat(out, dim=1)
        return (y if bias is None else y + bias).to(x.dtype)


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
) -> Tuple[Tensor, Tensor]:
    """Both gradients of :func:`sparse_linear` in plain PyTorch; one that is
    not needed is empty.
    """
    grad_x = values.new_zeros(x.shape if needs_x else (0, 0))
    grad_values = [values.new_empty(0)]
    with torch.autocast(x.device.type, enabled=False):
        x_out, grad_out = x.to(values.dtype), grad.to(values.dtype)
        for rows, items, index in row_blocks(rowptr, col, x.size(1)):
            if needs_x:
                block = (rows, items, index)
                weight = dense_block(values, *block, x.size(1))
                grad_x = grad_x + grad_out[:, rows] @ weight
            if needs_values:
                dense = grad_out[:, rows].t() @ x_out
                grad_values.append(dense.flatten().gather(0, index))
    return grad_x.to(x.dtype), torch.cat(grad_values)


class _SparseLinear(torch.autograd.Function):
    """Saves the sparse values, where autograd would save a dense weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, *args: Any) -> Tensor:
        ctx.save_for_backward(x, values, *args[1:])
        return sparse_linear_reference(x, values, *args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
        args = (*ctx.saved_tensors, needs_x, needs_values)
        grad_x, grad_values = sparse_linear_backward_reference(grad, *args)
        dtype = grad_values.dtype
        return (
            grad_x if needs_x else None,
            grad_values if needs_values else None,
            grad.to(dtype).sum(0) if needs_bias else None,
            *[None] * 5,
        )


def _fake(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    *args: Tensor,
) -> Tensor:
    return x.new_empty(x.size(0), rowptr.numel() - 1)


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, *args: Any
) -> Tuple[Tensor, Tensor]:
    needs_x, needs_values = args[-2:]
    grad_x = x.new_empty(x.shape if needs_x else (0, 0))
    return grad_x, values.new_empty(values.numel() if needs_values else 0)


_sparse_linear = register_operator(
    'sparse_linear', _SparseLinear.apply, _fake, cuda=sparse_linear_reference
)
register_operator(
    'sparse_linear_backward',
    sparse_linear_backward_reference,
    _fake_backward,
    autograd=sparse_linear_backward_reference,
)
