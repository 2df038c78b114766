"""Multiply by blocks of weights on tensor cores in Triton, without checks.

The weights of a row of blocks are adjacent in memory: a dense matrix that
multiplies some of the features.
"""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from torch_geometric_ext.ops.triton_launch import (
    MAX_GRID,
    allows_tf32,
    ceil_div,
    launch,
    power_of_two,
    split_samples,
)

# The sizes of tiles: samples, and features that are multiplied at once. Tensor
# cores multiply matrices of at least 16 rows and columns. A choice.
MIN_SIZE, MAX_SAMPLES, FEATURES = 16, 64, 32


def block_sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    out_channels: int,
    block_size: int,
) -> Tensor:
    """Multiply samples by rows of blocks, and add a bias."""
    num_samples, in_channels = x.shape
    out = x.new_empty(num_samples, out_channels)
    meta = _constants(num_samples, in_channels, block_size)
    launch(
        _forward_kernel,
        (rowptr.numel() - 1, _num_tiles(num_samples, meta)),
        x.contiguous(),
        values.contiguous(),
        bias if bias is None else bias.contiguous(),
        rowptr,
        col,
        _row_starts(rowptr, col, in_channels, block_size),
        out,
        num_samples,
        in_channels,
        out_channels,
        **meta,
    )
    return out


def block_sparse_linear_backward(
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
) -> Tuple[Tensor, Tensor]:
    """Compute the gradients of the input and of the weights.

    A gradient that is not needed is empty.
    """
    grad_x, grad_values = x.new_empty(0, 0), values.new_empty(0)
    # Tensor cores multiply matrices of one dtype.
    dtype = x.dtype if grad.dtype == x.dtype else values.dtype
    grad = grad.to(dtype).contiguous()
    starts = _row_starts(rowptr, col, x.size(1), block_size)
    if needs_x:
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        columns = (rowptr, colptr, row, perm)
        _backward_x(grad, values, columns, starts, grad_x, block_size)
    if needs_values:
        args = (grad, x.to(dtype).contiguous(), values, rowptr, col)
        grad_values = _backward_values(*args, starts, block_size)
    return grad_x, grad_values


def _backward_x(
    grad: Tensor,
    values: Tensor,
    columns: Tuple[Tensor, Tensor, Tensor, Tensor],
    starts: Tensor,
    out: Tensor,
    block_size: int,
) -> None:
    """Multiply gradients by the transposed weight.

    The columns hold :obj:`rowptr`, :obj:`colptr`, :obj:`row` and
    :obj:`perm`.
    """
    num_samples, in_channels = out.shape
    meta = _constants(num_samples, in_channels, block_size)
    launch(
        _backward_x_kernel,
        (columns[1].numel() - 1, _num_tiles(num_samples, meta)),
        grad,
        values.contiguous(),
        *columns,
        starts,
        out,
        num_samples,
        in_channels,
        grad.size(1),
        **meta,
    )


def _backward_values(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rowptr: Tensor,
    col: Tensor,
    starts: Tensor,
    block_size: int,
) -> Tensor:
    """Multiply the features and the gradients of all blocks."""
    (num_samples, in_channels), num_weights = x.shape, values.numel()
    meta = _constants(num_samples, in_channels, block_size)
    meta['SAMPLES'] = min(meta['SAMPLES'], FEATURES)  # Saves registers.
    num_programs = ceil_div(num_weights, FEATURES * block_size)
    num_parts, part_size = split_samples(num_samples, num_programs)
    out = values.new_empty(num_parts, num_weights)
    num_chunks = min(ceil_div(in_channels, FEATURES), MAX_GRID)
    launch(
        _backward_values_kernel,
        (rowptr.numel() - 1, num_chunks, num_parts),
        grad,
        x,
        rowptr,
        col,
        starts,
        out,
        num_weights,
        num_samples,
        in_channels,
        grad.size(1),
        part_size,
        **meta,
    )
    return out.sum(0) if num_parts > 1 else out.flatten()


def _row_starts(
    rowptr: Tensor, col: Tensor, in_channels: int, block_size: int
) -> Tensor:
    """Return the number of weights before each row of blocks, in one row of
    weights of each, as multiples of the constant :obj:`SCALE`.
    """
    if in_channels % block_size == 0:
        return rowptr  # Without cut blocks.
    width = (in_channels - col.long() * block_size).clamp(max=block_size)
    return F.pad(width.cumsum(0), (1, 0)).index_select(0, rowptr)


def _constants(
    num_samples: int, in_channels: int, block_size: int
) -> Dict[str, Any]:
    samples = min(max(power_of_two(num_samples), MIN_SIZE), MAX_SAMPLES)
    return dict(
        SCALE=block_size if in_channels % block_size == 0 else 1,
        BLOCK=block_size,
        WIDTH=max(block_size, MIN_SIZE),
        SAMPLES=samples,
        FEATURES=FEATURES,
        PRECISION='tf32' if allows_tf32() else 'ieee',
    )


def _num_tiles(num_samples: int, meta: Dict[str, Any]) -> int:
    return min(ceil_div(num_samples, meta['SAMPLES']), MAX_GRID)


@triton.jit
def _expand(block, k, BLOCK: tl.constexpr):
    """Return the feature of element :obj:`k`, and tell the compiler that those
    of a block are adjacent, such that it loads them together.
    """
    feature = block.to(tl.int64) * BLOCK + k % BLOCK
    return tl.max_contiguous(tl.multiple_of(feature, BLOCK), BLOCK)


@triton.jit
def _load(matrix, row, num_columns, column, in_row, in_column):
    """Load rows and columns of a matrix, and zeros outside of masks."""
    mask = in_row[:, None] & in_column[None, :]
    at = row[:, None] * num_columns + column[None, :]
    return tl.load(matrix + at, mask=mask, other=0)


@triton.jit
def _add_product(sums, a, b, PRECISION: tl.constexpr):
    """Add a product of matrices, which is computed in the dtype of the
    first.
    """
    return tl.dot(
        a,
        b.to(a.dtype),
        sums,
        input_precision=PRECISION,
        out_dtype=sums.dtype,
    )


@triton.jit
def _forward_kernel(
    x,
    values,
    bias,
    rowptr,
    col,
    start,
    out,
    num_samples,
    in_channels,
    out_channels,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply tiles of samples by the weights of a row of blocks."""
    block_row = tl.program_id(0).to(tl.int64)
    first = tl.load(rowptr + block_row).to(tl.int64)
    offset = tl.load(start + block_row).to(tl.int64) * SCALE
    width = tl.load(start + block_row + 1).to(tl.int64) * SCALE - offset
    i = tl.arange(0, WIDTH)
    channel = block_row * BLOCK + i
    in_row = (i < BLOCK) & (channel < out_channels)
    begin_tile = tl.program_id(1).to(tl.int64)
    num_tiles = tl.cdiv(num_samples, SAMPLES)
    for tile in range(begin_tile, num_tiles, tl.num_programs(1)):
        sample = tile * SAMPLES + tl.arange(0, SAMPLES)
        inside = sample < num_samples
        sums = tl.zeros((SAMPLES, WIDTH), values.dtype.element_ty)
        for begin in range(0, width, FEATURES):
            k = begin + tl.arange(0, FEATURES)
            mask = k < width
            block = tl.load(col + first + k // BLOCK, mask=mask, other=0)
            feature = _expand(block, k, BLOCK)
            data = _load(x, sample, in_channels, feature, inside, mask)
            weight = values + BLOCK * offset
            weight = _load(weight, i, width, k, in_row, mask)
            sums = _add_product(sums, data, tl.trans(weight), PRECISION)
        if bias is not None:
            sums += tl.load(bias + channel, mask=in_row, other=0)[None, :]
        tl.store(
            out + sample[:, None] * out_channels + channel[None, :],
            sums.to(out.dtype.element_ty),
            mask=inside[:, None] & in_row[None, :],
        )


@triton.jit
def _backward_x_kernel(
    grad,
    values,
    rowptr,
    colptr,
    row,
    perm,
    start,
    out,
    num_samples,
    in_channels,
    out_channels,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply tiles of gradients by the weights of a column of blocks."""
    block_col = tl.program_id(0).to(tl.int64)
    first = tl.load(colptr + block_col).to(tl.int64) * BLOCK
    last = tl.load(colptr + block_col + 1).to(tl.int64) * BLOCK
    j = tl.arange(0, WIDTH)
    feature = block_col * BLOCK + j
    in_column = (j < BLOCK) & (feature < in_channels)
    begin_tile = tl.program_id(1).to(tl.int64)
    num_tiles = tl.cdiv(num_samples, SAMPLES)
    for tile in range(begin_tile, num_tiles, tl.num_programs(1)):
        sample = tile * SAMPLES + tl.arange(0, SAMPLES)
        inside = sample < num_samples
        sums = tl.zeros((SAMPLES, WIDTH), values.dtype.element_ty)
        for begin in range(first, last, FEATURES):
            k = begin + tl.arange(0, FEATURES)
            block_row = tl.load(row + k // BLOCK, mask=k < last, other=0)
            block = tl.load(perm + k // BLOCK, mask=k < last, other=0)
            channel = _expand(block_row, k, BLOCK)
            mask = (k < last) & (channel < out_channels)
            data = _load(grad, sample, out_channels, channel, inside, mask)
            block -= tl.load(rowptr + block_row)
            offset = tl.load(start + block_row).to(tl.int64) * SCALE
            end = tl.load(start + block_row + 1).to(tl.int64) * SCALE
            at = BLOCK * (offset + block) + k % BLOCK * (end - offset)
            weight = _load(values, at, 1, j, mask, in_column)
            sums = _add_product(sums, data, weight, PRECISION)
        tl.store(
            out + sample[:, None] * in_channels + feature[None, :],
            sums.to(out.dtype.element_ty),
            mask=inside[:, None] & in_column[None, :],
        )


@triton.jit
def _backward_values_kernel(
    grad,
    x,
    rowptr,
    col,
    start,
    out,
    num_weights,
    num_samples,
    in_channels,
    out_channels,
    part_size,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply the features of a row of blocks by its gradients, and sum over
    a part of the samples.
    """
    block_row = tl.program_id(0).to(tl.int64)
    first_block = tl.load(rowptr + block_row).to(tl.int64)
    offset = tl.load(start + block_row).to(tl.int64) * SCALE
    width = tl.load(start + block_row + 1).to(tl.int64) * SCALE - offset
    i = tl.arange(0, WIDTH)
    channel = block_row * BLOCK + i
    in_row = (i < BLOCK) & (channel < out_channels)
    part = tl.program_id(2).to(tl.int64)
    first = part * part_size
    last = tl.minimum(first + part_size, num_samples)
    begin_chunk = tl.program_id(1).to(tl.int64)
    num_chunks = tl.cdiv(width, FEATURES)
    for chunk in range(begin_chunk, num_chunks, tl.num_programs(1)):
        k = chunk * FEATURES + tl.arange(0, FEATURES)
        mask = k < width
        block = tl.load(col + first_block + k // BLOCK, mask=mask, other=0)
        feature = _expand(block, k, BLOCK)
        sums = tl.zeros((WIDTH, FEATURES), out.dtype.element_ty)
        for begin in range(first, last, SAMPLES):
            sample = begin + tl.arange(0, SAMPLES)
            inside = sample < last
            data = _load(x, sample, in_channels, feature, inside, mask)
            other = _load(grad, sample, out_channels, channel, inside, in_row)
            sums = _add_product(sums, tl.trans(other), data, PRECISION)
        at = part * num_weights + BLOCK * offset
        tl.store(
            out + at + i[:, None] * width + k[None, :],
            sums,
            mask=in_row[:, None] & mask[None, :],
        )
