"""Decide how a convolution propagates by a product with a sparse matrix."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.nn.dense import SparseLinear
from torch_geometric_ext.nn.hooks import STEPS, is_hooked
from torch_geometric_ext.nn.linear_layers import LINEARS
from torch_geometric_ext.ops.csr_product import DTYPES
from torch_geometric_ext.ops.register import is_transformed

METHODS = ['message', 'message_and_aggregate', 'aggregate', 'update']
REDUCTIONS = ['add', 'sum', 'mean']


def can_multiply(
    conv: MessagePassing, x: Tensor, weight: Optional[Tensor]
) -> bool:
    """Return whether a product gives what messages give, and no hook or
    explainer reads messages.

    Args:
        conv (MessagePassing): The convolution.
        x (torch.Tensor): The features.
        weight (torch.Tensor, optional): The edge weights.
    """
    cls: Any = type(conv)
    # Explainers exchange the generated and the general method of PyG:
    propagate = getattr(conv.propagate, '__func__', None)
    return (
        x.dim() == 2
        and x.dtype in DTYPES
        and (weight is None or weight.dtype in DTYPES)
        and (weight is None or not weight.requires_grad)
        and conv.aggr in REDUCTIONS
        and propagate in [cls._jinja_propagate, cls._orig_propagate]
        and not any(name in vars(conv) for name in METHODS)
        and not conv.explain
        and not is_hooked(conv, STEPS)
        and not torch.jit.is_tracing()
        and not is_transformed()
    )


def aggregates_first(linear: Any, x: Tensor, out_channels: int) -> bool:
    """Return whether to aggregate inputs, if they take fewer products than
    the outputs of a linear layer.

    Args:
        linear (torch.nn.Module): The layer.
        x (torch.Tensor): Its input, of shape :obj:`[N, I]`.
        out_channels (int): The size of its output.
    """
    if (
        x.layout != torch.strided
        or type(linear) not in (SparseLinear, *LINEARS)
        or linear.bias is not None
        or is_hooked(linear)
        or torch.is_autocast_enabled(x.device.type)
    ):
        return False
    # Inputs without gradients are aggregated in the forward pass only:
    is_static = torch.is_grad_enabled() and not x.requires_grad
    return x.size(1) < out_channels * (2 if is_static else 1)
