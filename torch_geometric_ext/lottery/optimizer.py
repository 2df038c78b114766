"""Optimizers of the stages of a lottery search."""

import inspect
from typing import Any, Callable, Iterable

import torch
from torch.nn import Module
from torch.optim import Optimizer

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def make_adam(params: Iterable[Any]) -> Optimizer:
    """Return the default optimizer."""
    return torch.optim.Adam(params, lr=0.01, weight_decay=5e-4)


def build_optimizer(function: MakeOptimizer, model: Module) -> Optimizer:
    """Return an optimizer of the parameters of a model, or raise if it cannot
    train them.
    """
    params = list(model.parameters())
    optimizer = function(params)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"'optimizer' of 'GraphLotteryPruner' needs to return a "
            f"'torch.optim.Optimizer' (got {type(optimizer)})"
        )
    own = {id(x) for x in params}
    groups = optimizer.param_groups
    if not all(id(x) in own for group in groups for x in group['params']):
        raise ValueError(
            "'optimizer' of 'GraphLotteryPruner' needs to train the "
            'parameters that it is called with (got others)'
        )
    try:
        inspect.signature(optimizer.step).bind()
    except TypeError as error:
        raise ValueError(
            f"'optimizer' of 'GraphLotteryPruner' needs a 'step' without "
            f"arguments (got '{type(optimizer).__name__}': {error})"
        ) from error
    return optimizer


def scale_weight_decay(optimizer: Optimizer, scale: float) -> None:
    """Multiply the weight decay of all parameters."""
    for group in optimizer.param_groups:
        if 'weight_decay' in group:
            group['weight_decay'] *= scale
