"""Checks of arguments for the reference operators.

`csrc/check.h` checks the same conditions in the kernels.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

DTYPE_NAMES = {torch.long: 'int64', torch.int: 'int32'}


def check_integers(
    op: str,
    name: str,
    x: Tensor,
    dtypes: Tuple[torch.dtype, ...] = (torch.long,),
    size: Optional[int] = None,
) -> None:
    """Check the dtype, the number of dimensions and the size of a tensor."""
    if x.dim() != 1 or x.dtype not in dtypes:
        dtype = ' or '.join(DTYPE_NAMES[dtype] for dtype in dtypes)
        raise ValueError(
            f"{op}: '{name}' needs to be a one-dimensional {dtype} tensor "
            f'(got {x.dtype} of shape {list(x.shape)})'
        )
    if size is not None and x.numel() != size:
        raise ValueError(
            f"{op}: '{name}' needs {size} elements (got {x.numel()})"
        )


def check_ptr(op: str, name: str, ptr: Tensor, size: int) -> None:
    """Check that row pointers ascend from zero to :obj:`size`."""
    if (
        ptr.numel() == 0
        or int(ptr[0]) != 0
        or int(ptr[-1]) != size
        or bool((ptr.diff() < 0).any())
    ):
        raise ValueError(f"{op}: '{name}' needs to ascend from 0 to {size}")
