import copy
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, Dataset
from torch_geometric.utils import select

# What mini-batches hold that is of no edge, even if there are as many:
OTHER_KEYS = [
    'dst_neg_index',
    'dst_pos_index',
    'input_id',
    'num_sampled_nodes',
    'ptr',
    'src_index',
]


def prune_edges(data: Any, edge_mask: Tensor) -> Any:
    """A copy of a graph or mini-batch with some of its edges, which are
    numbered by :obj:`e_id` if there is one. Labels of edges stay.
    """
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
    out = copy.copy(data)
    for key, value in data:
        # PyG takes 'e_id' for a feature of nodes if there are as many:
        if key == 'e_id':
            out[key] = value[edge_mask]
        elif key == 'num_sampled_edges':  # In each hop, one after another.
            hops = edge_mask.split(value)
            out[key] = [int(hop.sum()) for hop in hops]
        elif key in OTHER_KEYS or key.startswith('edge_label'):
            continue
        elif data.is_edge_attr(key):
            dim = data.__cat_dim__(key, value)
            out[key] = select(value, edge_mask, dim)
    if out.num_nodes != data.num_nodes:  # It is inferred from edges.
        out.num_nodes = data.num_nodes
    return out


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
