"""Check and cast the operands of sparse linear transformations."""

from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor


def cast_operands(
    op: str,
    x: Tensor,
    values: Tensor,
    bias: Optional[Tensor],
    num_features: int,
) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Check the input of an operator, and cast it under autocast. Cast values
    and bias of half precision to single precision.
    """
    if x.dim() == 0 or x.size(-1) != num_features:
        raise ValueError(
            f"{op}: 'x' needs to hold {num_features} features, the "
            f"'in_channels' of its layer (got shape {list(x.shape)})"
        )
    if casts(x) and values.dtype != torch.double:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    elif x.dtype != values.dtype:
        raise ValueError(
            f"{op}: 'x' needs to be of the type of 'values', "
            f'{values.dtype} (got {x.dtype})'
        )
    if values.dtype in [torch.half, torch.bfloat16]:
        values, bias = values.float(), None if bias is None else bias.float()
    return x, values, bias


def on_rows(call: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """Return :obj:`call(x, *args)` for an input of any number of dimensions,
    viewed as a matrix.
    """
    if x.dim() == 2:  # A view costs as much as a small product.
        return call(x, *args)
    rows = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)
    out = call(rows, *args)
    return out.view(*x.shape[:-1], out.size(-1))


def casts(x: Tensor) -> bool:
    """Check whether autocast changes the dtype of an input."""
    device = x.device.type
    return (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and x.is_floating_point()
        and x.dtype != torch.double
    )


def check_operands(op: str, x: Tensor, values: Tensor) -> None:
    """Check the shapes and dtypes of the input and the values of a product."""
    if x.dim() != 2:
        raise ValueError(
            f"{op}: 'x' needs to be a matrix (got {x.dim()} dimensions)"
        )
    if values.dim() != 1 or values.dtype not in [torch.float, torch.double]:
        raise ValueError(
            f"{op}: 'values' needs to be a vector of float or double (got "
            f'{values.dtype} of shape {list(values.shape)})'
        )
    is_half = x.dtype in [torch.half, torch.bfloat16]
    if x.dtype != values.dtype and not (
        is_half and values.dtype == torch.float
    ):
        raise ValueError(
            f"{op}: 'x' needs to be of the type of 'values', {values.dtype} "
            f'(got {x.dtype})'
        )


def check_bias(
    op: str, bias: Optional[Tensor], values: Tensor, out_channels: int
) -> None:
    """Check the shape and the dtype of the bias of a sparse product."""
    if bias is None:
        return
    if bias.shape != (out_channels,) or bias.dtype != values.dtype:
        raise ValueError(
            f"{op}: 'bias' needs to be a vector of {out_channels} "
            f'{values.dtype}'
        )
