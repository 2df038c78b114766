"""What it takes to try whether models compute the same."""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch.nn import Module
from torch.overrides import TorchFunctionMode

NOISE = 0.02  # Of parameters, some of which may be zero at first.
DROPOUTS = [
    F.dropout,
    F.alpha_dropout,
    F.dropout1d,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.alpha_dropout,
    torch.feature_dropout,
    torch.feature_alpha_dropout,
]


def other_weights(model: Module) -> Module:
    """Changes all parameters of a model, in place."""
    for param in model.parameters():
        if param.is_floating_point():
            param.data += NOISE * torch.randn_like(param)
    return model


class NoDropout(TorchFunctionMode):
    """Training, in which all values are kept."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs['input']
        return func(*args, **kwargs)
