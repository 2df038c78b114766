from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.ops.ragged import take_rows
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
    kept = classes.of(candidates.graph_attrs['y'])[:num_kept]
    covers = [
        _cover(shared, candidates, classes.group == label, kept == label)
        for label in range(classes.value.numel())
    ]
    distinct, nodes, kept_nodes = torch.stack(covers, dim=1)
    support: List[Optional[int]] = [None] * len(covers)
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
        kept.bincount(minlength=len(covers)).tolist(),
        support,
        (kept_nodes / nodes.clamp(min=1)).tolist(),
    ]
    return [ClassReport(*row) for row in zip(*columns)]


def _cover(
    shared: SharedTrees,
    candidates: SharedTrees,
    graph_mask: Tensor,
    kept_mask: Tensor,
) -> Tensor:
    """Return the number of distinct trees of some graphs, of their nodes, and
    of their nodes whose tree is part of some candidates.
    """
    _, entry = take_rows(shared.graph_ptr, graph_mask.nonzero().view(-1))
    _, kept_entry = take_rows(candidates.graph_ptr, kept_mask.nonzero()[:, 0])
    tree, count = shared.tree[entry].long(), shared.count[entry]
    mask = graph_mask.new_zeros(shared.num_trees[-1])
    num_trees = mask.index_fill(0, tree, True).sum()
    mask[candidates.tree[kept_entry].long()] = True
    return torch.stack([num_trees, count.sum(), count[mask[tree]].sum()])
