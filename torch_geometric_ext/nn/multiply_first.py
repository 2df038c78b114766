"""Linear layers that multiply before an aggregation."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.nn.dense import SparseLinear
from torch_geometric_ext.nn.hooks import is_hooked
from torch_geometric_ext.nn.linear_layers import LINEARS


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
        return linear.multiply(x)
    return F.linear(x, linear.weight)


def is_linear(linear: Any) -> bool:
    """Return whether a layer is nothing but a linear transformation."""
    return (
        type(linear) in (SparseLinear, *LINEARS)
        and 'bias' in linear._parameters
        and 'forward' not in vars(linear)
    )


def narrows(linear: Any) -> bool:
    """Return whether a layer has fewer outputs than inputs. A hook of the
    layer needs it to be called.
    """
    if is_hooked(linear):
        return False
    if isinstance(linear, SparseLinear):
        return linear.out_channels < linear.in_channels
    return linear.weight.size(0) < linear.weight.size(1)
