from typing import Dict, List, NamedTuple, Optional

import torch

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.ops.ragged import row_index
from torch_geometric_ext.transforms.mirage.class_labels import ClassLabels


class ClassReport(NamedTuple):
    """The condensation of the graphs of one class.

    Args:
        label (int): The class.
        num_graphs (int): The number of graphs in the data set.
        num_trees (int): The number of their distinct computation trees.
        num_patterns (int): The number of condensed graphs.
        support (int, optional): The lowest support of a pattern, in graphs.
        coverage (float): The fraction of nodes whose computation tree is part
            of a condensed graph.
    """

    label: int
    num_graphs: int
    num_trees: int
    num_patterns: int
    support: Optional[int]
    coverage: float


class CondenseReport(NamedTuple):
    """The result of :meth:`MirageCondense.report`; prints as a table.

    Args:
        classes (List[ClassReport]): A row for each class.
        num_bytes (int): The bytes of the tensors of the data set.
        num_condensed_bytes (int): The bytes of the tensors of the result.
        num_file_bytes (int): The bytes of a file with the result.
        seconds (Dict[str, float]): The seconds of each stage.
    """

    classes: List[ClassReport]
    num_bytes: int
    num_condensed_bytes: int
    num_file_bytes: int
    seconds: Dict[str, float]

    @property
    def ratio(self) -> float:
        """The ratio of bytes after condensation to bytes before."""
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
    """Compare the first `num_kept` candidates with all graphs of each class.
    The weights of candidates are their support if `has_support` is set.
    """
    num_classes = classes.value.numel()
    num_trees = max(shared.num_trees[-1], 1)
    kept = classes.of(candidates.graph_attrs['y'])[:num_kept]
    row = row_index(candidates.graph_ptr[: num_kept + 1])
    code = classes.group[row_index(shared.graph_ptr)] * num_trees + shared.tree
    kept_code = kept[row] * num_trees + candidates.tree[: row.numel()]

    group = code // num_trees
    covered = torch.isin(code, kept_code) * shared.count
    nodes, kept_nodes = (
        torch.zeros_like(classes.value).index_add_(0, group, count.long())
        for count in [shared.count, covered]
    )
    distinct = (code.unique() // num_trees).bincount(minlength=num_classes)
    support: List[Optional[int]] = [None] * num_classes
    if has_support:
        weight = candidates.graph_attrs['weight'][:num_kept].long()
        lowest = torch.zeros_like(nodes).scatter_reduce_(
            0, kept, weight, 'amin', include_self=False
        )
        support = list(lowest.tolist())
    columns = [
        classes.value.tolist(),
        classes.size.tolist(),
        distinct.tolist(),
        kept.bincount(minlength=num_classes).tolist(),
        support,
        (kept_nodes / nodes.clamp(min=1)).tolist(),
    ]
    return [ClassReport(*row) for row in zip(*columns)]
