"""Convolutions that multiply by weights before they add up neighbors. This is
the same, and takes less where a layer has fewer outputs than inputs.
"""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Tuple

from torch import Tensor
from torch.nn import Module, Parameter, Sequential
from torch_geometric.nn import (
    MLP,
    GINConv,
    GraphConv,
    MessagePassing,
    SAGEConv,
)

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.nn.linear_layers import (
    HOOKS,
    LINEARS,
    find_layers,
    obstacles,
)
from torch_geometric_ext.utils.lottery.sparse_input import SparseInputLinear

SUMS = ['add', 'sum', 'mean']
STEPS = ('_propagate', '_message', '_aggregate')  # What users may hook.

Slot = Tuple[Dict[str, Any], str]  # Where a module holds another one.


def put_linear_first(model: Module) -> Module:
    """Reorders the convolutions of a model, in place, where that pays. It has
    the parameters that it had, by the same names.
    """
    linears = find_layers(model, LINEARS)
    others = obstacles(model, list(linears))
    for conv in model.modules():
        if type(conv) not in CLASSES or not _is_linear(conv):
            continue
        modules, name = _slot(conv)
        linear = modules.get(name)
        if linear not in others and _narrows(linear):
            conv.__class__ = CLASSES[type(conv)]
    return model


def _is_linear(conv: Any) -> bool:
    """Whether nothing comes between what a convolution is given, its sum of
    neighbors, and the linear layer that follows.
    """
    hooks = [
        value
        for module in [conv, getattr(conv, 'nn', conv)]
        for name, value in vars(module).items()
        if name in HOOKS or name.startswith(STEPS) and name.endswith('hooks')
    ]
    return (
        conv.aggr in SUMS
        and conv.flow == 'source_to_target'
        and not getattr(conv, 'project', False)
        and not any(hooks)
    )


def _slot(conv: Any) -> Slot:
    """Where the linear layer is that follows the sum of neighbors."""
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
        return x if self.bias is None else x + self.bias


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


class _LinearFirst(MessagePassing):
    """Goes before the class of a convolution."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Tensor):
            return super().forward(x, *args, **kwargs)
        with _multiplied(self, x) as out:
            both = out if isinstance(self, GINConv) else (out, x)
            return super().forward(both, *args, **kwargs)


class _GINConv(_LinearFirst, GINConv):
    pass


class _SAGEConv(_LinearFirst, SAGEConv):
    pass


class _GraphConv(_LinearFirst, GraphConv):
    pass


CLASSES: Dict[type, type] = {
    GINConv: _GINConv,
    SAGEConv: _SAGEConv,
    GraphConv: _GraphConv,
}
