"""Multiply by a weight in CSR format in plain PyTorch, without checks."""

from typing import Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The references densify blocks of rows with at most this many elements (64 MB
# in single precision), which bounds their memory. A choice, no measurement.
BLOCK_SIZE = 1 << 24


def csr_linear(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
) -> Tensor:
    """Multiply rows by dense blocks of rows of a weight, and add a bias."""
    dtype = _product_dtype(x, values)
    out = [x.new_empty(x.size(0), 0, dtype=dtype)]
    with torch.autocast(x.device.type, enabled=False):
        for block in row_blocks(rowptr, col, x.size(1)):
            weight = dense_block(values, *block, x.size(1))
            out.append(F.linear(x.to(dtype), weight.to(dtype)))
        y = torch.cat(out, dim=1)
        return (y if bias is None else y + bias).to(x.dtype)


def csr_linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    needs_x: bool,
    needs_values: bool,
    needs_bias: bool,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`csr_linear`.

    A gradient that is not needed is empty.
    """
    grad_x = values.new_zeros(x.shape if needs_x else (0, 0))
    grad_values = [values.new_empty(0)]
    with torch.autocast(x.device.type, enabled=False):
        dtype = _product_dtype(x, values)
        x_out, grad_out = x.to(dtype), grad.to(dtype)
        for rows, items, index in row_blocks(rowptr, col, x.size(1)):
            if needs_x:
                block = (rows, items, index)
                weight = dense_block(values, *block, x.size(1))
                grad_x = grad_x + grad_out[:, rows] @ weight.to(dtype)
            if needs_values:
                dense = grad_out[:, rows].t() @ x_out
                dense = dense.flatten().gather(0, index)
                grad_values.append(dense.to(values.dtype))
    grad_bias = grad[:, : grad.size(1) * needs_bias]
    grad_bias = grad_bias.sum(0, dtype=values.dtype)
    return grad_x.to(x.dtype), torch.cat(grad_values), grad_bias


def _product_dtype(x: Tensor, values: Tensor) -> torch.dtype:
    """Return the dtype of products: accelerators multiply in half precision
    and sum in single precision, as those of :class:`torch.nn.Linear` do.
    """
    return values.dtype if x.is_cpu else x.dtype


def row_blocks(
    rowptr: Tensor, col: Tensor, in_channels: int
) -> Iterator[Tuple[slice, slice, Tensor]]:
    """Yield blocks of rows, the range of their elements, and the positions of
    the elements in the flat dense block.
    """
    num_rows = rowptr.numel() - 1
    step = max(BLOCK_SIZE // max(in_channels, 1), 1)
    for begin in range(0, num_rows, step):
        rows = slice(begin, min(begin + step, num_rows))
        items = slice(0, col.numel())
        if step < num_rows:  # A single block does not wait for the device.
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
    """Return the dense weight of a block of rows."""
    size = (rows.stop - rows.start, in_channels)
    out = values.new_zeros(size[0] * size[1])
    return out.scatter(0, index, values[items]).view(size)
