import math
from typing import Optional

import torch
from torch import Tensor

from torch_geometric_ext.ops.register import register_operator


def top_positions(
    score: Tensor, size: int, bound: Optional[float] = None
) -> Tensor:
    r"""Return the positions of the :obj:`size` largest scores, the first ones
    among equals.

    Takes :math:`O(N)` time on all threads of :obj:`torch`: a radix selection
    finds the smallest selected score. With a bound, only scores above it take
    memory. The result does not depend on the number of threads, the device or
    the rank.

    Args:
        score (torch.Tensor): The scores. NaN counts as infinity, and
            :obj:`-0.0` is equal to :obj:`0.0`.
        size (int): The largest number :math:`k` of scores to select.
        bound (float, optional): Select scores above this bound only, which is
            rounded to the dtype of :obj:`score`. (default: :obj:`None`)

    Shapes:
        - **input:** :obj:`score` :math:`(N)`, floating point
        - **output:** positions :math:`(k^{\prime})`, :obj:`torch.int64`,
          ascending, where :math:`k^{\prime}` is the smaller one of :math:`k`
          and the number of scores above the bound

    Raises:
        ValueError: If :obj:`score` is not one-dimensional or not floating
            point, :obj:`size` is negative, or :obj:`bound` is NaN.

    .. code-block:: python

        >>> score = torch.tensor([1.0, 3.0, 2.0, 3.0, 3.0])
        >>> top_positions(score, size=2)
        tensor([1, 3])
        >>> top_positions(score, size=4, bound=2.0)
        tensor([1, 3, 4])
    """
    if score.dtype in (torch.half, torch.bfloat16):
        score = score.float()
    return _top_positions(score, size, bound)


def top_positions_reference(
    score: Tensor, size: int, bound: Optional[float] = None
) -> Tensor:
    """Compute :func:`top_positions` in plain PyTorch."""
    _check(score, size, bound)
    score = score.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    if bound is not None:
        index = (score > bound).nonzero().flatten()
        return index[top_positions_reference(score[index], size)]
    if size >= score.numel():
        return torch.arange(score.numel(), device=score.device)
    if size == 0:
        return score.new_empty(0, dtype=torch.long)
    lowest = score.topk(size, sorted=False).values.min()
    mask, equal = score > lowest, score == lowest
    missing = size - mask.sum()
    mask |= equal & (equal.cumsum(0) <= missing)
    return mask.nonzero().flatten()


def _check(score: Tensor, size: int, bound: Optional[float]) -> None:
    if score.dim() != 1 or score.dtype not in (torch.float, torch.double):
        raise ValueError(
            f"top_positions: 'score' needs to be a one-dimensional float32 or "
            f'float64 tensor (got {score.dtype} of shape {list(score.shape)})'
        )
    if size < 0:
        raise ValueError(
            f"top_positions: 'size' needs to be non-negative (got {size})"
        )
    if bound is not None and math.isnan(bound):
        raise ValueError(
            "top_positions: 'bound' needs to be a number (got nan)"
        )


def _fake(score: Tensor, size: int, bound: Optional[float] = None) -> Tensor:
    num_selected = torch.library.get_ctx().new_dynamic_size()
    return score.new_empty(num_selected, dtype=torch.long)


_top_positions = register_operator(
    'top_positions', top_positions_reference, _fake
)
