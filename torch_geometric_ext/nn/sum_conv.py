"""Convolutions that transform a sum or mean of neighbors, in two steps."""

from typing import Any, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Sequential
from torch_geometric.nn import (
    MLP,
    GINConv,
    GraphConv,
    MessagePassing,
    SAGEConv,
)

from torch_geometric_ext.nn.hooks import is_hooked
from torch_geometric_ext.nn.multiply_first import AddBias
from torch_geometric_ext.nn.shallow_copy import with_child


class SumConv(MessagePassing):
    """Transform an aggregation that is computed elsewhere.

    Methods take the features :obj:`x` of nodes, of shape :obj:`[N, C]`, and
    optionally their rows :obj:`own`, of shape :obj:`[M]` (int64), which are
    those of the nodes that are updated. By default, all are.
    """

    def first_linear(self) -> Tuple[str, Any]:
        """Return the name of the linear layer that transforms the
        aggregation, and the layer, or :obj:`None` if there is none.
        """
        raise NotImplementedError

    def transform(
        self, out: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        """Transform the aggregation, of self-loops, too."""
        raise NotImplementedError

    def finish(
        self, out: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        """Return the output of the layer from its aggregation."""
        return self.transform(out, x, own)

    def finish_multiplied(
        self, out: Tensor, h: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        """Return the output from an aggregation that is multiplied by the
        weight of the first linear layer, as :obj:`h` is.
        """
        first, linear = self.first_linear()
        # The copy of this layer only adds the bias of its linear layer:
        copy = with_child(self, first, AddBias(linear))
        return copy.transform(out, x, own)


class SumGINConv(SumConv, GINConv):
    """Run :class:`~torch_geometric.nn.conv.GINConv` in two steps."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        name = {Sequential: 'nn.0', MLP: 'nn.lins.0'}.get(type(self.nn), 'nn')
        if is_hooked(self.nn) or next(self.nn.children(), None) is None:
            return name, self.nn
        return name, self.get_submodule(name)

    def finish(  # noqa: D102
        self, out: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        return self.nn(out + (1 + self.eps) * _take(x, own))

    def finish_multiplied(  # noqa: D102
        self, out: Tensor, h: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        out = out + (1 + self.eps) * _take(h, own)
        return super().finish_multiplied(out, h, x, own)

    def transform(  # noqa: D102
        self, out: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        return self.nn(out)


class SumSAGEConv(SumConv, SAGEConv):
    """Run :class:`~torch_geometric.nn.conv.SAGEConv` in two steps."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        return 'lin_l', self.lin_l

    def transform(  # noqa: D102
        self, out: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        out = self.lin_l(out)
        if self.root_weight:
            out = out + _take(self.lin_r(x), own)
        return F.normalize(out, dim=-1) if self.normalize else out


class SumGraphConv(SumConv, GraphConv):
    """Run :class:`~torch_geometric.nn.conv.GraphConv` in two steps."""

    def first_linear(self) -> Tuple[str, Any]:  # noqa: D102
        return 'lin_rel', self.lin_rel

    def transform(  # noqa: D102
        self, out: Tensor, x: Tensor, own: Optional[Tensor] = None
    ) -> Tensor:
        return self.lin_rel(out) + _take(self.lin_root(x), own)


def _take(x: Tensor, own: Optional[Tensor]) -> Tensor:
    return x if own is None else x.index_select(0, own)
