from typing import Tuple

import torch
from torch import Tensor
from torch_geometric.utils import cumsum


class EdgePairs:
    r"""The edges of a graph, grouped into pairs that are pruned together.

    In an undirected graph, a pair holds both directions of an edge. Parallel
    edges are matched in their order: the first of one direction with the
    first of the other, and so on. In a directed graph, each edge is a pair of
    its own. Self-loops belong to no pair and are never pruned.

    Args:
        edge_index (torch.Tensor): The edges.
        num_nodes (int): Number of nodes.

    Attributes:
        undirected (bool): Whether each edge has a reverse edge.
        pair (torch.Tensor): The pair of each edge, :obj:`-1` for self-loops.
        ends (torch.Tensor): The two nodes of each pair.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        row, col = edge_index
        self.is_loop = row == col
        index = (~self.is_loop).nonzero().flatten()
        row, col = row[index], col[index]
        key = torch.minimum(row, col) * num_nodes + torch.maximum(row, col)
        forward = row < col
        rank, (num_forward, num_backward), group = _ranks(key, forward)
        self.undirected = bool((num_forward == num_backward).all())

        self.pair = torch.full_like(self.is_loop, -1, dtype=torch.long)
        if self.undirected:
            ptr = cumsum(num_forward)
            self.pair[index] = ptr[group] + rank
            first = forward.nonzero().flatten()
            ends = torch.stack([row[first], col[first]])
            order = self.pair[index[first]].argsort()
            self.ends = ends[:, order]
        else:
            self.pair[index] = torch.arange(index.numel(), device=key.device)
            self.ends = torch.stack([row, col])

    @property
    def num_pairs(self) -> int:
        """Return the number of pairs."""
        return self.ends.size(1)

    def edge_mask(self, pair_mask: Tensor) -> Tensor:
        """Return a mask of the edges of some pairs and of all self-loops."""
        if self.num_pairs == 0:
            return self.is_loop.clone()
        return self.is_loop | pair_mask[self.pair.clamp(min=0)]


def _ranks(
    key: Tensor, forward: Tensor
) -> Tuple[Tensor, Tuple[Tensor, Tensor], Tensor]:
    """Return the rank of each edge among the edges of its key and direction,
    the number of edges of each key by direction, and the position of the key
    of each edge among all keys.
    """
    unique, group = key.unique(return_inverse=True)
    split = 2 * group + (~forward).long()
    count = torch.bincount(split, minlength=2 * unique.numel())
    order = split.argsort(stable=True)
    rank = torch.empty_like(order)
    position = torch.arange(order.numel(), device=key.device)
    rank[order] = position - cumsum(count)[split[order]]
    return rank, (count[0::2], count[1::2]), group
