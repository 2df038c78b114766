"""What an optimizer knows about each weight, and how it follows a weight."""

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear


def check_optimizer(optimizer: Optimizer, name: str) -> None:
    """Raises if the state of an optimizer cannot follow single weights."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"'optimizer' of '{name}' needs to be a 'torch.optim.Optimizer' "
            f'(got {type(optimizer)})'
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise NotImplementedError(
            f"'optimizer' of '{name}' must not keep a history of whole steps, "
            f"as 'LBFGS' does: it is void once weights have moved"
        )
    if isinstance(getattr(optimizer, 'optim', None), Optimizer):
        raise NotImplementedError(
            f"'optimizer' of '{name}' needs to hold the state of all weights "
            f"itself (got '{type(optimizer).__name__}', which wraps another "
            f'optimizer)'
        )


def check_state(optimizer: Optimizer, layer: SparseLinear, name: str) -> None:
    """Raises if the state of a layer's weights is not one number for each."""
    for key, x in optimizer.state.get(layer.values, {}).items():
        nested = isinstance(x, (dict, list, tuple))
        if nested or (
            isinstance(x, Tensor)
            and x.numel() != 1
            and x.shape != layer.values.shape
        ):
            got = list(x.shape) if isinstance(x, Tensor) else type(x)
            raise NotImplementedError(
                f"'optimizer' of '{name}' needs to keep its state in tensors "
                f'of the shape of the weights, {list(layer.values.shape)} '
                f"(got {got} for '{key}')"
            )


@torch.no_grad()
def move_weights(
    layer: SparseLinear, optimizer: Optimizer, index: Tensor
) -> None:
    """Lets weights exist at the ascending positions :obj:`index` only. Those
    that existed keep their value, gradient and state of the optimizer; all of
    these are zero for new ones.

    If the number of weights stays, all tensors are overwritten in place.
    """
    values = layer.values
    old, grad, shape = layer.index, values.grad, values.shape
    target = torch.searchsorted(index, old)
    stays = F.pad(index, (0, 1), value=-1)[target] == old
    source = stays.nonzero().flatten()
    target = target[source]

    def follow(x: Tensor) -> Tensor:
        return x.new_zeros(index.shape).scatter_(0, target, x[source])

    state = optimizer.state.get(values, {})
    keys: List[str] = [
        key
        for key, x in state.items()
        if isinstance(x, Tensor) and x.shape == shape
    ]
    layer.set_weights(index, follow(values))
    in_place = values.shape == shape
    for key in keys:
        if in_place:
            state[key].copy_(follow(state[key]))
        else:
            state[key] = follow(state[key])
    if grad is not None:
        if in_place:
            grad.copy_(follow(grad))
        else:
            values.grad = follow(grad)
