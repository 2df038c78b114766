"""A graph whose features and edges stay the same for many epochs."""

import copy
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Callable, Dict, Hashable, Iterator, Optional, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_geometric_ext.full_batch.adjacency import Adjacency
from torch_geometric_ext.full_batch.check_static import (
    EDGE_KEYS,
    check_static,
)
from torch_geometric_ext.full_batch.sparse_input import MAX_DENSITY
from torch_geometric_ext.full_batch.subgraph import Selection, Subgraph

MAX_FRACTION = 0.9  # A larger subgraph saves less than it copies (choice).
MAX_SUBGRAPHS = 8  # Masks of training, validation and test, and some more.

# Odd factors of SplitMix64, as signed integers:
SPLIT_MIX = [0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64]

IS_SUBGRAPH = '_is_static_subgraph'  # Marks the edges of subgraphs.


@contextmanager
def caching(device: torch.device) -> Iterator[None]:
    """Switch off autograd, autocast and inference mode, so that cached tensors
    are valid in every mode.
    """
    autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.no_grad(), autocast:
        yield


class StaticGraph:
    r"""Hold a graph whose features and edges do not change, and cache what
    models compute of it again and again.

    :func:`~torch_geometric_ext.full_batch.accelerate` runs models on it. One
    graph serves any number of models, which share its caches.

    Features and edges are not copied. To change features, call
    :meth:`update`; after a change in place, models raise an error.

    Args:
        data (torch_geometric.data.Data): The graph, with features :obj:`x` of
            shape :math:`(|\mathcal{V}|, F)` and edges :obj:`edge_index` of
            shape :math:`(2, |\mathcal{E}|)` (int64). Edge weights
            :obj:`edge_weight` and edge features :obj:`edge_attr` are passed
            on to models that take them. Self-loops, multi-edges and directed
            edges are allowed.

    Raises:
        TypeError: If :obj:`data` is no :class:`~torch_geometric.data.Data`.
        ValueError: If features or edges are missing, sparse, need gradients,
            or do not fit together.

    Memory: compressed rows take 64 bytes for each edge in the worst case;
    cached aggregations take as much as the features that they aggregate, and
    24 bytes for each value that is not zero if few are. Caches of the last
    eight subgraphs are kept.

    Example:
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> data = Data(x=torch.randn(3, 8), edge_index=edge_index)
        >>> StaticGraph(data)
        StaticGraph(num_nodes=3, num_edges=4, num_features=8)
    """

    _undirected: Optional[bool]

    def __init__(self, data: Data) -> None:
        check_static(data)
        self.data = copy.copy(data)
        self._reset()

    def update(self, x: Tensor) -> None:
        """Replace the features, and forget what was computed of them.

        Args:
            x (torch.Tensor): The features, with a row for each node.
        """
        data = copy.copy(self.data)
        data.x = x
        if x.dim() != 2 or x.size(0) != self.num_nodes:
            raise ValueError(
                f"'x' needs to have a row for each of the {self.num_nodes} "
                f'nodes (got shape {list(x.shape)})'
            )
        check_static(data)
        self.data = data
        self._reset()

    def with_edges(self, data: Data) -> 'StaticGraph':
        """Return a graph with other edges, which shares the compressed
        features.

        Args:
            data (torch_geometric.data.Data): The graph, with the same
                features :obj:`x`.
        """
        if data.x is not self.data.x:
            raise ValueError("'data' needs to hold the same features 'x'")
        check_static(data)
        out = object.__new__(StaticGraph)
        out.data, out.whole = copy.copy(data), self.whole
        out._forget()
        return out

    @property
    def num_nodes(self) -> int:
        """The number of nodes."""
        return self.data.x.size(0)

    @property
    def undirected(self) -> bool:
        """Return whether all edges go both ways, by hashes of both directions
        (which agree by chance with a probability of about 2^-64).
        """
        if self._undirected is None:
            row, col = self.data.edge_index
            hashes = [_sum_hash(row, col), _sum_hash(col, row)]
            self._undirected = bool(hashes[0] == hashes[1])
        return self._undirected

    @property
    def num_bytes(self) -> int:
        """The memory of all caches, in bytes."""
        parts = {id(x.subgraph): x.subgraph for _, x in self._cache.values()}
        parts[id(self.whole)] = self.whole
        return sum(part.num_bytes for part in parts.values())

    def check_unchanged(self) -> None:
        """Raise an error if a tensor was changed in place."""
        for key, version in self._versions.items():
            if self.data[key]._version != version:
                is_x, other = key == 'x', "another 'StaticGraph'"
                other = "'StaticGraph.update(x)'" if is_x else other
                raise RuntimeError(
                    f"'{key}' of a 'StaticGraph' was changed in place, after "
                    f'it was cached; use '
                    f'{other}'
                )

    def select(
        self, nodes: Optional[Tensor], num_hops: Optional[int]
    ) -> Selection:
        """Return the subgraph that the outputs of some nodes depend on.

        The subgraphs of the last masks and indices are cached.

        Args:
            nodes (torch.Tensor, optional): A mask (bool, of shape
                :obj:`[N]`) or indices (int64), or :obj:`None` for all nodes.
            num_hops (int, optional): The receptive field, or :obj:`None` for
                the whole graph.
        """
        if nodes is None:
            return Selection(self.whole, None)
        if nodes.is_inference():  # Its version is not counted.
            with caching(nodes.device):
                nodes = nodes.clone()
        key = self._find(nodes, num_hops)
        if key is not None:
            self._cache.move_to_end(key)
            return self._cache[key][1]
        with caching(nodes.device):
            selection = self._select(nodes, num_hops)
        self._cache[id(nodes), nodes._version, num_hops] = nodes, selection
        if len(self._cache) > MAX_SUBGRAPHS:
            self._cache.popitem(last=False)
        return selection

    def find(self, edge_index: Any) -> Optional[Subgraph]:
        """Return the graph or the cached subgraph that has these edges."""
        if edge_index is self.whole.data.edge_index:
            return self.whole
        for _, selection in reversed(self._cache.values()):
            if edge_index is selection.subgraph.data.edge_index:
                return selection.subgraph
        if hasattr(edge_index, IS_SUBGRAPH):
            raise RuntimeError(
                f'a subgraph is no longer cached; run a model with '
                f'checkpoints on up to {MAX_SUBGRAPHS} selections of nodes '
                f'before gradients are computed'
            )
        return None

    def edges(
        self,
        subgraph: Subgraph,
        key: Hashable,
        prepare: Callable[[Data], Tuple[Tensor, Optional[Tensor]]],
    ) -> Adjacency:
        """Return the edges of a subgraph as a layer prepares them, such as
        with self-loops or normalized.

        Args:
            subgraph (Subgraph): The subgraph.
            key (Hashable): The identity of the preparation.
            prepare (Callable): Prepares the edges and weights of the whole
                graph.
        """
        if key in subgraph.edges:
            return subgraph.edges[key]
        with caching(self.data.x.device):
            if subgraph.nodes is None or subgraph.targets is None:
                adj = Adjacency(*prepare(self.data), self.num_nodes)
            else:
                adj, _ = self.edges(self.whole, key, prepare).subgraph(
                    subgraph.nodes, subgraph.targets
                )
        subgraph.edges[key] = adj
        return adj

    def aggregate(
        self, subgraph: Subgraph, key: Hashable, aggr: str
    ) -> Tensor:
        """Return the aggregated features of all neighbors of the nodes of a
        subgraph, inside of it or not.

        Args:
            subgraph (Subgraph): The subgraph.
            key (Hashable): The edges, as prepared before.
            aggr (str): The reduction.
        """
        if (key, aggr) in subgraph.aggregated:
            return subgraph.aggregated[key, aggr]
        with caching(self.data.x.device):
            x, adj = self.data.x, self.whole.edges[key]
            matrix = adj.incoming(x.dtype, subgraph.nodes, aggr)
            out = subgraph.aggregate(x, self.whole.inputs.get(id(x)), matrix)
        subgraph.aggregated[key, aggr] = out
        return out

    def saves_by_cache(self, key: Hashable) -> bool:
        """Return whether the aggregated features of the whole graph are
        cheaper to multiply by a weight than the features, whose products are
        aggregated then. This is decided by expected numbers of
        multiplications, and equals on all machines.

        Args:
            key (Hashable): The edges, as prepared before.
        """
        inputs = self.whole.inputs.get(id(self.data.x))
        if inputs is None:
            return True
        if key not in self._saves:
            adj, (num_nodes, num_features) = (
                self.whole.edges[key],
                inputs.x.shape,
            )
            size = inputs.rows.crow_indices().diff()
            reached = size.new_zeros(num_nodes)
            source, target = adj.edge_index
            reached.scatter_add_(0, target, size[source])
            # Nonzero features are taken to be in random columns:
            filled = 1 - (-reached / num_features).exp()
            cost = num_features * float(filled.sum())
            cost = min(cost, MAX_DENSITY * num_nodes * num_features)
            self._saves[key] = cost <= int(size.sum()) + source.numel()
        return self._saves[key]

    def clear(self) -> None:
        """Free all caches, except for the compressed features."""
        self._forget()

    def __deepcopy__(self, memo: Any) -> 'StaticGraph':
        return self  # Copies of a model run on the same graph.

    def __getstate__(self) -> Dict[str, Any]:
        return {'data': self.data}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.data = state['data']
        self._reset()

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_nodes={self.num_nodes}, '
            f'num_edges={self.data.num_edges}, '
            f'num_features={self.data.x.size(1)})'
        )

    def _reset(self) -> None:
        self.whole = Subgraph(self.data)
        self.whole.compress(self.data.x)
        self._forget()

    def _forget(self) -> None:
        inputs = self.whole.inputs.get(id(self.data.x))
        self.whole = Subgraph(self.data)
        if inputs is not None:
            self.whole.inputs[id(self.data.x)] = inputs
        self._cache: OrderedDict[Hashable, Tuple[Tensor, Selection]]
        self._cache = OrderedDict()
        self._undirected = None
        self._saves: Dict[Hashable, bool] = {}
        keys = ['x', 'edge_index', *EDGE_KEYS]
        self._versions = {
            key: self.data[key]._version
            for key in keys
            if self.data.get(key) is not None
            and not self.data[key].is_inference()
        }

    def _find(
        self, nodes: Tensor, num_hops: Optional[int]
    ) -> Optional[Hashable]:
        key = id(nodes), nodes._version, num_hops
        if key in self._cache and self._cache[key][0] is nodes:
            return key
        for other, (tensor, _) in self._cache.items():
            assert isinstance(other, tuple)
            _, version, hops = other
            if hops == num_hops and version == tensor._version:
                if tensor.dtype == nodes.dtype and torch.equal(tensor, nodes):
                    return other
        return None

    def _select(self, nodes: Tensor, num_hops: Optional[int]) -> Selection:
        index = nodes
        if nodes.dtype == torch.bool:
            index = nodes.nonzero().flatten()
        if num_hops is None:
            return Selection(self.whole, index)
        # Models need not run without nodes:
        seeds = index if index.numel() > 0 else index.new_zeros(1)
        part, targets = self._receptive_field(seeds, num_hops)
        if part.numel() > MAX_FRACTION * self.num_nodes:
            return Selection(self.whole, index)
        rows = torch.searchsorted(part, index.contiguous())
        return Selection(self._subgraph(part, targets), rows)

    def _receptive_field(
        self, index: Tensor, num_hops: int
    ) -> Tuple[Tensor, Tensor]:
        """Return the nodes within some hops, and those within one less."""
        nodes, targets = index.unique(), index[:0]
        adj = self._raw_edges(self.whole)
        for _ in range(num_hops):
            targets = nodes
            nodes = torch.cat([nodes, adj.sources(nodes)]).unique()
        return nodes, targets

    def _subgraph(self, nodes: Tensor, targets: Tensor) -> Subgraph:
        adj, e_id = self._raw_edges(self.whole).subgraph(nodes, targets)
        data = copy.copy(self.data)
        data.num_nodes = nodes.numel()
        for key, value in self.data:
            if key == 'edge_index' or not isinstance(value, Tensor):
                continue
            if key in EDGE_KEYS or self.data.is_edge_attr(key):
                data[key] = value[e_id]
            elif key == 'x' or self.data.is_node_attr(key):
                data[key] = value[nodes]
        data.edge_index = adj.edge_index
        setattr(data.edge_index, IS_SUBGRAPH, True)
        subgraph = Subgraph(data, nodes, targets)
        subgraph.edges[None] = adj
        whole = self.whole.inputs.get(id(self.data.x))
        if whole is not None:
            subgraph.inputs[id(data.x)] = whole.take(data.x, nodes)
        return subgraph

    def _raw_edges(self, subgraph: Subgraph) -> Adjacency:
        return self.edges(subgraph, None, lambda data: (data.edge_index, None))


def _sum_hash(row: Tensor, col: Tensor) -> Tensor:
    """Return a hash of edges in any order, the sum of their hashes by the
    finalizer of SplitMix64 (Steele et al., 2014), in linear time.
    """
    x = (row << 32) ^ col
    for shift, factor in [(30, SPLIT_MIX[0]), (27, SPLIT_MIX[1])]:
        x = x.bitwise_xor_(x >> shift).mul_(factor)
    return (x ^ (x >> 31)).sum()
