"""Update the state of an optimizer when the active weights change."""

from typing import Any, List, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops.merge_positions import merge_positions


def unwrap_optimizer(optimizer: Any, name: str) -> Optimizer:
    """Return the optimizer within wrappers, such as those of PyTorch Lightning
    and Accelerate, which hold it as :obj:`optimizer`.

    Raises:
        TypeError: If :obj:`optimizer` is not an optimizer.
    """
    # A scheduler of learning rates holds an optimizer, too, but no groups:
    inner = getattr(optimizer, 'optimizer', None)
    if isinstance(inner, Optimizer) and hasattr(optimizer, 'param_groups'):
        return unwrap_optimizer(inner, name)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"'optimizer' of '{name}' needs to be a 'torch.optim.Optimizer' "
            f'(got {type(optimizer)})'
        )
    return optimizer


def check_optimizer(optimizer: Any, name: str) -> Optimizer:
    """Raise an error if the state of an optimizer is not elementwise.

    Returns:
        The optimizer without wrappers.

    Raises:
        TypeError: If :obj:`optimizer` is not an optimizer.
        NotImplementedError: If it is a known optimizer of other state.
    """
    optimizer = unwrap_optimizer(optimizer, name)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise NotImplementedError(
            f"'optimizer' of '{name}' needs to have an elementwise state (got "
            f"'LBFGS', which keeps a history of steps)"
        )
    if isinstance(getattr(optimizer, 'optim', None), Optimizer):
        raise NotImplementedError(
            f"'optimizer' of '{name}' needs to hold its state itself (got "
            f"'{type(optimizer).__name__}', which wraps another optimizer)"
        )
    return optimizer


def check_trained(
    optimizer: Optimizer, weights: Mapping[str, Tensor], name: str
) -> None:
    """Raise a :class:`ValueError` if an optimizer does not train a weight.

    Args:
        optimizer (torch.optim.Optimizer): The optimizer.
        weights (Mapping[str, torch.Tensor]): The weights of layers.
        name (str): The name of the scheduler, for the error.
    """
    groups = optimizer.param_groups
    trained = {id(x) for group in groups for x in group['params']}
    missing = [key for key, x in weights.items() if id(x) not in trained]
    if missing:
        raise ValueError(
            f"'optimizer' of '{name}' needs to train all layers (got no "
            f'weight of {missing}). Create the optimizer after '
            f"'sparsify', 'densify' or 'finalize', as they replace parameters"
        )


def check_state(optimizer: Optimizer, layer: SparseLinear, name: str) -> None:
    """Raise a :class:`NotImplementedError` if the state of a layer's weights
    is not elementwise.
    """
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
    layer: SparseLinear,
    optimizer: Optimizer,
    index: Tensor,
    kept: Tensor,
    grown: Tensor,
) -> Tensor:
    r"""Change the active weights of a layer.

    Weights that remain active keep their value, gradient and optimizer state.
    These are zero for new weights. If the number of active weights is
    constant, all tensors are overwritten in-place. Takes
    :math:`O(\textrm{nnz} + I + O)` time on CPU.

    Args:
        layer (SparseLinear): The layer.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        index (torch.Tensor): The active positions, :obj:`layer.index`.
        kept (torch.Tensor): The positions in :obj:`layer.values` of the
            weights that remain active, ascending (int64).
        grown (torch.Tensor): The positions of new weights in the flattened
            weight, ascending and inactive (int64).

    Returns:
        torch.Tensor: The new active positions, ascending (int64).
    """
    values = layer.values
    grad, shape = values.grad, values.shape
    new, rank = merge_positions(index.index_select(0, kept), grown)
    source = F.pad(kept, (0, 1), value=index.numel()).index_select(0, rank)

    def move(x: Tensor) -> Tensor:
        # New weights read the zero at the end:
        return F.pad(x, (0, 1)).index_select(0, source)

    state = optimizer.state.get(values, {})
    keys: List[str] = [
        key
        for key, x in state.items()
        if isinstance(x, Tensor) and x.shape == shape
    ]
    layer.set_weights(new, move(values))
    in_place = values.shape == shape
    for key in keys:
        if in_place:
            state[key].copy_(move(state[key]))
        else:
            state[key] = move(state[key])
    if grad is not None:
        if in_place:
            grad.copy_(move(grad))
        else:
            values.grad = move(grad)
    return new
