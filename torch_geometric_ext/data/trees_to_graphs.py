from typing import Dict, NamedTuple, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.tree_gcn_norm import tree_gcn_norm
from torch_geometric_ext.ops.ragged import (
    first_occurrence,
    row_index,
    row_ptr,
    take_rows,
)


class _Graphs(NamedTuple):
    """Graphs side by side. Roots come first in each of them."""

    node_ptr: Tensor
    edge_ptr: Tensor
    label: Tensor  # Of each node.
    root: Tensor  # The entry of each node in `SharedTrees.tree`, or -1.
    edge_index: Tensor
    edge_label: Tensor


def unshare_graphs(
    shared: SharedTrees,
    self_loops: bool = True,
) -> InMemoryDataset:
    """Shared trees as plain graphs: each graph holds one node for each of its
    distinct trees, the roots, and further nodes only where a root has a child
    whose tree, of one level less, no other node has.

    Nodes of such a graph read the tree they stand for, of its depth: the
    children of a node stand for trees at least as deep as they are read. A
    node whose tree is that of its own child becomes a self-loop, or, if these
    are not wanted, gets a twin.
    """
    graphs = _find_nodes(shared, self_loops)
    attrs = {'x': shared.node_attrs['x'][graphs.label]}
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
    return _as_dataset(attrs, graphs.node_ptr, edge_ptr, edge_attrs)


def unshared_bytes(dataset: InMemoryDataset) -> Tensor:
    """The number of bytes of the tensors of each graph."""
    out = torch.zeros(dataset.len(), dtype=torch.long)
    for key, ptr in dataset.slices.items():
        value = dataset._data[key]
        dim = dataset._data.__cat_dim__(key, value)
        row = value.numel() // max(value.size(dim), 1) * value.element_size()
        out += ptr.diff().cpu() * row
    return out


def _find_nodes(shared: SharedTrees, self_loops: bool) -> _Graphs:
    device = shared.tree.device
    num_graphs = len(shared)
    graph, ids = row_index(shared.graph_ptr), shared.tree.long()
    num_roots = ids.numel()
    begin = 0  # Nodes of the current depth; those before are deeper.
    sources, targets, labels = [], [], []
    for level, num_ids in zip(shared.levels[::-1], shared.num_trees[-2::-1]):
        ptr, position = take_rows(level.ptr, ids[begin:])
        target = row_index(ptr) + begin
        child = level.child[position]
        begin, ids = ids.numel(), level.own[ids].long()
        code = torch.cat([graph * num_ids + ids, graph[target] * num_ids])
        code[begin:] += child
        source, new = _find_children(code, begin, target, self_loops)
        graph = torch.cat([graph, new // num_ids])
        ids = torch.cat([ids, new % num_ids])
        sources.append(source)
        targets.append(target)
        if level.edge_label.numel() > 0:
            labels.append(level.edge_label[position])

    root = torch.arange(ids.numel(), device=device)
    root[num_roots:] = -1
    order = graph.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=device)
    source, target = rank[torch.cat(sources)], rank[torch.cat(targets)]
    edge_order = target.argsort(stable=True)
    edge_index = torch.stack([source, target])[:, edge_order]
    edge_label = torch.cat(labels) if labels else ids.new_empty(0)
    edge_graph = graph[order][edge_index[1]]
    return _Graphs(
        row_ptr(graph.bincount(minlength=num_graphs)),
        row_ptr(edge_graph.bincount(minlength=num_graphs)),
        ids[order],
        root[order],
        edge_index,
        edge_label[edge_order] if labels else edge_label,
    )


def _find_children(
    code: Tensor,
    begin: int,
    target: Tensor,
    self_loops: bool,
) -> Tuple[Tensor, Tensor]:
    """The nodes that are the children of `target`, and the codes of those
    that are new. Codes are those of all nodes, then of all children.
    """
    # A child is the first node of its graph that has its tree, or new:
    distinct, inverse = code.unique(return_inverse=True)
    node = first_occurrence(inverse, distinct.numel())
    is_new = node >= begin
    new = distinct[is_new]
    node[is_new] = torch.arange(new.numel(), device=code.device) + begin
    inverse, own = inverse[begin:], inverse[:begin]
    source = node[inverse]
    if self_loops:
        return source, new

    # Instead of its own parent, it is the last such node, or its twin:
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


def _as_dataset(
    attrs: Dict[str, Tensor],
    node_ptr: Tensor,
    edge_ptr: Tensor,
    edge_attrs: Dict[str, Tensor],
) -> InMemoryDataset:
    graph_ptr = torch.arange(node_ptr.numel())
    ptrs = dict.fromkeys(attrs, graph_ptr)
    ptrs.update(dict.fromkeys(['edge_index', *edge_attrs], edge_ptr.cpu()))
    ptrs.update(
        dict.fromkeys(['x', 'root_mask', 'root_count'], node_ptr.cpu())
    )
    return as_dataset(attrs, ptrs)


def as_dataset(
    attrs: Dict[str, Tensor],
    slices: Dict[str, Tensor],
) -> InMemoryDataset:
    """A data set of collated graphs."""
    out = InMemoryDataset()
    out._data, out.slices = Data.from_dict(attrs), slices
    return out
