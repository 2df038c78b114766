"""Exact choices of the largest scores, equal on all devices and ranks: among
equal scores, the first ones win.
"""

from typing import List, Optional

import torch
from torch import Tensor


def top_mask(score: Tensor, size: int) -> Tensor:
    """Selects the :obj:`size` largest scores (none of them NaN)."""
    if size == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    bound = score.topk(size, sorted=False).values.min()
    mask, equal = score > bound, score == bound
    missing = size - mask.sum()
    return mask | (equal & (equal.cumsum(0) <= missing))


class RunningTop:
    """Collects the positions of the :obj:`size` largest of many scores, given
    block by block, in memory proportional to :obj:`size` and a block.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._num_kept = 0
        self._bound: Optional[Tensor] = None
        self._scores: List[Tensor] = []
        self._index: List[Tensor] = []

    def update(self, score: Tensor, begin: int) -> None:
        """Takes the scores of consecutive positions, later ones in later
        calls. Negative scores stand for positions not to choose.
        """
        mask = score >= 0 if self._bound is None else score > self._bound
        index = mask.nonzero().flatten()
        self._scores.append(score[index])
        self._index.append(index + begin)
        self._num_kept += index.numel()
        if self._num_kept > 2 * self.size:  # Pays off the work it takes.
            self._compact()

    def index(self) -> Tensor:
        """The positions, ascending."""
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
        self._num_kept = index.numel()
