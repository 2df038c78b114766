import copy
from typing import Iterable, List

import torch
from torch_geometric.data import Data


def number_edges(graphs: Iterable[Data]) -> List[Data]:
    """Copies graphs and numbers all their edges by :obj:`e_id`, for
    :class:`~torch_geometric_ext.lottery.GraphLotteryPruner` to prune them in
    mini-batches.

    Args:
        graphs (Iterable[torch_geometric.data.Data]): The graphs.

    Returns:
        List[torch_geometric.data.Data]: Shallow copies, each with the numbers
        :obj:`e_id` of its edges (of :obj:`torch.long` and shape
        :obj:`[num_edges]`), which go on from one graph to the next.

    Raises:
        ValueError: If a graph has no :obj:`edge_index`.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> graphs = [Data(edge_index=edge_index, num_nodes=2)] * 2
        >>> [data.e_id.tolist() for data in number_edges(graphs)]
        [[0, 1], [2, 3]]
    """
    out: List[Data] = []
    begin = 0
    for data in graphs:
        if data.edge_index is None:
            raise ValueError(
                f"'graphs' needs to hold graphs with an 'edge_index', which "
                f'may be empty (got {data} as number {len(out)})'
            )
        data, end = copy.copy(data), begin + data.num_edges
        data.e_id = torch.arange(begin, end, device=data.edge_index.device)
        out.append(data)
        begin = end
    return out
