import math
from typing import Any, Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor
from torch_geometric.data import InMemoryDataset

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.tree_bytes import (
    min_unshared_bytes,
    shared_bytes,
)
from torch_geometric_ext.data.trees_to_graphs import unshared_bytes
from torch_geometric_ext.transforms.mirage.frequent_patterns import Support

Unshare = Callable[[SharedTrees], InMemoryDataset]


class CondenseBudget(NamedTuple):
    """How much is kept. One of these is given, and all of what has the support
    is kept if it is that.
    """

    min_support: Optional[Support]
    num_bytes: Optional[int]
    num_graphs: Optional[int]
    ratio: Optional[float]

    def check(self, name: str) -> None:
        """Refuses values out of range."""
        given = self.given()
        if len(given) != 1:
            raise ValueError(
                f"'{name}' needs exactly one of {list(self._fields)} (got "
                f'{list(given) or "none"})'
            )
        if self.ratio is not None and (
            not isinstance(self.ratio, (int, float)) or not 0 < self.ratio <= 1
        ):
            raise ValueError(
                f"'ratio' of '{name}' needs to be a number in (0, 1] (got "
                f'{self.ratio!r})'
            )
        for key in ['num_bytes', 'num_graphs']:
            value = getattr(self, key)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(
                    f"'{key}' of '{name}' needs to be a positive integer (got "
                    f'{value})'
                )

    def given(self) -> Dict[str, Any]:
        """The values that are set."""
        return {k: v for k, v in self._asdict().items() if v is not None}

    def num_kept(
        self,
        candidates: SharedTrees,
        num_classes: int,
        total_bytes: int,
        unshare: Optional[Unshare],
    ) -> int:
        """The longest prefix of the candidates within the budget, stored as
        plain graphs if it is told how.
        """
        if self.min_support is not None:
            return len(candidates)
        if self.num_graphs is not None:
            if self.num_graphs < num_classes:
                _raise('num_graphs', self.num_graphs, num_classes, num_classes)
            return min(self.num_graphs, len(candidates))
        budget = self.num_bytes
        if self.ratio is not None:
            budget = int(self.ratio * total_bytes)
        assert budget is not None
        if unshare is None:
            used = shared_bytes(candidates)
        else:  # Those that may fit, and one graph of each class.
            low = min_unshared_bytes(candidates).cumsum(0)
            size = max(int((low <= budget).sum()), num_classes)
            head = candidates.index_select(torch.arange(size))
            used = unshared_bytes(unshare(head)).cumsum(0)
        return self._fit(used, budget, num_classes, total_bytes)

    def _fit(
        self,
        used: Tensor,
        budget: int,
        num_classes: int,
        total_bytes: int,
    ) -> int:
        out = int((used <= budget).sum())
        if out < num_classes:
            needed = int(used[num_classes - 1])
            if self.ratio is not None:  # Rounded up, so that it is enough.
                share = math.ceil(1e6 * needed / max(total_bytes, 1) + 1) / 1e6
                _raise('ratio', self.ratio, num_classes, share)
            _raise('num_bytes', budget, num_classes, needed)
        return out


def _raise(name: str, value: float, num_classes: int, needed: float) -> None:
    raise ValueError(
        f"'{name}' of 'MirageCondense' is too small for one graph of each of "
        f'{num_classes} classes, which takes {needed} (got {value})'
    )
