"""The base of convolutions that know the static graph they run on."""

from typing import Any, Hashable, List, Optional, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.full_batch.adjacency import Adjacency
from torch_geometric_ext.full_batch.check_static import EDGE_KEYS
from torch_geometric_ext.full_batch.static_graph import StaticGraph
from torch_geometric_ext.full_batch.subgraph import Subgraph
from torch_geometric_ext.nn.hooks import STEPS, is_hooked
from torch_geometric_ext.ops.csr_product import DTYPES

CACHED = 'cached aggregation of features'
PRODUCT = 'sparse matrix product'
MESSAGES = 'one message for each edge'

Edges = Tuple[Tensor, Optional[Tensor]]


class StaticConv(MessagePassing):
    """Mix static-graph caching into a convolution, whose class comes next.

    Attributes:
        name (str): The name of the convolution in its model.
        graph (StaticGraph): The graph.
        cache_aggregation (bool): Whether features are aggregated once.
        calls (List[Tuple[str, str]]): The name and the way of each
            aggregation since the list was cleared.
    """

    name: str
    graph: StaticGraph
    cache_aggregation: bool
    calls: List[Tuple[str, str]]

    def static_edges(
        self, x: Any, edge_index: Any, weight: Any
    ) -> Optional[Tuple[Subgraph, Adjacency]]:
        """Return the prepared edges of the graph that is given, or
        :obj:`None` if it is not known.
        """
        subgraph = self.graph.find(edge_index)
        if subgraph is None:
            return None
        data, key = subgraph.data, None
        if weight is not None:
            keys = [key for key in EDGE_KEYS if weight is data.get(key)]
            if not keys:
                return None
            key = keys[0]
        for features in x if isinstance(x, tuple) else (x,):
            if not isinstance(features, Tensor):
                return None
            if features.size(0) != data.num_nodes:
                return None
        dtype = first_tensor(x).dtype
        return subgraph, self.graph.edges(
            subgraph,
            self.edges_key(key, dtype),
            lambda data: self.prepare_edges(
                data, None if key is None else data[key], dtype
            ),
        )

    def edges_key(self, key: Optional[str], dtype: torch.dtype) -> Hashable:
        """Return what the prepared edges depend on."""
        return key

    def prepare_edges(
        self, data: Data, weight: Optional[Tensor], dtype: torch.dtype
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Return the edges of the whole graph that messages pass."""
        return data.edge_index, weight

    def cached_aggregation(
        self,
        x: Tensor,
        subgraph: Subgraph,
        adj: Adjacency,
        multiplies_first: bool = True,
    ) -> Optional[Tensor]:
        """Return the aggregation of the features of the graph, or
        :obj:`None` if :obj:`x` is something else.

        In a part of the graph, it saves a hop, whichever factor its products
        with weights multiply first. In the whole graph, sparse features can
        be cheaper to multiply before they are aggregated.
        """
        if not self.cache_aggregation or x is not subgraph.data.x:
            return None
        key = next(k for k, edges in subgraph.edges.items() if edges is adj)
        if subgraph.nodes is None and multiplies_first:
            if not self.graph.saves_by_cache(key):
                return None
        self.note(CACHED)
        return self.graph.aggregate(subgraph, key, self.aggr)

    def multiplies(self, x: Tensor, adj: Adjacency) -> bool:
        """Return whether a matrix product gives what messages give, and no
        hook needs them.
        """
        if self.explain or is_hooked(self, STEPS) or x.dtype not in DTYPES:
            return False
        if adj.weight is None:
            return True
        return torch.promote_types(adj.weight.dtype, x.dtype) == x.dtype

    def propagate(
        self, edge_index: Any, size: Any = None, **kwargs: Any
    ) -> Any:
        """Pass one message for each edge."""
        self.note(MESSAGES)
        return super().propagate(edge_index, size=size, **kwargs)

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """Keep :meth:`propagate`, which PyG replaces in the class of a
        convolution that is unpickled.
        """

    def note(self, way: str) -> None:
        """Record how features are aggregated."""
        self.calls.append((self.name, way))


def first_tensor(x: Any) -> Tensor:
    """Return the features of sources."""
    out: Tensor = x[0] if isinstance(x, tuple) else x
    return out


def autocasts(x: Tensor) -> bool:
    """Return whether products of a tensor are cast to another type."""
    return torch.is_autocast_enabled(x.device.type)
