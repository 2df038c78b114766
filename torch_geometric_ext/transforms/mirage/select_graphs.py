"""Orders of graphs whose prefixes represent a data set."""

from dataclasses import replace
from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.shared_trees import take_attrs
from torch_geometric_ext.ops import herding
from torch_geometric_ext.ops.ragged import row_index, row_ptr, take_rows
from torch_geometric_ext.transforms.mirage.class_labels import ClassLabels

NUM_SAMPLES = 1024  # Graphs of each class to herd at first; a choice.
RESOLUTION = 1024  # Root mean square norm of the features of a depth.
MAX_NORM = 0.99e9  # A bound: larger products of norms overflow 64 bits.


def interleave(group: Tensor) -> Tensor:
    """Return an order in which groups take turns. Elements of the same group
    stay in order.
    """
    order = group.argsort(stable=True)
    ptr = row_ptr(group.bincount())
    turn = torch.empty_like(order)
    position = torch.arange(order.numel(), device=order.device)
    turn[order] = position - ptr[group[order]]
    return turn.argsort(stable=True)


def random_order(group: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random order in which groups take turns."""
    order = torch.randperm(group.numel(), generator=generator)
    return order[interleave(group[order])]


def herded_graphs(
    shared: SharedTrees,
    classes: ClassLabels,
    num_graphs: Optional[int] = None,
) -> Iterator[SharedTrees]:
    """Iterate over prefixes of the herding order, from short to long, since
    herding takes time for each graph and most budgets are small.

    Args:
        shared (SharedTrees): The graphs.
        classes (ClassLabels): The class of each graph.
        num_graphs (int, optional): The length of the only prefix, if known.
            (default: :obj:`None`)
    """
    num_samples = num_graphs or NUM_SAMPLES
    while True:
        order = herding_order(shared, classes.group, num_samples)
        yield reorder(shared, order)
        if num_graphs is not None or num_samples >= int(classes.size.max()):
            return
        num_samples *= 8


def herding_order(
    shared: SharedTrees,
    group: Tensor,
    num_samples: Optional[int] = None,
) -> Tensor:
    """Return an order in which groups take turns, and whose prefixes have the
    mean :func:`tree_features` of each group.

    Args:
        shared (SharedTrees): The graphs.
        group (torch.Tensor): The group of each graph.
        num_samples (int, optional): The largest number of graphs of each
            group in the result. (default: :obj:`None`)
    """
    order = group.argsort(stable=True)
    ptr, item, value = tree_features(shared)
    value = _limit_norms(ptr, value, group)
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


def _limit_norms(ptr: Tensor, value: Tensor, group: Tensor) -> Tensor:
    """Scale down the values of groups that are too large for exact scores."""
    row, size = row_index(ptr), group.bincount().double()
    norm = size.new_zeros(group.numel())
    norm = norm.index_add_(0, row, value.double().square()).sqrt()
    excess = torch.ones_like(size).scatter_reduce_(
        0, group, norm * size[group] / MAX_NORM, 'amax'
    )
    return (value / excess[group][row]).long()


def tree_features(shared: SharedTrees) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the logarithmic counts of the trees of all depths in each graph,
    as sparse rows of integers: boundaries, trees and values. The root mean
    square norm of each depth is `RESOLUTION`.
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
        # Sum over distinct counts, independent of the number of threads:
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


def reorder(shared: SharedTrees, order: Tensor) -> SharedTrees:
    """Return graphs in another order, with equal weights. Trees and sizes stay
    those of all graphs.
    """
    order = order.to(shared.tree.device)
    graph_ptr, entry = take_rows(shared.graph_ptr, order)
    graph_attrs = take_attrs(shared.graph_attrs, order)
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
    """Scale the weights of each class to sum to its fraction of all graphs."""
    weight = chosen.graph_attrs['weight'].double()
    group = classes.of(chosen.graph_attrs['y'])
    fraction = classes.size / classes.group.numel()
    total = torch.zeros_like(fraction, dtype=torch.double)
    total.index_add_(0, group, weight)
    weight = weight * (fraction / total)[group]
    graph_attrs = {**chosen.graph_attrs, 'weight': weight.float()}
    return replace(chosen, graph_attrs=graph_attrs)
