import time
from typing import Dict, List, NamedTuple, Optional

import torch

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.ops.ragged import row_index
from torch_geometric_ext.transforms.mirage.class_labels import ClassLabels


class Clock:
    """Seconds between stops."""

    def __init__(self) -> None:
        self.seconds: Dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Ends a stage."""
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now


class ClassReport(NamedTuple):
    """What happened to the graphs of a class."""

    label: int
    num_graphs: int
    num_trees: int
    num_patterns: int
    support: Optional[int]
    coverage: float


class CondenseReport(NamedTuple):
    """What :meth:`MirageCondense.report` returns; prints as a table.

    For each class: its label, the numbers of graphs and of distinct trees in
    the data set, the number of condensed graphs (chosen graphs or patterns),
    the support (in graphs) of the rarest pattern, and the coverage, which is
    the share of nodes whose tree the condensed graphs of the class hold. For
    the whole: bytes of tensors before and after, bytes of a file of the
    latter, and seconds for each stage.
    """

    classes: List[ClassReport]
    num_bytes: int
    num_condensed_bytes: int
    num_file_bytes: int
    seconds: Dict[str, float]

    @property
    def ratio(self) -> float:
        """The share of the bytes of tensors that is kept."""
        return self.num_condensed_bytes / max(self.num_bytes, 1)

    def __str__(self) -> str:
        lines = [
            f'{"class":>8}{"graphs":>10}{"trees":>10}{"kept":>10}'
            f'{"support":>10}{"coverage":>10}'
        ]
        for row in self.classes:
            support = '-' if row.support is None else f'{row.support:,}'
            lines.append(
                f'{row.label:>8}{row.num_graphs:>10,}{row.num_trees:>10,}'
                f'{row.num_patterns:>10,}{support:>10}{row.coverage:>10.1%}'
            )
        stages = ', '.join(f'{k} {v:.2f} s' for k, v in self.seconds.items())
        return '\n'.join(
            [
                *lines,
                f'bytes: {self.num_bytes:,} before, '
                f'{self.num_condensed_bytes:,} after ({self.ratio:.2%}), '
                f'{self.num_file_bytes:,} in a file',
                f'seconds: {stages}',
            ]
        )


def report_classes(
    shared: SharedTrees,
    candidates: SharedTrees,
    num_kept: int,
    classes: ClassLabels,
    has_support: bool,
) -> List[ClassReport]:
    """Compares the first candidates with all graphs, class by class."""
    num_classes, num_trees = (
        classes.value.numel(),
        max(shared.num_trees[-1], 1),
    )
    kept = classes.of(candidates.graph_attrs['y'])[:num_kept]
    row = row_index(candidates.graph_ptr[: num_kept + 1])
    code = classes.group[row_index(shared.graph_ptr)] * num_trees + shared.tree
    kept_code = kept[row] * num_trees + candidates.tree[: row.numel()]

    nodes = torch.zeros_like(classes.value)
    group = code // num_trees
    nodes.index_add_(0, group, shared.count.long())
    covered = torch.isin(code, kept_code) * shared.count
    kept_nodes = torch.zeros_like(nodes).index_add_(0, group, covered.long())
    distinct = (code.unique() // num_trees).bincount(minlength=num_classes)
    size = kept.bincount(minlength=num_classes)
    support: List[Optional[int]] = [None] * num_classes
    if has_support:
        weight = candidates.graph_attrs['weight'][:num_kept].long()
        lowest = torch.zeros_like(nodes).scatter_reduce_(
            0, kept, weight, 'amin', include_self=False
        )
        support = list(lowest.tolist())
    coverage = kept_nodes / nodes.clamp(min=1)
    columns = [classes.value, classes.size, distinct, size, coverage]
    return [
        ClassReport(label, num_graphs, num_trees, num_kept, lowest, share)
        for label, num_graphs, num_trees, num_kept, share, lowest in zip(
            *(column.tolist() for column in columns), support
        )
    ]
