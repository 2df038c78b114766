"""GCN layers on a static graph, and layers that normalize edges alike."""

from typing import Any, Hashable, Optional

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_geometric_ext.full_batch.conv.static_conv import (
    PRODUCT,
    Edges,
    StaticConv,
    autocasts,
)
from torch_geometric_ext.nn.multiply_first import is_linear
from torch_geometric_ext.nn.shallow_copy import shallow_copy


class NormalizedEdges(StaticConv):
    """Normalize edges as a GCN does, once."""

    normalize: bool
    add_self_loops: bool
    improved: bool = False

    def edges_key(self, key: Optional[str], dtype: torch.dtype) -> Hashable:  # noqa: D102
        if not self.normalize:
            return key
        return key, 'gcn', self.improved, self.add_self_loops, dtype

    def prepare_edges(  # noqa: D102
        self, data: Data, weight: Optional[Tensor], dtype: torch.dtype
    ) -> Edges:
        if not self.normalize:
            return data.edge_index, weight
        return gcn_norm(
            data.edge_index,
            weight,
            data.x.size(0),
            self.improved,
            self.add_self_loops,
            self.flow,
            dtype,
        )


class StaticGCNConv(NormalizedEdges, GCNConv):
    """Run :class:`~torch_geometric.nn.conv.GCNConv` on a static graph."""

    def forward(self, x: Any, edge_index: Any, edge_weight: Any = None) -> Any:
        """Run the convolution, faster if it knows the graph."""
        found = self.static_edges(x, edge_index, edge_weight)
        if found is None or isinstance(x, tuple):
            return super().forward(x, edge_index, edge_weight)
        adj = found[1]
        if self.multiplies(x, adj):
            if is_linear(self.lin) and self.lin.bias is None:
                cached = self.cached_aggregation(x, *found)
                if cached is not None:
                    return self._finish(self.lin(cached).to(x.dtype))
            if not autocasts(x):
                self.note(PRODUCT)
                return self._finish(adj.matmul(self.lin(x), self.aggr))
        # Nodes at the border of a subgraph lack edges to normalize by:
        conv = shallow_copy(self)
        conv.normalize = False
        forward = super(StaticGCNConv, conv).forward
        return forward(x, adj.edge_index, adj.weight)

    def _finish(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + self.bias
