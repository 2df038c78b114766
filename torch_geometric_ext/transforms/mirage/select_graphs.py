"""Orders in which graphs are kept, the most useful ones first."""

from dataclasses import replace
from typing import Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.ops import herding
from torch_geometric_ext.ops.ragged import row_index, row_ptr, take_rows
from torch_geometric_ext.transforms.mirage.class_labels import ClassLabels

RESOLUTION = 1024  # Root mean square norm of a level of counts.
MAX_NORM = 0.99e9  # Of a row, times those of its group: more leaves 64 bits.


def interleave(group: Tensor) -> Tensor:
    """Merges elements that are in the right order within their groups: one of
    each group in turn, as long as there are any.
    """
    return rank_in_group(group).argsort(stable=True)


def random_order(group: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of each group, interleaved."""
    order = torch.randperm(group.numel(), generator=generator)
    return order[interleave(group[order])]


def herding_order(
    shared: SharedTrees,
    group: Tensor,
    num_samples: Optional[int] = None,
) -> Tensor:
    """An order of each group of graphs whose prefixes have the mean numbers of
    trees of the group (on a logarithmic scale, of all depths), interleaved. It
    may end after a number of graphs of each group.
    """
    order = group.argsort(stable=True)
    ptr, item, value = tree_features(shared)
    value = _limit(ptr, value, group)
    ptr, position = take_rows(ptr, order)
    chosen = herding(
        ptr,
        item[position],
        value[position],
        row_ptr(group.bincount()),
        num_samples=num_samples,
    )
    order = order[chosen]
    return order[interleave(group[order])]


def _limit(ptr: Tensor, value: Tensor, group: Tensor) -> Tensor:
    """Lower values in the groups that are too large for exact scores."""
    row, size = row_index(ptr), group.bincount().double()
    norm = size.new_zeros(group.numel())
    norm = norm.index_add_(0, row, value.double().square()).sqrt()
    excess = torch.ones_like(size).scatter_reduce_(
        0, group, norm * size[group] / MAX_NORM, 'amax'
    )
    return (value / excess[group][row]).long()


def tree_features(shared: SharedTrees) -> Tuple[Tensor, Tensor, Tensor]:
    """The logarithms of the numbers of trees of all depths in each graph, as
    sparse rows of integers. Each depth has the same mean square norm.
    """
    graph, ids = row_index(shared.graph_ptr), shared.tree.long()
    count = shared.count.long()
    graphs, items, values = [], [], []
    offset = 0
    for depth in range(shared.num_layers, -1, -1):
        num_ids = max(shared.num_trees[depth], 1)
        code, inverse = (graph * num_ids + ids).unique(return_inverse=True)
        total = torch.zeros_like(code).index_add_(0, inverse, count)
        value = total.double().log1p()
        # A sum over the few distinct numbers does not depend on threads:
        size = total.bincount().double()
        level = torch.arange(size.numel(), device=size.device)
        square = (level.double().log1p().square() * size)[size > 0].sum()
        scale = RESOLUTION / (square / len(shared)).sqrt()
        graphs.append(code // num_ids)
        items.append(code % num_ids + offset)
        values.append((value * scale).round().long())
        offset += num_ids
        if depth > 0:
            ids = shared.levels[depth - 1].own[ids].long()
    graph = torch.cat(graphs)
    order = graph.argsort(stable=True)
    ptr = row_ptr(graph.bincount(minlength=len(shared)))
    return ptr, torch.cat(items)[order], torch.cat(values)[order]


def rank_in_group(group: Tensor) -> Tensor:
    """The position of each element among those of its group."""
    order = group.argsort(stable=True)
    ptr = row_ptr(group.bincount())
    rank = torch.empty_like(order)
    position = torch.arange(order.numel(), device=order.device)
    rank[order] = position - ptr[group[order]]
    return rank


def reorder(shared: SharedTrees, order: Tensor) -> SharedTrees:
    """All graphs in another order, with equal weights."""
    order = order.to(shared.tree.device)
    graph_ptr, entry = take_rows(shared.graph_ptr, order)
    graph_attrs = {key: x[order] for key, x in shared.graph_attrs.items()}
    graph_attrs['weight'] = torch.ones(order.numel(), device=order.device)
    return replace(
        shared,
        graph_ptr=graph_ptr,
        tree=shared.tree[entry],
        count=shared.count[entry],
        graph_attrs=graph_attrs,
    )


def normalize_weights(
    chosen: SharedTrees,
    classes: ClassLabels,
) -> SharedTrees:
    """Lets the weights of each class sum to its share of the data set."""
    weight = chosen.graph_attrs['weight'].double()
    group = classes.of(chosen.graph_attrs['y'])
    share = classes.size / classes.group.numel()
    total = torch.zeros_like(share, dtype=torch.double)
    total.index_add_(0, group, weight)
    weight = weight * (share / total)[group]
    graph_attrs = {**chosen.graph_attrs, 'weight': weight.float()}
    return replace(chosen, graph_attrs=graph_attrs)
