"""Layers on a static graph that transform a sum or mean of neighbors."""

from typing import Any, Tuple

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Sequential
from torch_geometric.nn import MLP, GINConv, GraphConv, SAGEConv

from torch_geometric_ext.full_batch.conv.linear import (
    AddBias,
    is_linear,
    multiply,
    narrows,
)
from torch_geometric_ext.full_batch.conv.static_conv import (
    PRODUCT,
    StaticConv,
    autocasts,
)
from torch_geometric_ext.full_batch.shallow_copy import with_child
from torch_geometric_ext.nn.hooks import is_hooked


class StaticSumConv(StaticConv):
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
        linear = self.first_linear()[1]
        multiplies_first = is_linear(linear) and narrows(linear)
        if found is not None:
            cached = self.cached_aggregation(x, *found, multiplies_first)
            if cached is not None:
                is_sparse = id(cached) in found[0].inputs
                return self.finish(cached, x, is_sparse)
        if found is None or autocasts(x):
            kwargs = {'edge_weight': edge_weight, 'size': size}
            kwargs = {k: v for k, v in kwargs.items() if v is not None}
            return super().forward(x, edge_index, **kwargs)
        self.note(PRODUCT)
        adj = found[1]
        if not multiplies_first:
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


class StaticGINConv(StaticSumConv, GINConv):
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


class StaticSAGEConv(StaticSumConv, SAGEConv):
    """Run :class:`~torch_geometric.nn.conv.SAGEConv` on a static graph."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        return 'lin_l', self.lin_l

    def transform(self, out: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        out = self.lin_l(out)
        if self.root_weight:
            out = out + self.lin_r(x)
        return F.normalize(out, dim=-1) if self.normalize else out


class StaticGraphConv(StaticSumConv, GraphConv):
    """Run :class:`~torch_geometric.nn.conv.GraphConv` on a static graph."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        return 'lin_rel', self.lin_rel

    def transform(self, out: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        return self.lin_rel(out) + self.lin_root(x)
