"""Select the largest scores, with equal results on all devices and ranks.

Among equal scores, the first ones are selected. NaN counts as infinity.
"""

import math
from typing import List

import torch
from torch import Tensor

from torch_geometric_ext.ops.top_positions import top_positions


def top_mask(score: Tensor, size: int) -> Tensor:
    """Return a mask of the :obj:`size` largest scores, the first among equals.

    Args:
        score (torch.Tensor): Vector of scores.
        size (int): Number of scores to select.
    """
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[top_positions(score, size)] = True
    return mask


class RunningTop:
    """Select the :obj:`size` largest of scores that arrive block by block.

    Takes memory in proportion to :obj:`size`, and to the size of a block
    until there are :obj:`size` scores.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._num_candidates = 0
        self._limit = size - 1  # Compact above it.
        self._bound = -1.0
        self._scores: List[Tensor] = []
        self._index: List[Tensor] = []

    def update(self, score: Tensor, begin: int) -> None:
        """Add a block of scores. Blocks need to arrive in ascending order.

        Args:
            score (torch.Tensor): Vector of non-negative scores. A score of
                :obj:`-1` masks its position.
            begin (int): The position of the first score.
        """
        index = top_positions(score, self.size, self._bound)
        self._scores.append(score.index_select(0, index))
        self._index.append(index + begin)
        self._num_candidates += index.numel()
        if self._num_candidates > self._limit:
            self._compact()

    def index(self) -> Tensor:
        """Return the ascending positions of the largest scores."""
        self._compact()
        return self._index[0]

    def _compact(self) -> None:
        score, index = torch.cat(self._scores), torch.cat(self._index)
        if score.numel() > self.size:
            top = top_positions(score, self.size)
            score, index = (x.index_select(0, top) for x in (score, index))
        if 0 < score.numel() == self.size:
            self._bound = float(score.nan_to_num(nan=math.inf).min())
            self._limit = 2 * self.size  # Takes linear time in all.
        self._scores, self._index = [score], [index]
        self._num_candidates = index.numel()
