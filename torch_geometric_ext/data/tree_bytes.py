"""Sizes of growing sets of graphs, to find those that fit into a budget."""

from typing import Any, Dict, Mapping

import torch
from torch import Tensor

from torch_geometric_ext.data.shared_trees import SharedTrees
from torch_geometric_ext.ops.ragged import row_index


def prefix_bytes(shared: SharedTrees) -> Tensor:
    """Return the bytes of the shared trees of the first :math:`k` graphs, for
    each :math:`k` from 1 to the number of graphs.
    """
    num_graphs = len(shared)
    rows = shared.graph_ptr.diff() * 8 + 8  # Ids, counts and a boundary.
    out = rows + _row_bytes(shared.graph_attrs)
    # Charge each tree to the first graph that holds it:
    first = torch.full((shared.num_trees[-1],), num_graphs, device=out.device)
    graph = row_index(shared.graph_ptr)
    first.scatter_reduce_(0, shared.tree.long(), graph, 'amin')
    first_label = torch.full(
        (_num_rows(shared.edge_attrs),), num_graphs, device=out.device
    )
    for level, num_below in zip(shared.levels[::-1], shared.num_trees[-2::-1]):
        child_bytes = 4 + 4 * (level.edge_label.numel() > 0)
        out = _charge(out, first, level.ptr.diff() * child_bytes + 12)
        parent = first.repeat_interleave(level.ptr.diff())
        below = torch.full((num_below,), num_graphs, device=out.device)
        below.scatter_reduce_(0, level.own.long(), first, 'amin')
        below.scatter_reduce_(0, level.child.long(), parent, 'amin')
        if level.edge_label.numel() > 0:
            label = level.edge_label.long()
            first_label.scatter_reduce_(0, label, parent, 'amin')
        first = below
    for attrs, graph in [
        (shared.node_attrs, first),
        (shared.edge_attrs, first_label),
    ]:
        row = torch.full_like(graph, _row_bytes(attrs))
        out = _charge(out, graph, row)
    # Boundaries of levels and of graphs start with a zero:
    return out.cumsum(0) + 8 * (len(shared.levels) + 1)


def min_graph_bytes(shared: SharedTrees) -> Tensor:
    """Return a lower bound of the bytes of each graph that
    :func:`~torch_geometric_ext.data.trees_to_graphs.trees_to_graphs` returns:
    those of its roots and of the edges that end in them.
    """
    size = shared.graph_ptr.diff()
    degree = shared.levels[-1].ptr.diff()[shared.tree.long()]
    num_edges = torch.zeros_like(size).index_add_(
        0, row_index(shared.graph_ptr), degree
    )
    node = _row_bytes({'x': shared.node_attrs['x']}) + 9  # Mask and count.
    edge = 16 + _row_bytes(shared.edge_attrs)
    return size * node + num_edges * edge + _row_bytes(shared.graph_attrs)


def _charge(out: Tensor, graph: Tensor, num_bytes: Tensor) -> Tensor:
    """Add bytes to those of graphs. Trees that no graph holds cost nothing."""
    used = graph < out.numel()
    return out.index_add(0, graph[used], num_bytes[used])


def _row_bytes(attrs: Mapping[str, Any]) -> int:
    """Return the bytes of the tensors of one row."""
    return sum(
        x[:1].numel() * x.element_size()
        for x in attrs.values()
        if isinstance(x, Tensor)
    )


def _num_rows(attrs: Dict[str, Tensor]) -> int:
    return next(iter(attrs.values())).size(0) if attrs else 0
