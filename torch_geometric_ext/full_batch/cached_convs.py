"""Convolutions that compute the same in less time. They multiply by weights
before they add up neighbors, where a layer has fewer outputs than inputs. Of
graphs that stay, they add up the features and normalize the edges once.
"""

import warnings
import weakref
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter, Sequential
from torch_geometric.nn import (
    MLP,
    GCNConv,
    GINConv,
    GraphConv,
    MessagePassing,
    SAGEConv,
)
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_geometric_ext.full_batch.sparse_input import (
    DTYPES,
    SparseInputLinear,
)
from torch_geometric_ext.full_batch.static_graph import (
    KnownGraph,
    Norm,
    View,
)
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.nn.linear_layers import (
    HOOKS,
    LINEARS,
    find_layers,
    obstacles,
)

SUMS = ['add', 'sum', 'mean']
STEPS = ('_propagate', '_message', '_aggregate')  # What users may hook.

METHODS = ['forward', 'propagate', 'message', 'aggregate', 'update']

Slot = Tuple[Dict[str, Any], str]  # Where a module holds another one.
Edges = Tuple[Tensor, Optional[Tensor]]


def speed_up(
    model: Module, graph: Optional[KnownGraph] = None, adds_up: bool = True
) -> Module:
    """Swaps the convolutions of a model, in place, for faster ones where
    there are any. It has the parameters that it had, by the same names, and
    may be given other graphs than the one that is known.

    Args:
        model (torch.nn.Module): The model.
        graph (KnownGraph, optional): A graph that stays.
            (default: :obj:`None`)
        adds_up (bool, optional): Whether its features are added up once: not
            if messages have factors that change. (default: :obj:`True`)
    """
    linears = find_layers(model, LINEARS)
    others = obstacles(model, list(linears))
    still = graph if graph is not None and graph.is_still else None
    for name, conv in model.named_modules():
        if type(conv) not in CLASSES or not _is_linear(conv):
            continue
        modules, slot = _slot(conv)
        linear = modules.get(slot)
        if linear in others or type(conv) is GCNConv and not _is_plain(linear):
            continue
        narrows = type(conv) is not GCNConv and _narrows(linear)
        modules_of = conv.named_modules(remove_duplicate=False)
        if sum(module is linear for _, module in modules_of) > 1:
            narrows = False  # It is called twice.
        if narrows or still:
            conv.__class__ = CLASSES[type(conv)]
            conv.name, conv.narrows, conv.adds_up = name, narrows, adds_up
            # Convolutions refer to themselves, and would be freed late:
            conv.graph = None if still is None else weakref.ref(still)
    return model


def _is_linear(conv: Any) -> bool:
    """Whether nothing comes between what a convolution is given, its sum of
    neighbors, and the linear layer that follows.
    """
    return (
        conv.aggr in SUMS
        and conv.flow == 'source_to_target'
        and not getattr(conv, 'project', False)
        and not conv.explain
        and not any(name in vars(conv) for name in METHODS)
        and not _is_hooked(conv)
        and not _is_hooked(getattr(conv, 'nn', conv))
    )


def _is_hooked(module: Module) -> bool:
    return any(
        value
        for name, value in vars(module).items()
        if name in HOOKS or name.startswith(STEPS) and name.endswith('hooks')
    )


def _is_plain(linear: Any) -> bool:
    """Whether a layer does nothing but to multiply."""
    classes = (SparseLinear, SparseInputLinear, *LINEARS)
    return isinstance(linear, classes) and linear.bias is None


def _slot(conv: Any) -> Slot:
    """Where the linear layer is that a sum of neighbors is multiplied by."""
    if isinstance(conv, GCNConv):
        return conv._modules, 'lin'
    if isinstance(conv, SAGEConv):
        return conv._modules, 'lin_l'
    if isinstance(conv, GraphConv):
        return conv._modules, 'lin_rel'
    if type(conv.nn) is Sequential:
        return conv.nn._modules, '0'
    if type(conv.nn) is MLP:
        return conv.nn.lins._modules, '0'
    return conv._modules, 'nn'


def _narrows(linear: Any) -> bool:
    if isinstance(linear, SparseLinear):
        return linear.out_channels < linear.in_channels
    if isinstance(linear, SparseInputLinear) or isinstance(linear, LINEARS):
        return linear.weight.size(0) < linear.weight.size(1)
    return False


class _Bias(Module):
    """What is left to do of a linear layer."""

    def __init__(self, bias: Optional[Parameter]) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias.to(x.dtype)


@contextmanager
def _multiplied(conv: MessagePassing, x: Tensor) -> Iterator[Tensor]:
    """Multiplies by the weights of a convolution, which then only adds its
    bias. The layer itself is called once, as recorders of gradients expect.
    """
    modules, name = _slot(conv)
    linear = modules[name]
    bias = linear.bias
    try:
        linear.bias = None
        out = linear(x)
        modules[name] = _Bias(bias)
        yield out
    finally:
        linear.bias = bias
        modules[name] = linear


def _edges(view: View, is_weighted: bool) -> Edges:
    return view.data.edge_index, view.data.edge_weight if is_weighted else None


def _sums(
    edge_index: Tensor,
    weight: Optional[Tensor],
    x: Tensor,
    aggr: Any,
    nodes: Optional[Tensor] = None,
) -> Tensor:
    """Sums or means of what neighbors of some nodes have, without a message
    for each.
    """
    row, col = edge_index
    values = x.new_ones(row.size(0))
    if weight is not None:
        values = weight.view(-1).to(x.dtype)
    size = x.size(0)
    if nodes is not None:
        size = nodes.numel()
        number = col.new_full((x.size(0),), -1)
        number[nodes] = torch.arange(size, device=col.device)
        index = (number[col] >= 0).nonzero().flatten()
        row, col, values = row[index], number[col[index]], values[index]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # That this format is new.
        matrix = torch.sparse_coo_tensor(
            torch.stack([col, row]), values, (size, x.size(0))
        )
        out = matrix.to_sparse_csr() @ x
    if aggr != 'mean':
        return out
    degree = torch.bincount(col, minlength=size).clamp(min=1)
    return out / degree[:, None]


def _is_like(x: Any, other: Tensor) -> bool:
    """Whether there is a row of the same type for each node."""
    return (
        isinstance(x, Tensor)
        and x.dim() == other.dim() == 2
        and x.size(0) == other.size(0)
        and x.dtype == other.dtype
        and x.is_floating_point()
    )


class _FastConv(MessagePassing):
    """Goes before the class of a convolution."""

    name: str
    narrows: bool
    graph: Optional[Callable[[], Optional[KnownGraph]]]
    adds_up: bool

    def forward(self, x: Any, edge_index: Any, *args: Any, **kw: Any) -> Any:
        graph = None if self.graph is None else self.graph()
        view = None if graph is None else graph.view(edge_index)
        rest = [value for value in [*args, *kw.values()] if value is not None]
        if graph is not None and view is not None and len(rest) < 2:
            is_weighted = len(rest) == 1
            if not is_weighted or rest[0] is view.data.get('edge_weight'):
                return self.forward_known(x, graph, view, is_weighted)
        return self.forward_any(x, edge_index, *args, **kw)

    def forward_known(
        self, x: Any, graph: KnownGraph, view: View, is_weighted: bool
    ) -> Any:
        """Takes a graph that is known."""
        if not self.knows(x, graph, view):
            return self.forward_any(x, *_edges(view, is_weighted))

        @torch.no_grad()
        def add_up(nodes: Optional[Tensor]) -> Tensor:
            edge_index, weight = self.edges(graph, graph.whole, is_weighted)
            x = graph.data.x
            out = _sums(edge_index, weight, x, self.aggr, nodes)
            return self.finish_sums(out, x if nodes is None else x[nodes])

        key = self.name, is_weighted
        return self.finish(graph.sums(view, key, add_up), x)

    def knows(self, x: Any, graph: KnownGraph, view: View) -> bool:
        """Whether sums of what it is given are computed once."""
        if not self.adds_up or x is not view.data.x:
            return False
        if self._message_forward_hooks or self._message_forward_pre_hooks:
            return False  # They have come since.
        if torch.is_autocast_enabled(x.device.type):
            return False
        return x.dim() == 2 and x.dtype in DTYPES

    def forward_any(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes any graph."""
        if not self.narrows or not isinstance(x, Tensor):
            return super().forward(x, *args, **kwargs)
        with _multiplied(self, x) as out:
            both = out if isinstance(self, GINConv) else (out, x)
            return super().forward(both, *args, **kwargs)

    def edges(self, graph: KnownGraph, view: View, is_weighted: bool) -> Edges:
        """What messages are passed along, and their weights."""
        return _edges(view, is_weighted)

    def finish_sums(self, sums: Tensor, x: Tensor) -> Tensor:
        """What is added to them, if it does not change, either."""
        return sums

    def finish(self, sums: Tensor, x: Tensor) -> Tensor:
        """What comes after that."""
        raise NotImplementedError


class _GCNConv(_FastConv, GCNConv):
    def forward_known(
        self, x: Any, graph: KnownGraph, view: View, is_weighted: bool
    ) -> Any:
        if self.knows(x, graph, view) or not _is_like(x, view.data.x):
            return super().forward_known(x, graph, view, is_weighted)
        edge_index, weight = self.edges(graph, view, is_weighted)
        out = self.propagate(edge_index, x=self.lin(x), edge_weight=weight)
        return out if self.bias is None else out + self.bias

    def edges(self, graph: KnownGraph, view: View, is_weighted: bool) -> Edges:
        if not self.normalize:
            return _edges(view, is_weighted)

        def norm() -> Norm:
            return gcn_norm(
                *_edges(graph.whole, is_weighted),
                graph.data.x.size(self.node_dim),
                self.improved,
                self.add_self_loops,
                self.flow,
                graph.data.x.dtype,
            )

        return graph.norm(view, (self.name, is_weighted), norm)

    def finish(self, sums: Tensor, x: Tensor) -> Tensor:
        out = self.lin(sums)
        return out if self.bias is None else out + self.bias


class _GINConv(_FastConv, GINConv):
    def finish_sums(self, sums: Tensor, x: Tensor) -> Tensor:
        return sums if self.eps.requires_grad else sums + (1 + self.eps) * x

    def finish(self, sums: Tensor, x: Tensor) -> Tensor:
        if self.eps.requires_grad:
            sums = sums + (1 + self.eps) * x
        return self.nn(sums)


class _SAGEConv(_FastConv, SAGEConv):
    def finish(self, sums: Tensor, x: Tensor) -> Tensor:
        out = self.lin_l(sums)
        if self.root_weight:
            out = out + self.lin_r(x)
        return F.normalize(out, dim=-1) if self.normalize else out


class _GraphConv(_FastConv, GraphConv):
    def finish(self, sums: Tensor, x: Tensor) -> Tensor:
        return self.lin_rel(sums) + self.lin_root(x)


CLASSES: Dict[type, type] = {
    GCNConv: _GCNConv,
    GINConv: _GINConv,
    SAGEConv: _SAGEConv,
    GraphConv: _GraphConv,
}
