import copy
from typing import Iterable, List

import torch
from torch_geometric.data import Data

from torch_geometric_ext.lottery.check import check_edges


def number_edges(graphs: Iterable[Data]) -> List[Data]:
    """Return copies of graphs whose edges are numbered by :obj:`e_id`, so that
    :class:`~torch_geometric_ext.lottery.GraphLotteryPruner` can prune them in
    mini-batches.

    Args:
        graphs (Iterable[torch_geometric.data.Data]): The graphs.

    Returns:
        List[torch_geometric.data.Data]: Shallow copies with consecutive
        numbers :obj:`e_id` of their edges (:obj:`torch.long`, of shape
        :obj:`[num_edges]`). The numbers of a graph follow those of the graph
        before.

    Raises:
        ValueError: If a graph has no :obj:`edge_index`, or edges of other
            nodes.
        TypeError: If :obj:`graphs` holds something else, or is one graph.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> graphs = [Data(edge_index=edge_index, num_nodes=2)] * 2
        >>> [data.e_id.tolist() for data in number_edges(graphs)]
        [[0, 1], [2, 3]]
    """
    if isinstance(graphs, Data) or not isinstance(graphs, Iterable):
        raise TypeError(
            f"'graphs' needs to be a list of graphs (got {type(graphs)})"
        )
    out: List[Data] = []
    begin = 0
    for data in graphs:
        if not isinstance(data, Data):
            raise TypeError(
                f"'graphs' needs to hold 'Data' objects (got {type(data)} as "
                f'number {len(out)})'
            )
        if data.edge_index is None:
            raise ValueError(
                f"'graphs' needs to hold graphs with an 'edge_index', which "
                f'may be empty (got {data} as number {len(out)})'
            )
        check_edges(data, f"number {len(out)} of 'graphs'")
        data, end = copy.copy(data), begin + data.num_edges
        data.e_id = torch.arange(begin, end, device=data.edge_index.device)
        out.append(data)
        begin = end
    return out
