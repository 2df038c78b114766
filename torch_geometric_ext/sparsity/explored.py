from typing import List, Optional

import torch
from torch import Tensor

from torch_geometric_ext.ops.merge_positions import merge_positions


class Explored:
    """Record the positions of a layer that were ever active.

    Sets of positions are merged when their sizes are similar, as in a
    log-structured merge tree. An update takes time in proportion to the
    weights that it moves, times the logarithm of all positions, on average.
    The sets take 16 bytes for each position, at most.

    Args:
        index (torch.Tensor): The first positions, ascending (int64).
    """

    def __init__(self, index: Tensor) -> None:
        self._sets: List[Tensor] = [index]  # Large ones first.
        self._active: Optional[Tensor] = None

    def update(self, old: Tensor, grown: Tensor, new: Tensor) -> None:
        """Record an update of a layer.

        Args:
            old (torch.Tensor): The positions that were active before.
            grown (torch.Tensor): The positions of new weights.
            new (torch.Tensor): The positions that are active now.
        """
        # Only the first update finds unknown positions, or others moved them:
        if self._active is None or not torch.equal(self._active, old):
            self._add(old)
        self._add(grown)
        self._active = new

    def index(self) -> Tensor:
        """Return the ascending positions of all updates (int64)."""
        while len(self._sets) > 1:
            self._merge()
        return self._sets[0]

    def _add(self, index: Tensor) -> None:
        self._sets.append(index)
        while (
            len(self._sets) > 1
            and self._sets[-2].numel() <= 2 * self._sets[-1].numel()
        ):
            self._merge()

    def _merge(self) -> None:
        last = self._sets.pop()
        other = self._sets.pop().to(last.device)
        self._sets.append(merge_positions(other, last)[0])
