import hashlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)

from torch_geometric_ext.ops.ragged import row_ptr

UNSEEN = torch.iinfo(torch.int64).max  # The position of other nodes.


class NeighborSampler(BaseSampler):
    r"""Sample neighbors of nodes for mini-batches, as in the `"Inductive
    Representation Learning on Large Graphs"
    <https://arxiv.org/abs/1706.02216>`_ paper, in plain PyTorch.

    :class:`~torch_geometric.loader.NeighborLoader` needs :obj:`pyg-lib` or
    :obj:`torch-sparse`, and is the faster choice where one of them is
    installed. This sampler needs neither, and gives mini-batches of the same
    attributes and order:

    .. code-block:: python

        sampler = NeighborSampler(data, num_neighbors=[10, 10])
        loader = NodeLoader(
            data,
            node_sampler=sampler,
            input_nodes=data.train_mask,
            batch_size=1024,
            shuffle=True,
        )

    Args:
        data (torch_geometric.data.Data): The graph, with :obj:`edge_index`.
        num_neighbors (Sequence[int]): The number of neighbors of each hop, at
            least zero, or :obj:`-1` for all of them.
        replace (bool, optional): Whether an edge may be drawn more than once.
            Nodes of fewer neighbors draw as many edges as all others then.
            (default: :obj:`False`)
        seed (int, optional): The seed of all draws. A draw depends on the
            seed, the epoch (see :meth:`set_epoch`) and the seed nodes only,
            not on the number of workers. By default, draws use the global
            random generator. (default: :obj:`None`)

    Raises:
        TypeError: If :obj:`data` is not a :class:`~torch_geometric.data.Data`,
            or another argument is of another type.
        ValueError: If :obj:`data` has no :obj:`edge_index` of pairs of its
            nodes, or another argument is out of its range.

    Example:
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.loader import NodeLoader
        >>> edge_index = torch.tensor([[1, 2, 3, 0], [0, 0, 1, 2]])
        >>> data = Data(edge_index=edge_index, num_nodes=4)
        >>> sampler = NeighborSampler(data, num_neighbors=[-1, -1], seed=0)
        >>> loader = NodeLoader(data, sampler, torch.tensor([0]))
        >>> batch = next(iter(loader))
        >>> batch.n_id, batch.e_id
        (tensor([0, 1, 2, 3]), tensor([0, 1, 2, 3]))
        >>> batch.edge_index
        tensor([[1, 2, 3, 0],
                [0, 0, 1, 2]])

    .. rubric:: Details

    Hop :math:`\ell` draws up to :obj:`num_neighbors[l]` edges that point to
    each node that the hop before it found first (hop 0: to the seed nodes).
    Each subset of the edges is equally likely. Edges point from neighbors to
    the nodes that they were drawn for, and are sorted by hop and target. Nodes
    are sorted by hop, seed nodes first.

    Without :obj:`replace`, hops draw by Floyd's algorithm of the `"Programming
    Pearls: A Sample of Brilliance" <https://doi.org/10.1145/30401.315746>`_
    column. A hop takes :math:`O(n k^2)` time for :math:`n` nodes and
    :math:`k` neighbors, whatever their degrees. The sampler holds
    :math:`O(N + E)` integers for :math:`N` nodes and :math:`E` edges.
    """

    def __init__(
        self,
        data: Data,
        num_neighbors: Sequence[int],
        *,
        replace: bool = False,
        seed: Optional[int] = None,
    ) -> None:
        _check(num_neighbors, replace, seed)
        row, col = _edges(data)
        self.num_neighbors = [int(x) for x in num_neighbors]
        self.replace = replace
        self.seed = seed
        self.num_nodes = int(data.num_nodes or 0)
        self._perm: Optional[Tensor] = None
        if bool((col[1:] < col[:-1]).any()):
            col, self._perm = col.sort(stable=True)
            row = row[self._perm]
        self._row = row
        self._ptr = row_ptr(torch.bincount(col, minlength=self.num_nodes))
        # Workers that outlive an epoch read it from shared memory:
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()
        # Arrays of `UNSEEN` for each node, at most one for each thread:
        self._free: List[Tensor] = []

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, such that epochs draw other neighbors of the same
        seed nodes. Only needed with a :obj:`seed`.

        Args:
            epoch (int): The epoch.
        """
        self._epoch.fill_(epoch)

    @property
    def edge_permutation(self) -> Optional[Tensor]:
        """Return the edges sorted by their targets, or :obj:`None` if they
        are sorted.
        """
        return self._perm

    def sample_from_nodes(
        self, index: NodeSamplerInput, **kwargs: Any
    ) -> SamplerOutput:
        """Sample a subgraph around seed nodes.

        Args:
            index (NodeSamplerInput): The seed nodes, in any order. Equal ones
                remain apart.
            **kwargs (optional): Not used.

        Raises:
            ValueError: If a seed node is not a node of the graph.
            NotImplementedError: If seed nodes have times.
        """
        self._check_input(index)
        seed = index.node.long()
        generator = self._generator(seed)
        position = self._take_free()
        order = torch.arange(seed.numel())
        position.scatter_reduce_(0, seed, order, 'amin')
        nodes, rows, cols, edges = [seed], [], [], []
        num_nodes = seed.numel()
        for size in self.num_neighbors:
            target, edge = self._draw(nodes[-1], size, generator)
            source = self._row.index_select(0, edge)
            new = _relabel(position, source, num_nodes)
            edges.append(edge)
            rows.append(position.index_select(0, source))
            cols.append(target.add_(num_nodes - nodes[-1].numel()))
            nodes.append(new)
            num_nodes += new.numel()
        node = torch.cat(nodes)
        position.index_fill_(0, node, UNSEEN)
        self._free.append(position)
        return SamplerOutput(
            node,
            torch.cat(rows),
            torch.cat(cols),
            torch.cat(edges),
            num_sampled_nodes=[x.numel() for x in nodes],
            num_sampled_edges=[x.numel() for x in edges],
            metadata=(index.input_id, None),
        )

    def sample_from_edges(
        self,
        index: EdgeSamplerInput,
        neg_sampling: Optional[NegativeSampling] = None,
    ) -> SamplerOutput:
        """Raise an error, since links are not supported."""
        raise NotImplementedError(
            f"'{self.__class__.__name__}' does not sample from links; use "
            f"'torch_geometric.loader.LinkNeighborLoader'"
        )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_neighbors={self.num_neighbors}, '
            f'replace={self.replace}, seed={self.seed})'
        )

    def _check_input(self, index: NodeSamplerInput) -> None:
        name, node = self.__class__.__name__, index.node
        if index.time is not None:
            raise NotImplementedError(
                f"'{name}' does not sample by time; use "
                f"'torch_geometric.loader.NeighborLoader'"
            )
        if node.numel() == 0:
            return
        low, high = (int(x) for x in node.aminmax())
        if low < 0 or high >= self.num_nodes:
            raise ValueError(
                f"seed nodes of '{name}' need to be in "
                f'[0, {self.num_nodes}) (got {low} to {high})'
            )

    def _generator(self, node: Tensor) -> Optional[torch.Generator]:
        if self.seed is None:
            return None
        key = f'{self.seed}:{int(self._epoch)}:'.encode()
        content = hashlib.sha256(key + node.numpy().tobytes()).digest()
        seed = int.from_bytes(content[:7], 'little')
        return torch.Generator().manual_seed(seed)

    def _take_free(self) -> Tensor:
        """Return an array of :obj:`UNSEEN` that no other thread uses. An
        interrupted draw does not give it back.
        """
        try:
            return self._free.pop()
        except IndexError:
            return torch.full((self.num_nodes,), UNSEEN)

    def _draw(
        self, node: Tensor, size: int, generator: Optional[torch.Generator]
    ) -> Tuple[Tensor, Tensor]:
        """Return edges that point to some nodes, sorted by these nodes, and
        the position of the node of each edge.
        """
        # Much faster than an index in brackets:
        start = self._ptr.index_select(0, node)
        degree = self._ptr.index_select(0, node + 1) - start
        count = degree
        if size >= 0 and self.replace:
            count = (degree > 0) * size
        elif size >= 0:
            count = degree.clamp(max=size)
        ptr = row_ptr(count)
        target = torch.arange(node.numel()).repeat_interleave(count)
        if size >= 0 and self.replace:
            degree = degree.index_select(0, target)
            edge = _random_below(degree, generator)
            return target, edge.add_(start.index_select(0, target))
        first = (start - ptr[:-1]).index_select(0, target)
        edge = torch.arange(target.numel()).add_(first)
        many = (degree > count).nonzero().flatten()
        if many.numel() > 0 and size > 0:
            chosen = _random_subsets(degree[many], size, generator)
            slot = ptr[many] + torch.arange(size)[:, None]
            chosen += start[many]
            edge.scatter_(0, slot.flatten(), chosen.flatten())
        return target, edge


def _relabel(position: Tensor, source: Tensor, num_nodes: int) -> Tensor:
    """Return the distinct nodes of :obj:`source` without a position, in their
    order, and set their positions from :obj:`num_nodes` on.
    """
    is_new = position.index_select(0, source) == UNSEEN
    new = source.masked_select(is_new)
    order = torch.arange(new.numel())
    position.scatter_reduce_(0, new, order, 'amin')
    new = new.masked_select(position.index_select(0, new) == order)
    order = torch.arange(num_nodes, num_nodes + new.numel())
    position.scatter_(0, new, order)
    return new


def _random_below(
    bound: Tensor, generator: Optional[torch.Generator]
) -> Tensor:
    """Return random integers in :math:`[0, b)` for each bound. The product of
    a bound and the largest random number is rounded to a smaller number.
    """
    x = torch.rand(bound.shape, dtype=torch.double, generator=generator)
    return x.mul_(bound).long()


def _random_subsets(
    total: Tensor, size: int, generator: Optional[torch.Generator]
) -> Tensor:
    """Return random subsets of the first :obj:`total` integers, one in each
    column, for totals that exceed the size.
    """
    last = total + torch.arange(-size, 0)[:, None]
    draw = _random_below(last + 1, generator)
    out = torch.empty_like(draw)
    for i in range(size):  # Floyd: a number that was drawn becomes the last.
        seen = (out[:i] == draw[i]).any(dim=0)
        torch.where(seen, last[i], draw[i], out=out[i])
    return out


def _check(num_neighbors: Any, replace: Any, seed: Any) -> None:
    """Raise if the options of a sampler are invalid."""
    is_sequence = isinstance(num_neighbors, Sequence)
    is_sequence = is_sequence and not isinstance(num_neighbors, str)
    if not is_sequence or not all(map(_is_integer, num_neighbors)):
        raise TypeError(
            f"'num_neighbors' of 'NeighborSampler' needs to be a sequence of "
            f'integers, one for each hop (got {num_neighbors!r})'
        )
    if len(num_neighbors) == 0 or min(num_neighbors) < -1:
        raise ValueError(
            f"'num_neighbors' of 'NeighborSampler' needs to hold numbers of "
            f'at least zero, or -1 for all neighbors (got {num_neighbors!r})'
        )
    if not isinstance(replace, bool):
        raise TypeError(
            f"'replace' of 'NeighborSampler' needs to be a bool (got "
            f'{replace!r})'
        )
    if seed is not None and not _is_integer(seed):
        raise TypeError(
            f"'seed' of 'NeighborSampler' needs to be an integer or None (got "
            f'{seed!r})'
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _edges(data: Any) -> Tuple[Tensor, Tensor]:
    """Return the sources and targets of the edges of a graph, on CPU."""
    if not isinstance(data, Data):
        raise TypeError(
            f"'data' of 'NeighborSampler' needs to be a 'Data' (got "
            f'{type(data)})'
        )
    edge_index = data.get('edge_index')
    if not isinstance(edge_index, Tensor) or edge_index.layout != (
        torch.strided
    ):
        raise ValueError(
            f"'data' of 'NeighborSampler' needs to hold its edges as a dense "
            f"'edge_index' (got {data})"
        )
    is_pair = edge_index.dim() == 2 and edge_index.size(0) == 2
    if not is_pair or edge_index.dtype not in [torch.int64, torch.int32]:
        raise ValueError(
            f"'edge_index' of 'data' needs to be of torch.int64 and of shape "
            f'[2, num_edges] (got {edge_index.dtype} and '
            f'{list(edge_index.shape)})'
        )
    row, col = edge_index.cpu().long()
    if row.numel() > 0:
        low, high = (int(x) for x in edge_index.aminmax())
        if low < 0 or high >= (data.num_nodes or 0):
            raise ValueError(
                f"'edge_index' of 'data' needs to be in [0, "
                f'{data.num_nodes}), its nodes (got {low} to {high})'
            )
    return row, col
