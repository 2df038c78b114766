import copy
from typing import Any, Optional

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, Dataset
from torch_geometric.utils import cumsum, select

from torch_geometric_ext.data.digest import digest

# What mini-batches hold that is of no edge, even if there are as many:
OTHER_KEYS = ['input_id', 'num_sampled_edges', 'num_sampled_nodes', 'ptr']


def prune_edges(
    data: Any, edge_mask: Tensor, edges_digest: Optional[str] = None
) -> Any:
    """A copy of a graph or mini-batch with some of its edges, which are
    numbered by :obj:`e_id` if there is one, and else need to have a digest.
    Labels of edges stay.
    """
    if not isinstance(data, Data):
        raise TypeError(
            f"'data' needs to be a 'Data' or a loader of such mini-batches to "
            f'have edges pruned (got {type(data)})'
        )
    if data.get('edge_index') is None or 'adj_t' in data:
        raise ValueError(
            f"'data' needs to hold its edges as 'edge_index', and not as "
            f"'adj_t', to have them pruned (got {data})"
        )
    edge_mask = edge_mask.to(data.edge_index.device)
    if 'e_id' in data:
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
            f"graph that was searched, or their numbers 'e_id', as of "
            f"'number_edges' (got {data.num_edges} edges)"
        )
    elif edges_digest not in [None, digest_edges(data)]:
        raise ValueError(
            "'edge_index' of 'data' needs to hold the edges of the graph that "
            "was searched, in their order, or 'data' their numbers 'e_id', as "
            "of 'number_edges' (got others)"
        )
    out = copy.copy(data)
    keys = [key for key in data.keys() if _is_of_edges(data, key)]
    ptr = cumsum(edge_mask.long())
    for key in keys:
        dim = data.__cat_dim__(key, data[key])
        out[key] = select(data[key], edge_mask, dim)
        if f'{key}_ptr' in data:  # As 'follow_batch' makes it.
            out[f'{key}_ptr'] = ptr[data[f'{key}_ptr']]
    if 'num_sampled_edges' in data:  # In each hop, one after another.
        hops = edge_mask.split(data.num_sampled_edges)
        out.num_sampled_edges = [int(hop.sum()) for hop in hops]
    if getattr(data, '_slice_dict', None) is not None:  # Of a 'Batch'.
        ptr, slices = ptr.cpu(), dict(data._slice_dict)
        slices.update({x: ptr[slices[x]] for x in keys if x in slices})
        out._slice_dict = slices
    if out.num_nodes != data.num_nodes:  # It is inferred from edges.
        out.num_nodes = data.num_nodes
    return out


def digest_edges(data: Data) -> str:
    """Tells edges from others, and from themselves in another order."""
    return digest(data.edge_index.long())


def _is_of_edges(data: Data, key: str) -> bool:
    """Whether there is a value for each edge. Labels are of other edges, and
    so are other indices, even if there are as many.
    """
    # PyG takes 'e_id' for a feature of nodes if there are as many:
    if key in ['edge_index', 'edge_index_batch', 'e_id']:
        return True
    if key in OTHER_KEYS or 'edge_label' in key:
        return False
    return 'index' not in key and data.is_edge_attr(key)


def whole_graph(data: Any) -> Data:
    """The graph whose edges mini-batches number by :obj:`e_id`."""
    graph, default = data, None
    if not isinstance(data, (Data, Dataset)):
        graph = getattr(data, 'data', None)
    if not isinstance(graph, Data):
        graphs = getattr(data, 'dataset', data)
        if isinstance(graphs, (list, tuple, Dataset)):
            graph = Batch.from_data_list(list(graphs))
            default = torch.empty(0)
    if (
        not isinstance(graph, Data)
        or graph.get('edge_index') is None
        or 'adj_t' in graph  # It would keep all edges.
    ):
        raise ValueError(
            f"'data' needs to hold its edges as 'edge_index', and not as "
            f"'adj_t', to have them pruned, and a loader its graph as 'data' "
            f"or its graphs as 'dataset' (got {type(data)} of {graph})"
        )
    ids = graph.get('e_id', default)
    numbers = torch.arange(graph.num_edges)
    if ids is not None and not torch.equal(ids.cpu().long(), numbers):
        raise ValueError(
            "graphs of 'data' need to number their edges by 'e_id' to be "
            "pruned; 'number_edges' does that"
        )
    return graph
