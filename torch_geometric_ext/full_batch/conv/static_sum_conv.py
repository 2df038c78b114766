"""Layers on a static graph that transform a sum or mean of neighbors."""

from typing import Any

from torch import Tensor

from torch_geometric_ext.full_batch.conv.static_conv import (
    PRODUCT,
    StaticConv,
    autocasts,
)
from torch_geometric_ext.nn.hooks import is_hooked
from torch_geometric_ext.nn.multiply_first import (
    is_linear,
    multiply,
    narrows,
)
from torch_geometric_ext.nn.sum_conv import (
    SumConv,
    SumGINConv,
    SumGraphConv,
    SumSAGEConv,
)


class StaticSumConv(StaticConv, SumConv):
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
                if id(cached) in found[0].inputs:
                    return self.finish_sparse(cached, x)
                return self.finish(cached, x)
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

    def finish_sparse(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the output from sparse features and their aggregation."""
        return self.finish(out, x)


class StaticGINConv(StaticSumConv, SumGINConv):
    """Run :class:`~torch_geometric.nn.conv.GINConv` on a static graph."""

    def finish_sparse(self, out: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        linear = self.first_linear()[1]
        if not is_linear(linear) or is_hooked(linear):
            return self.finish(out, x)
        # Both are sparse, but their sum is a new, dense tensor:
        h = multiply(x, linear)
        return self.finish_multiplied(multiply(out, linear), h, x)


class StaticSAGEConv(StaticSumConv, SumSAGEConv):
    """Run :class:`~torch_geometric.nn.conv.SAGEConv` on a static graph."""


class StaticGraphConv(StaticSumConv, SumGraphConv):
    """Run :class:`~torch_geometric.nn.conv.GraphConv` on a static graph."""
