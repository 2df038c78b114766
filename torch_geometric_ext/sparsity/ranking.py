"""Select the largest scores, with equal results on all devices and ranks.

Among equal scores, the first ones are selected.
"""

from typing import List, Optional

import torch
from torch import Tensor


def top_mask(score: Tensor, size: int) -> Tensor:
    """Return a mask of the :obj:`size` largest scores, the first among equals.

    Args:
        score (torch.Tensor): Vector of scores, without NaN.
        size (int): Number of scores to select.
    """
    if size == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    bound = score.topk(size, sorted=False).values.min()
    mask, equal = score > bound, score == bound
    missing = size - mask.sum()
    return mask | (equal & (equal.cumsum(0) <= missing))


class RunningTop:
    """Select the :obj:`size` largest of scores that arrive block by block.

    Takes memory in proportion to :obj:`size` and to the size of a block.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._num_candidates = 0
        self._bound: Optional[Tensor] = None
        self._scores: List[Tensor] = []
        self._index: List[Tensor] = []

    def update(self, score: Tensor, begin: int) -> None:
        """Add a block of scores. Blocks need to arrive in ascending order.

        Args:
            score (torch.Tensor): Vector of scores. Negative scores mask
                positions.
            begin (int): The position of the first score.
        """
        mask = score >= 0 if self._bound is None else score > self._bound
        index = mask.nonzero().flatten()
        self._scores.append(score[index])
        self._index.append(index + begin)
        self._num_candidates += index.numel()
        if self._num_candidates > 2 * self.size:  # Takes linear time in all.
            self._compact()

    def index(self) -> Tensor:
        """Return the ascending positions of the largest scores."""
        self._compact()
        return self._index[0]

    def _compact(self) -> None:
        score, index = torch.cat(self._scores), torch.cat(self._index)
        if score.numel() > self.size:
            mask = top_mask(score, self.size)
            score, index = score[mask], index[mask]
        if 0 < score.numel() == self.size:
            self._bound = score.min()
        self._scores, self._index = [score], [index]
        self._num_candidates = index.numel()
