import math
from typing import Dict, List, NamedTuple, Optional, Union

import torch
from torch import Tensor

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.shared_trees import replace_graphs
from torch_geometric_ext.ops import frequent_itemsets, unique_trees
from torch_geometric_ext.ops.ragged import row_ptr, take_rows
from torch_geometric_ext.transforms.mirage.class_labels import ClassLabels
from torch_geometric_ext.transforms.mirage.select_graphs import interleave

Support = Union[float, int, Dict[int, Union[float, int]]]


class MiningSettings(NamedTuple):
    """Settings of pattern mining."""

    closed: bool
    exclusive: bool
    max_patterns: int

    def check(self, name: str) -> None:
        """Raise an error if a value is out of its range."""
        if self.max_patterns < 1:
            raise ValueError(
                f"'max_patterns' of '{name}' needs to be positive (got "
                f'{self.max_patterns})'
            )


class _Patterns(NamedTuple):
    """Frequent sets of trees."""

    ptr: Tensor
    tree: Tensor
    support: Tensor  # The number of graphs that hold each set.
    group: Tensor  # The class of each set.


def frequent_patterns(
    shared: SharedTrees,
    classes: ClassLabels,
    support: List[int],
    settings: MiningSettings,
) -> SharedTrees:
    """Return the frequent sets of trees of each class as graphs, with their
    support as weight. Classes take turns, in the order of support.

    Args:
        shared (SharedTrees): The graphs.
        classes (ClassLabels): The class of each graph.
        support (List[int]): The lowest support in each class.
        settings (MiningSettings): The settings.

    Raises:
        ValueError: If a class has no frequent pattern.
    """
    patterns = _mine(shared, classes, support, settings)
    if settings.exclusive:
        patterns = _drop_common(patterns)
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
    """Return the lowest support of each class as a number of graphs.

    Args:
        min_support (float, int or dict, optional): A fraction of the graphs of
            a class or a number of graphs, for all classes or for each.
        classes (ClassLabels): The classes.

    Raises:
        ValueError: If a value is out of range, or a class has none.
    """
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
        is_fraction = isinstance(value, float)
        if not (0 < value <= 1 if is_fraction else 1 <= value):
            raise ValueError(
                f"'min_support' needs to be a fraction in (0, 1] or a "
                f'positive number of graphs (got {value})'
            )
        if is_fraction:  # Tolerate rounding: 0.07 * 100 is above 7.
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


def _drop_common(patterns: _Patterns) -> _Patterns:
    """Drop patterns that several classes have."""
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
    """Return one graph for each pattern, which holds each tree once."""
    y = shared.graph_attrs['y'][classes.first][patterns.group]
    return replace_graphs(
        shared,
        graph_ptr=patterns.ptr,
        tree=patterns.tree.int(),
        count=torch.ones_like(patterns.tree, dtype=torch.int),
        graph_attrs={'y': y, 'weight': patterns.support.float()},
    )
