import math
from dataclasses import replace
from typing import Dict, List, NamedTuple, Optional, Union

import torch
from torch import Tensor

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.ops import frequent_itemsets, unique_trees
from torch_geometric_ext.ops.ragged import row_ptr, take_rows
from torch_geometric_ext.transforms.mirage.class_labels import ClassLabels
from torch_geometric_ext.transforms.mirage.select_graphs import interleave

Support = Union[float, int, Dict[int, Union[float, int]]]


class MiningSettings(NamedTuple):
    """Which patterns to mine."""

    closed: bool
    exclusive: bool
    max_patterns: int

    def check(self, name: str) -> None:
        """Refuses values out of range."""
        if self.max_patterns < 1:
            raise ValueError(
                f"'max_patterns' of '{name}' needs to be positive (got "
                f'{self.max_patterns})'
            )


class _Patterns(NamedTuple):
    """Sets of trees of all classes, class by class."""

    ptr: Tensor
    tree: Tensor
    support: Tensor
    group: Tensor


def frequent_patterns(
    shared: SharedTrees,
    classes: ClassLabels,
    support: List[int],
    settings: MiningSettings,
) -> SharedTrees:
    """The frequent sets of trees of each class as graphs, in descending
    support within a class, one of each class in turn.
    """
    patterns = _mine(shared, classes, support, settings)
    if settings.exclusive:
        patterns = _exclusive(patterns)
    size = patterns.group.bincount(minlength=classes.value.numel())
    if bool((size == 0).any()):
        i = int((size == 0).nonzero()[0])
        hint = ', or unset exclusive' if settings.exclusive else ''
        raise ValueError(
            f'class {int(classes.value[i])} has no frequent pattern (got '
            f'min_support={support[i]} graphs of {int(classes.size[i])}: '
            f'lower it{hint})'
        )
    patterns = _take(patterns, interleave(patterns.group))
    return _as_graphs(shared, classes, patterns)


def resolve_support(
    min_support: Optional[Support],
    classes: ClassLabels,
) -> List[int]:
    """The lowest support of a pattern of each class, as a number of graphs."""
    values = classes.value.tolist()
    if isinstance(min_support, dict):
        if set(min_support) != set(values):
            raise ValueError(
                f"'min_support' needs one value for each of the classes "
                f'{values} (got {sorted(min_support)})'
            )
        given = [min_support[value] for value in values]
    else:
        given = [1 if min_support is None else min_support] * len(values)
    out = []
    for value, size in zip(given, classes.size.tolist()):
        is_share = isinstance(value, float)
        if not (0 < value <= 1 if is_share else 1 <= value):
            raise ValueError(
                f"'min_support' needs to be a share in (0, 1] or a positive "
                f'number of graphs (got {value})'
            )
        if is_share:  # Some products are slightly above the number meant.
            value = math.ceil(value * size - 1e-9)
        out.append(max(int(value), 1))
    return out


def _mine(
    shared: SharedTrees,
    classes: ClassLabels,
    support: List[int],
    settings: MiningSettings,
) -> _Patterns:
    sizes, trees, supports, groups = [], [], [], []
    for i, min_support in enumerate(support):
        graph_idx = (classes.group == i).nonzero().view(-1)
        ptr, entry = take_rows(shared.graph_ptr, graph_idx)
        out = frequent_itemsets(
            ptr,
            shared.tree[entry].long(),
            min_support,
            settings.max_patterns,
            settings.closed,
        )
        sizes.append(out.ptr.diff())
        trees.append(out.item)
        supports.append(out.support)
        groups.append(torch.full_like(out.support, i))
    return _Patterns(
        row_ptr(torch.cat(sizes)),
        torch.cat(trees),
        torch.cat(supports),
        torch.cat(groups),
    )


def _exclusive(patterns: _Patterns) -> _Patterns:
    """The patterns of one class only."""
    label = torch.zeros_like(patterns.support)
    ids = unique_trees(label, patterns.ptr, patterns.tree).ids
    return _take(patterns, (ids.bincount()[ids] == 1).nonzero().view(-1))


def _take(patterns: _Patterns, index: Tensor) -> _Patterns:
    ptr, position = take_rows(patterns.ptr, index)
    return _Patterns(
        ptr,
        patterns.tree[position],
        patterns.support[index],
        patterns.group[index],
    )


def _as_graphs(
    shared: SharedTrees,
    classes: ClassLabels,
    patterns: _Patterns,
) -> SharedTrees:
    """One graph for each pattern, which holds each of its trees once."""
    y = shared.graph_attrs['y'][classes.first][patterns.group]
    count = torch.ones_like(patterns.tree, dtype=torch.int)
    num_edges = int(shared.levels[-1].ptr.diff()[patterns.tree].sum())
    share = (count.numel() + num_edges) / (shared.num_nodes + shared.num_edges)
    return replace(
        shared,
        graph_ptr=patterns.ptr,
        tree=patterns.tree.int(),
        count=count,
        graph_attrs={'y': y, 'weight': patterns.support.float()},
        num_nodes=count.numel(),
        num_edges=num_edges,
        num_bytes=round(shared.num_bytes * share),  # As `index_select` does.
    )
