"""Ragged rows in compressed form: row `i` of `values` is
`values[ptr[i]:ptr[i + 1]]`.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor


def row_index(ptr: Tensor, num_values: Optional[int] = None) -> Tensor:
    """Return the row of each value.

    On CUDA, the function waits for the device unless :obj:`num_values` is
    given.
    """
    rows = torch.arange(ptr.numel() - 1, device=ptr.device)
    return rows.repeat_interleave(ptr.diff(), output_size=num_values)


def row_ptr(size: Tensor) -> Tensor:
    """Return the row pointers for rows of the given sizes."""
    ptr = size.new_zeros(size.numel() + 1, dtype=torch.long)
    torch.cumsum(size, dim=0, out=ptr[1:])
    return ptr


def take_rows(ptr: Tensor, index: Tensor) -> Tuple[Tensor, Tensor]:
    """Select rows. Return their row pointers and the positions of their
    values.
    """
    start = ptr[index]
    out_ptr = row_ptr(ptr[index + 1] - start)
    shift = (start - out_ptr[:-1]).repeat_interleave(out_ptr.diff())
    position = torch.arange(shift.numel(), device=ptr.device)
    return out_ptr, position.add_(shift)


def first_occurrence(inverse: Tensor, num_values: int) -> Tensor:
    """Return the first position of each id in :obj:`inverse`."""
    position = torch.arange(inverse.numel(), device=inverse.device)
    out = inverse.new_empty(num_values)
    return out.scatter_reduce_(
        0, inverse, position, 'amin', include_self=False
    )
