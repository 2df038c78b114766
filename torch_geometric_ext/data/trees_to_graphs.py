from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor
from torch_geometric.data import InMemoryDataset

from torch_geometric_ext.data.shared_trees import SharedTrees
from torch_geometric_ext.data.storage import from_tensors
from torch_geometric_ext.data.tree_gcn_norm import tree_gcn_norm
from torch_geometric_ext.ops.ragged import (
    first_occurrence,
    row_index,
    row_ptr,
    take_rows,
)


class _Graphs(NamedTuple):
    """Collated graphs, with edges in the order of their targets. The roots of
    each graph are its first nodes.
    """

    node_ptr: Tensor
    edge_ptr: Tensor
    label: Tensor  # The label of each node.
    root: Tensor  # The entry of each node in `SharedTrees.tree`, or -1.
    edge_index: Tensor
    edge_label: Tensor


class _Edges(NamedTuple):
    """Edges to the nodes of one depth, of all graphs."""

    source: Tensor
    target: Tensor
    label: Tensor


def trees_to_graphs(
    shared: SharedTrees,
    self_loops: bool = True,
) -> InMemoryDataset:
    """Return plain graphs with the computation trees of shared ones.

    Each graph holds its distinct trees as root nodes. It has further nodes
    only for children of roots whose tree, of one level less, no other node
    has. :math:`L` layers of message passing compute for a root what they
    compute for a node with that tree in the original graph.

    Args:
        shared (SharedTrees): The trees.
        self_loops (bool, optional): If set to :obj:`True`, a node whose tree
            equals that of its own child gets a self-loop. If set to
            :obj:`False`, it gets an edge from a copy of itself.
            (default: :obj:`True`)
    """
    graphs = _build_graphs(shared, self_loops)
    attrs: Dict[str, Any] = {'x': shared.node_attrs['x'][graphs.label]}
    edge_index, edge_ptr = graphs.edge_index, graphs.edge_ptr
    edge_attrs = {
        key: value[graphs.edge_label]
        for key, value in shared.edge_attrs.items()
    }
    if shared.gcn_norm:
        edge_index, edge_ptr, weight = _with_self_loops(shared, graphs)
        edge_attrs['edge_weight'] = weight
    graph = row_index(edge_ptr, edge_index.size(1))
    attrs['edge_index'] = edge_index - graphs.node_ptr[graph]
    attrs.update(edge_attrs)

    attrs['root_mask'] = graphs.root >= 0
    count = shared.count[graphs.root.clamp(min=0)].long()
    attrs['root_count'] = count * attrs['root_mask']
    attrs.update(shared.graph_attrs)

    slices = dict.fromkeys(attrs, torch.arange(len(shared) + 1))
    slices.update(dict.fromkeys(['edge_index', *edge_attrs], edge_ptr.cpu()))
    node_keys = ['x', 'root_mask', 'root_count']
    slices.update(dict.fromkeys(node_keys, graphs.node_ptr.cpu()))
    return from_tensors(attrs, slices)


def _build_graphs(shared: SharedTrees, self_loops: bool) -> _Graphs:
    graph, ids = row_index(shared.graph_ptr), shared.tree.long()
    begin = 0  # The first node of the current depth.
    edges: List[_Edges] = []
    for level, num_ids in zip(shared.levels[::-1], shared.num_trees[-2::-1]):
        ptr, position = take_rows(level.ptr, ids[begin:])
        target = row_index(ptr) + begin
        child = level.child[position]
        begin, ids = ids.numel(), level.own[ids].long()
        # Number the pairs of graph and tree, of nodes and then of children:
        code = torch.cat([graph * num_ids + ids, graph[target] * num_ids])
        code[begin:] += child
        source, new = _find_children(code, begin, target, self_loops)
        graph = torch.cat([graph, new // num_ids])
        ids = torch.cat([ids, new % num_ids])
        label = level.edge_label
        if label.numel() > 0:
            label = label[position]
        edges.append(_Edges(source, target, label))
    return _sort_nodes(graph, ids, edges, shared)


def _sort_nodes(
    graph: Tensor,
    label: Tensor,
    edges: List[_Edges],
    shared: SharedTrees,
) -> _Graphs:
    """Sort nodes by graph and edges by target."""
    order = graph.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    root = torch.arange(order.numel(), device=order.device)
    root[shared.tree.numel() :] = -1

    source, target, edge_label = map(torch.cat, zip(*edges))
    edge_index = rank[torch.stack([source, target])]
    edge_order = edge_index[1].argsort(stable=True)
    edge_index = edge_index[:, edge_order]
    if edge_label.numel() > 0:
        edge_label = edge_label[edge_order]
    edge_graph = graph[order][edge_index[1]]
    return _Graphs(
        row_ptr(graph.bincount(minlength=len(shared))),
        row_ptr(edge_graph.bincount(minlength=len(shared))),
        label[order],
        root[order],
        edge_index,
        edge_label,
    )


def _find_children(
    code: Tensor,
    begin: int,
    target: Tensor,
    self_loops: bool,
) -> Tuple[Tensor, Tensor]:
    """Return the nodes that are the children of `target`, and the codes of
    new nodes. The first `begin` codes are those of nodes, the others those of
    children.
    """
    # A child is the first node of its graph with the same tree, or a new one:
    distinct, inverse = code.unique(return_inverse=True)
    node = first_occurrence(inverse, distinct.numel())
    is_new = node >= begin
    new = distinct[is_new]
    node[is_new] = torch.arange(new.numel(), device=code.device) + begin
    inverse, own = inverse[begin:], inverse[:begin]
    source = node[inverse]
    if self_loops:
        return source, new

    # Replace self-loops by the last node with the same tree, or a new one:
    position = torch.arange(begin, device=code.device)
    last = node.scatter_reduce(0, own, position, 'amax')
    is_loop = source == target
    twin = inverse[is_loop & (last[inverse] == source)].unique()
    position = torch.arange(twin.numel(), device=code.device)
    last[twin] = position + begin + new.numel()
    source = torch.where(is_loop, last[inverse], source)
    return source, torch.cat([new, distinct[twin]])


def _with_self_loops(
    shared: SharedTrees,
    graphs: _Graphs,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Append self-loops to the edges of nodes, and return GCN weights."""
    num_nodes = graphs.label.numel()
    source, target = graphs.edge_index
    ptr = row_ptr(target.bincount(minlength=num_nodes))
    ptr, source, weight = tree_gcn_norm(
        shared, graphs.label, ptr, source, num_nodes
    )
    edge_index = torch.stack([source, row_index(ptr)])
    return edge_index, graphs.edge_ptr + graphs.node_ptr, weight
