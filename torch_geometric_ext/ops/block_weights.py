"""Locate the weights of blocks of a sparse matrix."""

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The sizes that the kernels have loops for: a row of a block fills one or two
# vector registers.
BLOCK_SIZES = [8, 16, 32]


class Weights(NamedTuple):
    """Weights of blocks in CSR format (int64), in row-major order.

    Attributes:
        rowptr (torch.Tensor): The row pointers, of shape :math:`(O + 1)`.
        row (torch.Tensor): The row of each weight.
        col (torch.Tensor): The column of each weight.
        block (torch.Tensor): The block of each weight.
    """

    rowptr: Tensor
    row: Tensor
    col: Tensor
    block: Tensor


def count_columns(
    rowptr: Tensor, col: Tensor, size: Tuple[int, int], block_size: int
) -> Tensor:
    """Return the number of weights of each row, of shape :math:`(O)`.

    See :func:`expand_blocks` for the arguments.
    """
    width = (size[1] - col.long() * block_size).clamp(max=block_size)
    degree = F.pad(width.cumsum(0), (1, 0))[rowptr.long()].diff()
    return degree.repeat_interleave(block_size)[: size[0]]


def expand_blocks(
    rowptr: Tensor,
    col: Tensor,
    size: Tuple[int, int],
    block_size: int,
    num_weights: Optional[int] = None,
) -> Weights:
    """Return the weights of blocks.

    Args:
        rowptr (torch.Tensor): The pointers of the rows of blocks.
        col (torch.Tensor): The column of each block.
        size (Tuple[int, int]): The number of rows and columns of the weight.
        block_size (int): The size of blocks.
        num_weights (int, optional): The number of weights. If set to
            :obj:`None`, the function waits for the device to count them.
            (default: :obj:`None`)
    """
    degree = count_columns(rowptr, col, size, block_size)
    ptr = F.pad(degree.cumsum(0), (1, 0))
    num_weights = int(ptr[-1]) if num_weights is None else num_weights
    row = torch.arange(size[0], device=col.device)
    row = row.repeat_interleave(degree, output_size=num_weights)
    # Only the last block of a row may be cut, so that offsets tell the block:
    offset = torch.arange(num_weights, device=col.device) - ptr[row]
    block = rowptr[row // block_size] + offset // block_size
    column = col[block].long() * block_size + offset % block_size
    return Weights(ptr, row, column, block)
