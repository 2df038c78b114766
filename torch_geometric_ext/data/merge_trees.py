from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.data.shared_trees import SharedTrees, to_int32
from torch_geometric_ext.ops.computation_tree_ids import TreeLevel
from torch_geometric_ext.ops.ragged import row_ptr
from torch_geometric_ext.ops.unique_rows import unique_rows
from torch_geometric_ext.ops.unique_trees import unique_trees


def merge_trees(
    parts: Sequence[SharedTrees],
    known: Optional[SharedTrees] = None,
) -> SharedTrees:
    """Concatenate data sets of shared trees, and store equal trees once.

    Args:
        parts (Sequence[SharedTrees]): The data sets.
        known (SharedTrees, optional): Trees that keep their ids. Its graphs
            are not part of the result. (default: :obj:`None`)

    Raises:
        ValueError: If attributes, their types or their shapes differ.
    """
    if len(parts) == 1 and known is None:
        return parts[0]
    tables = [*parts] if known is None else [known, *parts]
    for name in ['node_attrs', 'edge_attrs']:
        _check_same([getattr(part, name) for part in tables], name)
    graph_attrs = _merge_graph_attrs([part.graph_attrs for part in parts])
    node_attrs, edge_attrs, levels, ids = _merge_levels(
        tables, keep_first=known is not None
    )
    return SharedTrees(
        num_layers=parts[0].num_layers,
        gcn_norm=parts[0].gcn_norm,
        has_self_loops=any(part.has_self_loops for part in tables),
        node_attrs=node_attrs,
        edge_attrs=edge_attrs,
        levels=levels,
        graph_ptr=row_ptr(
            torch.cat([part.graph_ptr.diff() for part in parts])
        ),
        tree=_relabel([part.tree for part in parts], ids[-len(parts) :]).int(),
        count=torch.cat([part.count for part in parts]),
        graph_attrs=graph_attrs,
        num_nodes=sum(part.num_nodes for part in parts),
        num_edges=sum(part.num_edges for part in parts),
        num_bytes=sum(part.num_bytes for part in parts),
    )


def _merge_levels(
    tables: Sequence[SharedTrees],
    keep_first: bool,
) -> Tuple[
    Dict[str, Tensor], Dict[str, Tensor], List[TreeLevel], Sequence[Tensor]
]:
    """Return the distinct labels of nodes and edges, the distinct trees, and
    the new ids of the trees of the highest level of each table.
    """
    node_attrs, ids = _merge_labels(
        [table.node_attrs for table in tables], keep_first
    )
    edge_attrs, edge_ids = _merge_labels(
        [table.edge_attrs for table in tables], keep_first
    )
    levels = []
    for level in zip(*(table.levels for table in tables)):
        # Trees of all tables, with the new ids of the level below:
        own = _relabel([part.own for part in level], ids)
        child = _relabel([part.child for part in level], ids)
        ptr = row_ptr(torch.cat([part.ptr.diff() for part in level]))
        edge_label: Optional[Tensor] = None
        if edge_attrs:
            edge_label = _relabel([p.edge_label for p in level], edge_ids)
        sizes = [part.own.numel() for part in level]
        num_known = sizes[0] if keep_first else 0
        out = unique_trees(own, ptr, child, edge_label, num_known=num_known)
        levels.append(to_int32(TreeLevel(own[out.representative], *out[2:])))
        ids = out.ids.split(sizes)
    return node_attrs, edge_attrs, levels, ids


def _merge_labels(
    tables: List[Dict[str, Tensor]],
    keep_first: bool,
) -> Tuple[Dict[str, Tensor], Sequence[Tensor]]:
    """Return the distinct rows of tables of labels, and the new ids of each
    table.
    """
    if not tables[0]:
        return {}, []
    table = {k: torch.cat([t[k] for t in tables]) for k in tables[0]}
    sizes = [next(iter(t.values())).size(0) for t in tables]
    columns = [
        unique_rows(x.view(-1, 1) if x.dim() == 1 else x)[0]
        for x in table.values()
    ]
    ids, index = unique_rows(
        torch.stack(columns, dim=1), sizes[0] if keep_first else 0
    )
    return {key: x[index] for key, x in table.items()}, ids.split(sizes)


def _merge_graph_attrs(
    tables: Sequence[Dict[str, Any]],
) -> Dict[str, Any]:
    """Concatenate the attributes that all tables have. The others belong to
    nodes: in a table of graphs with one node each, they have one row a graph.
    """
    keys = [key for key in tables[0] if all(key in t for t in tables)]
    if any('y' in table for table in tables) and 'y' not in keys:
        raise ValueError("all graphs need 'y', or none of them")
    return {key: _concatenate(key, [t[key] for t in tables]) for key in keys}


def _concatenate(key: str, values: Sequence[Any]) -> Any:
    tensors = [value for value in values if isinstance(value, Tensor)]
    texts = [value for value in values if not isinstance(value, Tensor)]
    if not tensors:
        return [text for value in texts for text in value]
    shapes = [list(value.shape[1:]) for value in tensors]
    other = next((s for s in shapes if s != shapes[0]), None)
    if texts or other is not None:
        raise ValueError(
            f"'{key}' needs the same shape in all graphs (got {shapes[0]} and "
            f'{"strings" if texts else other})'
        )
    return torch.cat(tensors)


def _relabel(values: Sequence[Tensor], ids: Sequence[Tensor]) -> Tensor:
    sizes = [value.numel() for value in values]
    out = ids[0].new_empty(sum(sizes))
    for new, value, part in zip(ids, values, out.split(sizes)):
        torch.index_select(new, 0, value, out=part)
    return out


def _check_same(tables: Sequence[Dict[str, Tensor]], name: str) -> None:
    first, *others = (
        {key: (x.dtype, list(x.shape[1:])) for key, x in table.items()}
        for table in tables
    )
    for other in others:
        if first != other:
            raise ValueError(
                f"all graphs need the same '{name}' (got {first} and {other})"
            )
