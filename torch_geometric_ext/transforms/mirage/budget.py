import math
from typing import Any, Callable, Dict, NamedTuple, NoReturn, Optional

import torch
from torch import Tensor
from torch_geometric.data import InMemoryDataset

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.storage import graph_bytes
from torch_geometric_ext.data.tree_bytes import min_graph_bytes, prefix_bytes
from torch_geometric_ext.transforms.mirage.frequent_patterns import Support

ToGraphs = Callable[[SharedTrees], InMemoryDataset]


class CondenseBudget(NamedTuple):
    """The limit of a condensed data set. Exactly one field is set."""

    min_support: Optional[Support]
    num_bytes: Optional[int]
    num_graphs: Optional[int]
    ratio: Optional[float]

    def check(self, name: str) -> None:
        """Raise an error if a value is out of its range."""
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
        """Return the fields that are set."""
        return {k: v for k, v in self._asdict().items() if v is not None}

    def max_bytes(self, total_bytes: int) -> int:
        """Return the number of bytes that may be kept."""
        if self.ratio is not None:
            return int(self.ratio * total_bytes)
        assert self.num_bytes is not None
        return self.num_bytes

    def num_expected(
        self, candidates: SharedTrees, total_bytes: int, share: bool
    ) -> int:
        """Return about how many graphs to keep, by the sizes of random graphs.
        Arguments are those of :meth:`num_kept`.
        """
        if self.num_graphs is not None:
            return self.num_graphs
        if share:
            used = prefix_bytes(candidates)
        else:
            used = min_graph_bytes(candidates).cumsum(0)
        return int((used <= self.max_bytes(total_bytes)).sum())

    def num_kept(
        self,
        candidates: SharedTrees,
        num_classes: int,
        total_bytes: int,
        to_graphs: Optional[ToGraphs],
    ) -> int:
        """Return the length of the longest prefix within the budget.

        Args:
            candidates (SharedTrees): Graphs in the order in which to keep
                them.
            num_classes (int): The number of classes. The first graphs are one
                of each class.
            total_bytes (int): The bytes of the data set before condensation.
            to_graphs (callable, optional): The function that stores the result
                as plain graphs, or :obj:`None` for shared trees.

        Raises:
            ValueError: If one graph of each class exceeds the budget.
        """
        if self.min_support is not None:
            return len(candidates)
        if self.num_graphs is not None:
            if self.num_graphs < num_classes:
                _raise('num_graphs', self.num_graphs, num_classes, num_classes)
            return min(self.num_graphs, len(candidates))
        budget = self.max_bytes(total_bytes)
        used = _used_bytes(candidates, budget, num_classes, to_graphs)
        out = int((used <= budget).sum())
        if out >= num_classes:
            return out
        needed = int(used[num_classes - 1])
        if self.ratio is None:
            _raise('num_bytes', budget, num_classes, needed)
        # Round up, so that the ratio in the message is enough:
        ratio = math.ceil(1e6 * needed / max(total_bytes, 1) + 1) / 1e6
        _raise('ratio', self.ratio, num_classes, ratio)


def _used_bytes(
    candidates: SharedTrees,
    budget: int,
    num_classes: int,
    to_graphs: Optional[ToGraphs],
) -> Tensor:
    """Return the bytes of prefixes, up to the longest within the budget."""
    if to_graphs is None:
        return prefix_bytes(candidates)
    # Convert only graphs that can fit, and one of each class:
    low = min_graph_bytes(candidates).cumsum(0)
    size = max(int((low <= budget).sum()), num_classes)
    head = candidates.index_select(torch.arange(size))
    return graph_bytes(to_graphs(head)).cumsum(0)


def _raise(
    name: str, value: Optional[float], num_classes: int, needed: float
) -> NoReturn:
    raise ValueError(
        f"'{name}' of 'MirageCondense' is too small for one graph of each of "
        f'{num_classes} classes, which takes {needed} (got {value})'
    )
