"""Layers on a static graph that prepare edges and propagate along them."""

import inspect
from typing import Any, Hashable, Optional

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import APPNP, GATConv, GATv2Conv, GCN2Conv
from torch_geometric.utils import add_self_loops, remove_self_loops

from torch_geometric_ext.full_batch.adjacency import Adjacency
from torch_geometric_ext.full_batch.check_static import EDGE_KEYS
from torch_geometric_ext.full_batch.conv.static_conv import (
    PRODUCT,
    Edges,
    StaticConv,
    autocasts,
    first_tensor,
)
from torch_geometric_ext.full_batch.conv.static_gcn_conv import (
    NormalizedEdges,
)
from torch_geometric_ext.nn.shallow_copy import shallow_copy


class StaticEdgesConv(StaticConv):
    """Prepare edges once, and propagate by a sparse matrix product.

    Attributes:
        prepares (str): The attribute that has a layer prepare its edges.
        adj (Adjacency, optional): The edges to propagate along.
            (default: :obj:`None`)
    """

    prepares: str
    adj: Optional[Adjacency] = None

    @property
    def signature(self) -> inspect.Signature:
        """The signature of the convolution."""
        return inspect.signature(super().forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the convolution, faster if it knows the graph."""
        given = self.signature.bind(*args, **kwargs).arguments
        parameters = self.signature.parameters
        key = next(key for key in EDGE_KEYS if key in parameters)
        x, found = given['x'], None
        if given.get('size') is None:
            found = self.static_edges(x, given['edge_index'], given.get(key))
        if found is None:
            return super().forward(*args, **kwargs)
        conv, adj = shallow_copy(self), found[1]
        setattr(conv, self.prepares, False)
        x = first_tensor(x)
        if self.multiplies(x, adj) and not autocasts(x):
            conv.adj = adj
        given.update({'edge_index': adj.edge_index, key: adj.weight})
        return super(StaticEdgesConv, conv).forward(**given)

    def propagate(
        self, edge_index: Any, size: Any = None, **kwargs: Any
    ) -> Any:
        """Aggregate features without messages if the edges are known."""
        adj = self.adj
        if adj is None or edge_index is not adj.edge_index:
            return super().propagate(edge_index, size=size, **kwargs)
        self.note(PRODUCT)
        x = first_tensor(kwargs['x'])
        value: Any = kwargs.get('alpha', kwargs.get('edge_weight'))
        if x.dim() == 3:
            return adj.weighted_matmul(value, x, self.aggr)
        if value is adj.weight:
            return adj.matmul(x, self.aggr)
        value, x = value.view(-1, 1), x.unsqueeze(1)
        return adj.weighted_matmul(value, x, self.aggr).squeeze(1)


class StaticGCN2Conv(NormalizedEdges, StaticEdgesConv, GCN2Conv):
    """Run :class:`~torch_geometric.nn.conv.GCN2Conv` on a static graph."""

    prepares = 'normalize'


class StaticAPPNP(NormalizedEdges, StaticEdgesConv, APPNP):
    """Run :class:`~torch_geometric.nn.conv.APPNP` on a static graph."""

    prepares = 'normalize'


class AttentionEdges(StaticEdgesConv):
    """Add self-loops as attention does, once."""

    prepares = 'add_self_loops'
    add_self_loops: bool
    fill_value: Any

    def edges_key(self, key: Optional[str], dtype: torch.dtype) -> Hashable:  # noqa: D102
        if not self.add_self_loops:
            return key
        return key, 'loops', self.fill_value

    def prepare_edges(  # noqa: D102
        self, data: Data, weight: Optional[Tensor], dtype: torch.dtype
    ) -> Edges:
        if not self.add_self_loops:
            return data.edge_index, weight
        return add_self_loops(
            *remove_self_loops(data.edge_index, weight),
            fill_value=self.fill_value,
            num_nodes=data.x.size(0),
        )


class StaticGATConv(AttentionEdges, GATConv):
    """Run :class:`~torch_geometric.nn.conv.GATConv` on a static graph."""


class StaticGATv2Conv(AttentionEdges, GATv2Conv):
    """Run :class:`~torch_geometric.nn.conv.GATv2Conv` on a static graph."""
