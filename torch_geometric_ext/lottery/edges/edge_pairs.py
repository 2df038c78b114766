import torch
from torch import Tensor


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
        key, order = key.sort(stable=True)
        forward = (row < col)[order]
        # Numbers of edges of each direction, up to each edge:
        counts = forward.cumsum(0), (~forward).cumsum(0)
        is_last = torch.ones_like(forward)
        is_last[:-1] = key[1:] != key[:-1]
        balanced = (counts[0] == counts[1]) | ~is_last
        self.undirected = bool(balanced.all())

        self.pair = torch.full_like(self.is_loop, -1, dtype=torch.long)
        if self.undirected:
            # Earlier keys have as many edges of one direction as of the other:
            self.pair[index[order]] = torch.where(forward, *counts) - 1
            first = order[forward]
            self.ends = torch.stack([row[first], col[first]])
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
