"""Multiply by single weights in Triton, without checks.

Threads of a warp read successive samples of the same feature. Features are
hence transposed first, such that these samples are adjacent in memory.
"""

from typing import Optional, Tuple

import triton
import triton.language as tl
from torch import Tensor

from torch_geometric_ext.ops.triton_launch import (
    MAX_GRID,
    ceil_div,
    launch,
    power_of_two,
    split_samples,
)

# The size of the tile of products of a program, and its largest numbers of
# samples and weights. A choice.
TILE_SIZE, MAX_SAMPLES, MAX_WEIGHTS = 1024, 64, 128


def sparse_linear(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
) -> Tensor:
    """Multiply samples by a weight in CSR format, and add a bias."""
    x = x.t().contiguous()
    out = _multiply(x, values, bias, rowptr, col, None)
    return out.t().contiguous()


def sparse_linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    col: Tensor,
    colptr: Tensor,
    row: Tensor,
    perm: Tensor,
    needs_x: bool,
    needs_values: bool,
) -> Tuple[Tensor, Tensor]:
    """Compute the gradients of the input and of the weights.

    A gradient that is not needed is empty.
    """
    grad_x, grad_values = x.new_empty(0, 0), values.new_empty(0)
    grad = grad.t().contiguous()
    if needs_x:
        out = _multiply(grad, values, None, colptr, row, perm)
        grad_x = out.t().contiguous().to(x.dtype)
    if needs_values:
        x = x.t().contiguous()
        grad_values = _multiply_pairs(grad, x, values, col, row, perm)
    return grad_x, grad_values


def _multiply(
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    ptr: Tensor,
    index: Tensor,
    perm: Optional[Tensor],
) -> Tensor:
    """Multiply a compressed weight by transposed samples."""
    num_rows, num_samples = ptr.numel() - 1, x.size(1)
    out = x.new_empty(num_rows, num_samples)
    weights, samples = _tile(num_samples)
    launch(
        _multiply_kernel,
        (num_rows, min(ceil_div(num_samples, samples), MAX_GRID)),
        x,
        values.contiguous(),
        bias if bias is None else bias.contiguous(),
        ptr,
        index,
        perm,
        out,
        num_samples,
        WEIGHTS=weights,
        SAMPLES=samples,
    )
    return out


def _multiply_pairs(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    col: Tensor,
    row: Tensor,
    perm: Tensor,
) -> Tensor:
    """Multiply the gradient of the output of each weight by its input, and sum
    over samples.
    """
    num_weights, num_samples = col.numel(), x.size(1)
    weights, samples = _tile(num_samples)
    num_programs = ceil_div(num_weights, weights)
    num_parts, part_size = split_samples(num_samples, num_programs)
    out = values.new_empty(num_parts, num_weights)
    launch(
        _multiply_pairs_kernel,
        (num_programs, num_parts),
        grad,
        x,
        col,
        row,
        perm,
        out,
        num_weights,
        num_samples,
        part_size,
        WEIGHTS=weights,
        SAMPLES=samples,
    )
    return out.sum(0) if num_parts > 1 else out.flatten()


def _tile(num_samples: int) -> Tuple[int, int]:
    """Return the number of weights and samples of a tile."""
    samples = min(power_of_two(num_samples), MAX_SAMPLES)
    return min(TILE_SIZE // samples, MAX_WEIGHTS), samples


@triton.jit
def _multiply_kernel(
    x,
    values,
    bias,
    ptr,
    index,
    perm,
    out,
    num_samples,
    WEIGHTS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """Sum the products of the weights of a row, in a fixed order.

    A program multiplies one row by some tiles of samples, hence long rows keep
    no other rows waiting.
    """
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(ptr + row).to(tl.int64)
    end = tl.load(ptr + row + 1).to(tl.int64)
    begin_tile = tl.program_id(1).to(tl.int64)
    num_tiles = tl.cdiv(num_samples, SAMPLES)
    for tile in range(begin_tile, num_tiles, tl.num_programs(1)):
        sample = tile * SAMPLES + tl.arange(0, SAMPLES)
        inside = sample < num_samples
        sums = tl.zeros((WEIGHTS, SAMPLES), values.dtype.element_ty)
        for start in range(begin, end, WEIGHTS):
            item = start + tl.arange(0, WEIGHTS)
            mask = item < end
            feature = tl.load(index + item, mask=mask, other=0).to(tl.int64)
            if perm is not None:
                item = tl.load(perm + item, mask=mask, other=0)
            weight = tl.load(values + item, mask=mask, other=0)
            data = tl.load(
                x + feature[:, None] * num_samples + sample[None, :],
                mask=mask[:, None] & inside[None, :],
                other=0,
            )
            sums += weight[:, None] * data.to(sums.dtype)
        total = tl.sum(sums, 0)
        if bias is not None:
            total += tl.load(bias + row)
        tl.store(
            out + row * num_samples + sample,
            total.to(out.dtype.element_ty),
            mask=inside,
        )


@triton.jit
def _multiply_pairs_kernel(
    grad,
    x,
    col,
    row,
    perm,
    out,
    num_weights,
    num_samples,
    part_size,
    WEIGHTS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """Sum the products of the two features of each weight over a part of the
    samples.

    A program computes successive weights in column-major order, many of which
    share a column, hence the cache holds its samples.
    """
    item = tl.program_id(0).to(tl.int64) * WEIGHTS + tl.arange(0, WEIGHTS)
    mask = item < num_weights
    target = tl.load(row + item, mask=mask, other=0).to(tl.int64)
    position = tl.load(perm + item, mask=mask, other=0)
    source = tl.load(col + position, mask=mask, other=0).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)
    begin = part * part_size
    end = tl.minimum(begin + part_size, num_samples)
    sums = tl.zeros((WEIGHTS, SAMPLES), out.dtype.element_ty)
    for start in range(begin, end, SAMPLES):
        sample = start + tl.arange(0, SAMPLES)
        both = mask[:, None] & (sample < end)[None, :]
        at = target[:, None] * num_samples + sample[None, :]
        a = tl.load(grad + at, mask=both, other=0).to(sums.dtype)
        at = source[:, None] * num_samples + sample[None, :]
        b = tl.load(x + at, mask=both, other=0).to(sums.dtype)
        sums += a * b
    tl.store(out + part * num_weights + position, tl.sum(sums, 1), mask=mask)
