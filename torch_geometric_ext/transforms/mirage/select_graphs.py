"""Orders of graphs whose prefixes represent a data set."""

from dataclasses import replace
from typing import Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.shared_trees import take_attrs
from torch_geometric_ext.ops.herding import NUM_CANDIDATES, herding
from torch_geometric_ext.ops.ragged import row_index, row_ptr, take_rows
from torch_geometric_ext.transforms.mirage.class_labels import ClassLabels

MIN_SAMPLES = 64  # Graphs of each class to herd at least; a choice.
MARGIN = 1.1  # Herded and random graphs of a budget differ less; a choice.
RESOLUTION = 1024  # Root mean square norm of the features of a depth.
CHUNK_SIZE = 1 << 16  # Graphs whose trees to sort at a time; a choice.
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
    num_graphs: int,
) -> Iterator[SharedTrees]:
    """Iterate over prefixes of the herding order, from short to long, since
    herding takes time for each graph.

    Args:
        shared (SharedTrees): The graphs.
        classes (ClassLabels): The class of each graph.
        num_graphs (int): The expected number of graphs to keep. The first
            prefix is slightly longer.
    """
    group = classes.group
    size = group[interleave(group)[:num_graphs]].bincount(minlength=1)
    num_samples = max(int(MARGIN * size.max()) + 1, MIN_SAMPLES)
    rows = herding_rows(shared, group)
    while True:
        yield reorder(shared, herding_order(rows, group, num_samples))
        if num_samples >= int(classes.size.max()):
            return
        num_samples *= 2


class HerdingRows(NamedTuple):
    """The features of graphs as sparse rows, group by group."""

    graph: Tensor
    ptr: Tensor
    item: Tensor
    value: Tensor
    group_ptr: Tensor


def herding_rows(shared: SharedTrees, group: Tensor) -> HerdingRows:
    """Return the :func:`tree_features` of graphs. Graphs of a group that are
    close to each other in the data set, and may be similar, are in different
    parts of :func:`~torch_geometric_ext.ops.herding`.
    """
    size = group.bincount()
    group_ptr = row_ptr(size)
    num_parts = (size - 1) // NUM_CANDIDATES + 1
    order = group.argsort(stable=True)
    index = group[order]
    position = torch.arange(group.numel(), device=group.device)
    part = (position - group_ptr[index]) % num_parts[index]
    order = order[(index * num_parts.max() + part).argsort(stable=True)]
    rows = HerdingRows(order, *tree_features(shared, order), group_ptr)
    _limit_norms(rows, group)
    return rows


def herding_order(
    rows: HerdingRows,
    group: Tensor,
    num_samples: Optional[int] = None,
) -> Tensor:
    """Return an order in which groups take turns, and whose prefixes have the
    mean :func:`tree_features` of each group.

    Args:
        rows (HerdingRows): The features of the graphs.
        group (torch.Tensor): The group of each graph.
        num_samples (int, optional): The largest number of graphs of each
            group in the result. (default: :obj:`None`)
    """
    order = rows.graph[herding(*rows[1:], num_samples=num_samples)]
    return order[interleave(group[order])]


def _limit_norms(rows: HerdingRows, group: Tensor) -> None:
    """Scale down the values of groups that are too large for exact scores, in
    place.
    """
    chunks = torch.arange(group.numel()).split(CHUNK_SIZE)
    group, size = group[rows.graph], rows.group_ptr.diff().double()
    excess = torch.ones_like(size)
    for chunk in chunks:
        row, value = _entries(rows, chunk)
        norm = size.new_zeros(chunk.numel())
        norm = norm.index_add_(0, row, value.double().square()).sqrt()
        part = group[chunk]
        norm = norm * size[part] / MAX_NORM
        excess.scatter_reduce_(0, part, norm, 'amax')
    if bool((excess > 1).any()):
        for chunk in chunks:
            row, value = _entries(rows, chunk)
            value.copy_(value / excess[group[chunk]][row])


def _entries(rows: HerdingRows, chunk: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the position in a chunk of rows, and the value, of each entry."""
    ptr = rows.ptr[int(chunk[0]) : int(chunk[-1]) + 2]
    return row_index(ptr), rows.value[int(ptr[0]) : int(ptr[-1])]


def tree_features(
    shared: SharedTrees,
    order: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the logarithmic counts of the trees of all depths in each graph,
    as sparse rows of integers: boundaries, trees and values. The root mean
    square norm of each depth is `RESOLUTION`.

    Args:
        shared (SharedTrees): The graphs.
        order (torch.Tensor, optional): The graph of each row. By default, row
            :math:`i` is graph :math:`i`. (default: :obj:`None`)

    Shapes:
        - **output:** boundaries :math:`(G + 1)`, :obj:`torch.int64`; trees and
          values :math:`(Z)`, :obj:`torch.int32`
    """
    if order is None:
        order = torch.arange(len(shared), device=shared.tree.device)
    num_ids = torch.tensor(shared.num_trees[::-1]).clamp(min=1)
    offset = row_ptr(num_ids).to(order.device)
    parts = [_count_trees(shared, x, offset) for x in order.split(CHUNK_SIZE)]
    sizes, items, counts = map(list, zip(*parts))
    del parts
    scale = _depth_scales(items, counts, offset, len(shared))
    for item, count in zip(items, counts):  # In place, to save memory.
        depth = torch.bucketize(item, offset[1:], right=True)
        count.copy_((count.double().log1p() * scale[depth]).round())
    item = torch.cat(items)
    del items
    return row_ptr(torch.cat(sizes)), item, torch.cat(counts)


def _count_trees(
    shared: SharedTrees,
    graphs: Tensor,
    offset: Tensor,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the number of distinct trees of all depths of each graph, the
    trees, numbered from the offset of their depth, and their counts.
    """
    ptr, entry = take_rows(shared.graph_ptr, graphs)
    row, ids = row_index(ptr), shared.tree[entry].long()
    count = shared.count[entry].long()
    depths = [(row, ids + offset[0], count)]
    levels = zip(shared.levels[::-1], shared.num_trees[-2::-1], offset[1:])
    for level, num_ids, begin in levels:
        code, count = _sum_equal(row * num_ids + level.own[ids], count)
        row = code // num_ids
        ids = code - row * num_ids
        depths.append((row, ids + begin, count))
    # Each depth is sorted by row already:
    sizes = [x.bincount(minlength=graphs.numel()) for x, _, _ in depths]
    size = torch.stack(sizes).sum(dim=0)
    begin = row_ptr(size)[:-1]
    item = torch.empty(int(size.sum()), dtype=torch.int, device=size.device)
    total = torch.empty_like(item)
    for (row, ids, count), part in zip(depths, sizes):
        shift = begin - row_ptr(part)[:-1]
        position = torch.arange(row.numel(), device=row.device) + shift[row]
        item[position], total[position] = ids.int(), count.int()
        begin = begin + part
    return size, item, total


def _sum_equal(code: Tensor, count: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the distinct codes in ascending order, and their counts."""
    code, order = code.sort()
    last = torch.ones_like(code, dtype=torch.bool)
    last[:-1] = code[1:] != code[:-1]
    total = row_ptr(count[order])[1:][last]
    return code[last], total.diff(prepend=total.new_zeros(1))


def _depth_scales(
    items: List[Tensor],
    counts: List[Tensor],
    offset: Tensor,
    num_graphs: int,
) -> Tensor:
    """Return the factors of logarithmic counts that give each depth a root
    mean square norm of `RESOLUTION`.
    """
    num_depths = offset.numel() - 1
    size = offset.new_zeros(0)
    for item, count in zip(items, counts):
        depth = torch.bucketize(item, offset[1:], right=True)
        part = (count * num_depths + depth).bincount(minlength=size.numel())
        part[: size.numel()] += size
        size = part
    # Sum over distinct counts, independent of the number of threads:
    scales = []
    for first in range(num_depths):
        part = size[first::num_depths].double()
        level = torch.arange(part.numel(), device=part.device)
        square = (level.double().log1p().square() * part)[part > 0].sum()
        scales.append(RESOLUTION / (square / num_graphs).sqrt())
    return torch.stack(scales)


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
