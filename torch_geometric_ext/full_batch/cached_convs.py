"""Convolutions that run faster on a static graph, with equal results.

They normalize edges and aggregate the features of the graph once, multiply by
weights before they aggregate where a layer has fewer outputs than inputs, and
aggregate by a sparse matrix product instead of one message for each edge.
"""

import inspect
from typing import Any, Dict, Hashable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Sequential
from torch_geometric.data import Data
from torch_geometric.nn import (
    APPNP,
    MLP,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
)
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_self_loops, remove_self_loops

from torch_geometric_ext.full_batch.adjacency import REDUCTIONS, Adjacency
from torch_geometric_ext.full_batch.share_modules import (
    shallow_copy,
    with_child,
)
from torch_geometric_ext.full_batch.static_conv import (
    PRODUCT,
    Edges,
    StaticConv,
    autocasts,
    first_tensor,
    is_hooked,
)
from torch_geometric_ext.full_batch.static_graph import EDGE_KEYS, StaticGraph
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.nn.linear_layers import LINEARS
from torch_geometric_ext.ops import sparse_linear

METHODS = ['forward', 'propagate', 'message', 'aggregate', 'update']


def find_fast_convs(
    model: Module,
    graph: StaticGraph,
    cache_aggregation: bool,
    calls: List[Tuple[str, str]],
) -> Dict[Module, Module]:
    """Return a faster copy of each convolution of a model that has one. The
    copies share parameters, buffers, hooks and inner layers.

    Args:
        model (torch.nn.Module): The model.
        graph (StaticGraph): The graph that it runs on.
        cache_aggregation (bool): Whether the aggregation of the features is
            cached.
        calls (List[Tuple[str, str]]): Is appended the name and the way of
            each aggregation.
    """
    swaps: Dict[Module, Module] = {}
    for name, conv in model.named_modules():
        if obstacle(conv) is None:
            fast = shallow_copy(conv, CLASSES[type(conv)])
            vars(fast).update(
                name=name,
                graph=graph,
                cache_aggregation=cache_aggregation,
                calls=calls,
            )
            if 'cached' in vars(fast):  # Edges of subgraphs differ.
                vars(fast)['cached'] = False
            swaps[conv] = fast
    return swaps


def obstacle(conv: Any) -> Optional[str]:
    """Return why a convolution has no faster copy, if it has none."""
    if type(conv) not in CLASSES:
        return 'it has no faster version'
    if conv.flow != 'source_to_target':
        return "its flow is not 'source_to_target'"
    if conv.aggr not in REDUCTIONS:
        return f"its aggregation '{conv.aggr}' is no sum or mean"
    if getattr(conv, 'project', False):
        return 'it projects features first'
    if any(name in vars(conv) for name in METHODS):
        return 'one of its methods is replaced'
    return None


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


class StaticSum(StaticConv):
    """Aggregate a weighted sum or mean, then transform it linearly."""

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_weight: Any = None,
        size: Any = None,
    ) -> Any:
        """Run the convolution, faster if it knows the graph."""
        found = None
        if isinstance(x, Tensor) and size is None:
            found = self.static_edges(x, edge_index, edge_weight)
        if found is not None and not self.multiplies(x, found[1]):
            found = None
        first, linear = self.first_linear()
        narrows = is_linear(linear) and _narrows(linear)
        if found is not None:
            cached = self.cached_aggregation(x, *found, narrows)
            if cached is not None:
                is_sparse = id(cached) in found[0].inputs
                return self.finish(cached, x, is_sparse)
        if found is None or autocasts(x):
            kwargs = {'edge_weight': edge_weight, 'size': size}
            kwargs = {k: v for k, v in kwargs.items() if v is not None}
            return super().forward(x, edge_index, **kwargs)
        self.note(PRODUCT)
        adj = found[1]
        if not narrows:
            return self.finish(adj.matmul(x, self.aggr), x)
        h = multiply(x, linear)
        return self.finish_multiplied(adj.matmul(h, self.aggr), h, x)

    def finish_multiplied(self, out: Tensor, h: Tensor, x: Tensor) -> Tensor:
        """Return the output from an aggregation that is multiplied by the
        weight of the first linear layer, as :obj:`h` is.
        """
        first, linear = self.first_linear()
        # The copy of this layer only adds the bias of its linear layer:
        return with_child(self, first, AddBias(linear)).transform(out, x)

    def first_linear(self) -> Tuple[str, Any]:
        """Return the name of the linear layer that transforms the
        aggregation, and the layer, or :obj:`None` if there is none.
        """
        raise NotImplementedError

    def transform(self, out: Tensor, x: Tensor) -> Tensor:
        """Transform the aggregation, of self-loops, too."""
        raise NotImplementedError

    def finish(
        self, out: Tensor, x: Tensor, is_sparse: bool = False
    ) -> Tensor:
        """Return the output of the layer from its aggregation."""
        return self.transform(out, x)


class StaticGINConv(StaticSum, GINConv):
    """Run :class:`~torch_geometric.nn.conv.GINConv` on a static graph."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        name = {Sequential: 'nn.0', MLP: 'nn.lins.0'}.get(type(self.nn), 'nn')
        if is_hooked(self.nn) or next(self.nn.children(), None) is None:
            return name, self.nn
        return name, self.get_submodule(name)

    def finish(  # noqa: D102
        self, out: Tensor, x: Tensor, is_sparse: bool = False
    ) -> Tensor:
        linear = self.first_linear()[1]
        if not is_sparse or not is_linear(linear) or is_hooked(linear):
            return self.nn(out + (1 + self.eps) * x)
        # Both are sparse, but their sum is a new, dense tensor:
        h = multiply(x, linear)
        return self.finish_multiplied(multiply(out, linear), h, x)

    def finish_multiplied(  # noqa: D102
        self, out: Tensor, h: Tensor, x: Tensor
    ) -> Tensor:
        return super().finish_multiplied(out + (1 + self.eps) * h, h, x)

    def transform(self, out: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        return self.nn(out)


class StaticSAGEConv(StaticSum, SAGEConv):
    """Run :class:`~torch_geometric.nn.conv.SAGEConv` on a static graph."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        return 'lin_l', self.lin_l

    def transform(self, out: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        out = self.lin_l(out)
        if self.root_weight:
            out = out + self.lin_r(x)
        return F.normalize(out, dim=-1) if self.normalize else out


class StaticGraphConv(StaticSum, GraphConv):
    """Run :class:`~torch_geometric.nn.conv.GraphConv` on a static graph."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        return 'lin_rel', self.lin_rel

    def transform(self, out: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        return self.lin_rel(out) + self.lin_root(x)


class StaticEdges(StaticConv):
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
        return super(StaticEdges, conv).forward(**given)

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


class StaticGCN2Conv(NormalizedEdges, StaticEdges, GCN2Conv):
    """Run :class:`~torch_geometric.nn.conv.GCN2Conv` on a static graph."""

    prepares = 'normalize'


class StaticAPPNP(NormalizedEdges, StaticEdges, APPNP):
    """Run :class:`~torch_geometric.nn.conv.APPNP` on a static graph."""

    prepares = 'normalize'


class AttentionEdges(StaticEdges):
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


CLASSES: Dict[type, type] = {
    APPNP: StaticAPPNP,
    GATConv: StaticGATConv,
    GATv2Conv: StaticGATv2Conv,
    GCN2Conv: StaticGCN2Conv,
    GCNConv: StaticGCNConv,
    GINConv: StaticGINConv,
    GraphConv: StaticGraphConv,
    SAGEConv: StaticSAGEConv,
}


class AddBias(Module):
    """Add the bias of a linear layer, and nothing else."""

    def __init__(self, linear: Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias."""
        bias: Any = self.linear.bias
        return x if bias is None else x + bias


def multiply(x: Tensor, linear: Any) -> Tensor:
    """Multiply by the weight of a linear layer, without its bias."""
    if isinstance(linear, SparseLinear):
        return sparse_linear(
            x,
            linear.values,
            None,
            linear.rowptr,
            linear.col,
            linear.colptr,
            linear.row,
            linear.perm,
        )
    return F.linear(x, linear.weight)


def is_linear(linear: Any) -> bool:
    """Return whether a layer is nothing but a linear transformation."""
    return (
        type(linear) in (SparseLinear, *LINEARS)
        and 'bias' in linear._parameters
        and 'forward' not in vars(linear)
    )


def _narrows(linear: Any) -> bool:
    """Return whether a layer has fewer outputs than inputs. A hook of the
    layer needs it to be called.
    """
    if is_hooked(linear):
        return False
    if isinstance(linear, SparseLinear):
        return linear.out_channels < linear.in_channels
    return linear.weight.size(0) < linear.weight.size(1)
