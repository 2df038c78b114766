import copy
from typing import Any, Optional

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, Dataset
from torch_geometric.utils import cumsum, select

from torch_geometric_ext.data.digest import digest

# Attributes of mini-batches that are never of edges, even if as long:
OTHER_KEYS = ['input_id', 'num_sampled_edges', 'num_sampled_nodes', 'ptr']
INTEGERS = [torch.int64, torch.int32]  # Types of indices.


def prune_edges(
    data: Any, edge_mask: Tensor, edges_digest: Optional[str] = None
) -> Any:
    """Return a copy of a graph or mini-batch without pruned edges.

    Edges are identified by their numbers :obj:`e_id`, if there are any, or by
    their order, which a digest verifies. Labels of edges are not pruned.

    Args:
        data (torch_geometric.data.Data): The graph or mini-batch.
        edge_mask (torch.Tensor): The edges that remain (bool).
        edges_digest (str, optional): The digest of the edges of the graph
            that was searched. (default: :obj:`None`)
    """
    if not isinstance(data, Data):
        raise TypeError(
            f"'data' needs to be a 'Data' or a loader of such mini-batches to "
            f'prune edges (got {type(data)})'
        )
    if data.get('edge_index') is None or 'adj_t' in data:
        raise ValueError(
            f"'data' needs to hold its edges as 'edge_index', and not as "
            f"'adj_t', to prune them (got {data})"
        )
    edge_mask = _own_mask(data, edge_mask, edges_digest)
    out = copy.copy(data)
    keys = [key for key in data.keys() if _is_of_edges(data, key)]
    ptr = cumsum(edge_mask.long())
    for key in keys:
        dim = data.__cat_dim__(key, data[key])
        out[key] = select(data[key], edge_mask, dim)
        if f'{key}_ptr' in data:  # Created by 'follow_batch'.
            out[f'{key}_ptr'] = ptr[data[f'{key}_ptr']]
    if 'num_sampled_edges' in data:  # Counts of consecutive hops.
        hops = edge_mask.split(data.num_sampled_edges)
        out.num_sampled_edges = [int(hop.sum()) for hop in hops]
    if getattr(data, '_slice_dict', None) is not None:  # A 'Batch'.
        ptr, slices = ptr.cpu(), dict(data._slice_dict)
        slices.update({x: ptr[slices[x]] for x in keys if x in slices})
        out._slice_dict = slices
    if out.num_nodes != data.num_nodes:  # PyG infers it from edges.
        out.num_nodes = data.num_nodes
    return out


def _own_mask(
    data: Data, edge_mask: Tensor, edges_digest: Optional[str]
) -> Tensor:
    """Return the mask of the edges of a graph or mini-batch."""
    edge_mask = edge_mask.to(data.edge_index.device)
    if 'e_id' in data:
        _check_numbers(data.e_id, edge_mask.numel())
        edge_mask = edge_mask[data.e_id.to(edge_mask.device)]
        if edge_mask.numel() != data.num_edges:
            raise ValueError(
                f"'data' needs to hold one number 'e_id' for each edge; "
                f'transform it before it is sampled (got '
                f'{edge_mask.numel()} numbers of {data.num_edges} edges)'
            )
    elif data.num_edges != edge_mask.numel():
        raise ValueError(
            f"'data' needs to have the {edge_mask.numel()} edges of the "
            f"graph that was searched, or their numbers 'e_id', as from "
            f"'number_edges' (got {data.num_edges} edges)"
        )
    elif edges_digest not in [None, digest_edges(data)]:
        raise ValueError(
            "'edge_index' of 'data' needs to hold the edges of the graph that "
            "was searched, in their order, or 'data' their numbers 'e_id', as "
            "from 'number_edges' (got other edges)"
        )
    return edge_mask


def _check_numbers(e_id: Any, num_edges: int) -> None:
    """Raise unless edges have numbers of the graph (their range is checked on
    CPU only, which needs no synchronization).
    """
    if not isinstance(e_id, Tensor) or e_id.dtype not in INTEGERS:
        got = e_id.dtype if isinstance(e_id, Tensor) else type(e_id)
        raise ValueError(
            f"'e_id' of 'data' needs to be of torch.int64 (got {got})"
        )
    if e_id.device.type == 'cpu' and e_id.numel() > 0:
        low, high = (int(value) for value in e_id.aminmax())
        if low < 0 or high >= num_edges:
            raise ValueError(
                f"'e_id' of 'data' needs to be in [0, {num_edges}), the edges "
                f'of the graph that was searched (got {low} to {high})'
            )


def digest_edges(data: Data) -> str:
    """Return a digest of the edges of a graph in their order."""
    return digest(data.edge_index.long())


def _is_of_edges(data: Data, key: str) -> bool:
    """Return whether an attribute holds a value for each edge. Labels and
    other indices do not, even if they are as long.
    """
    # PyG takes 'e_id' for an attribute of nodes if it is as long:
    if key in ['edge_index', 'edge_index_batch', 'e_id']:
        return True
    if key in OTHER_KEYS or 'edge_label' in key:
        return False
    return 'index' not in key and data.is_edge_attr(key)


def whole_graph(data: Any) -> Data:
    """Return the graph whose edges mini-batches number by :obj:`e_id`."""
    graph, default = data, None
    if not isinstance(data, (Data, Dataset)):
        graph = getattr(data, 'data', None)
    if not isinstance(graph, Data):
        graphs = getattr(data, 'dataset', data)
        if isinstance(graphs, (list, tuple, Dataset)):
            graphs = list(graphs)
            if all(isinstance(x, Data) for x in graphs):
                graph = Batch.from_data_list(graphs)
                default = torch.empty(0)
    if (
        not isinstance(graph, Data)
        or graph.get('edge_index') is None
        or 'adj_t' in graph  # Edges in 'adj_t' are not pruned.
    ):
        raise ValueError(
            f"'data' needs to hold its edges as 'edge_index', and not as "
            f"'adj_t', to prune them, and a loader its graph as 'data' or its "
            f"graphs as 'dataset' (got {type(data)} of {graph})"
        )
    ids = graph.get('e_id', default)
    numbers = torch.arange(graph.num_edges)
    if ids is not None and not torch.equal(ids.cpu().long(), numbers):
        raise ValueError(
            "graphs of 'data' need to number their edges by 'e_id' to be "
            "pruned; number them with 'number_edges' (got other numbers)"
        )
    return graph
