"""Checks of what users pass to a lottery search."""

import os
import sys
import warnings
from collections.abc import Collection
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import is_sparse

from torch_geometric_ext.lottery.settings import is_integer
from torch_geometric_ext.nn import SparseLinear


def check_prunable(model: Any, edge_sparsity: float) -> None:
    """Raise if a model is not dense or holds nothing to prune."""
    if not isinstance(model, Module):
        raise TypeError(
            f"'model' of 'GraphLotteryPruner' needs to be a "
            f"'torch.nn.Module' (got {type(model)})"
        )
    if isinstance(model, DistributedDataParallel):
        raise TypeError(
            "'model' of 'GraphLotteryPruner' needs to be the module itself, "
            "since 'fit' averages gradients over all ranks (got a "
            "'DistributedDataParallel'); pass its 'module'"
        )
    if any(isinstance(x, SparseLinear) for x in model.modules()):
        raise ValueError(
            "'model' of 'GraphLotteryPruner' needs to be dense (got a "
            "'SparseLinear'); convert it with 'densify'"
        )
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the state of 'model' needs to hold tensors alone (got "
                f"{type(value)} as '{key}')"
            )
    if not any(x.requires_grad for x in model.parameters()):
        raise ValueError(
            f"'model' of 'GraphLotteryPruner' needs parameters that require "
            f"gradients (got none in '{model.__class__.__name__}')"
        )
    if edge_sparsity > 0 and not any(
        isinstance(module, MessagePassing) for module in model.modules()
    ):
        raise ValueError(
            f"'model' of 'GraphLotteryPruner' needs a 'MessagePassing' layer "
            f"to prune edges (got none in '{model.__class__.__name__}')"
        )


def check_optimizer(optimizer: Any) -> None:
    """Raise if an argument does not build optimizers of parameters."""
    if optimizer is None:
        return
    if isinstance(optimizer, Optimizer) or not callable(optimizer):
        raise TypeError(
            f"'optimizer' of 'GraphLotteryPruner' needs to be a function of "
            f"parameters that returns an optimizer, such as 'lambda params: "
            f"torch.optim.Adam(params, lr=0.01)' (got {type(optimizer)})"
        )


def check_fit(
    loss_fn: Optional[Callable[..., Any]],
    evaluate: Optional[Callable[..., Any]],
    callbacks: Any,
    checkpoint: Any,
    checkpoint_every: Any,
) -> None:
    """Raise if the arguments of a fit, other than its data, are invalid."""
    if (loss_fn is None) != (evaluate is None):
        raise ValueError(
            f"'loss_fn' and 'evaluate' need to be given together (got "
            f'{loss_fn} and {evaluate})'
        )
    for name, value in [('loss_fn', loss_fn), ('evaluate', evaluate)]:
        if value is not None and not callable(value):
            raise TypeError(
                f"'{name}' needs to be a function (got {type(value)})"
            )
    if not isinstance(callbacks, Collection) or not all(
        map(callable, callbacks)
    ):
        raise TypeError(
            f"'callbacks' needs to be a sequence of callables (got "
            f'{callbacks!r})'
        )
    if checkpoint is not None and not isinstance(
        checkpoint, (str, os.PathLike)
    ):
        raise TypeError(
            f"'checkpoint' needs to be a path (got {type(checkpoint)})"
        )
    if not is_integer(checkpoint_every) or checkpoint_every < 1:
        raise ValueError(
            f"'checkpoint_every' needs to be a positive integer (got "
            f'{checkpoint_every!r})'
        )


def check_data(data: Any) -> None:
    """Raise if the data is neither a homogeneous graph nor a loader."""
    if isinstance(getattr(data, 'data', data), HeteroData):
        raise NotImplementedError(
            "'data' needs to be homogeneous (got 'HeteroData'); convert it "
            "with 'to_homogeneous'"
        )
    if isinstance(data, Data):
        if isinstance(data.get('edge_index'), (Tensor, list, tuple)):
            check_edges(data, "'data'")
        return
    if not (hasattr(data, '__iter__') and hasattr(data, '__len__')):
        raise TypeError(
            f"'data' needs to be a 'Data' or a loader with a length (got "
            f'{type(data)})'
        )
    if len(data) == 0:
        raise ValueError(
            f"a loader as 'data' needs to hold a mini-batch (got an empty "
            f"'{type(data).__name__}')"
        )


def check_edges(data: Data, name: str) -> None:
    """Raise unless the edges of a graph, if dense, are pairs of its nodes."""
    edge_index = data.edge_index
    if is_sparse(edge_index):
        return
    if not isinstance(edge_index, Tensor):
        raise TypeError(
            f"'edge_index' of {name} needs to be a tensor (got "
            f'{type(edge_index)})'
        )
    is_pair = edge_index.dim() == 2 and edge_index.size(0) == 2
    if not is_pair or edge_index.dtype not in [torch.int64, torch.int32]:
        raise ValueError(
            f"'edge_index' of {name} needs to be of torch.int64 and of shape "
            f'[2, num_edges] (got {edge_index.dtype} and '
            f'{list(edge_index.shape)})'
        )
    if edge_index.numel() == 0:
        return
    low, high = (int(value) for value in edge_index.aminmax())
    if low < 0 or high >= data.num_nodes:
        raise ValueError(
            f"'edge_index' of {name} needs to be in [0, {data.num_nodes}), "
            f'its nodes (got {low} to {high})'
        )


def warn_if_no_update(num_steps: int, update_every: int, stop: float) -> None:
    """Warn if no weight moves."""
    if update_every >= stop * num_steps:
        warn_user(
            f"'search_epochs' of 'GraphLotteryPruner' are too few: no weights "
            f'will move in {num_steps} steps, since the first update is due '
            f"after 'update_every={update_every}' steps and the last one "
            f'before step {stop * num_steps:g}'
        )


def warn_user(message: str) -> None:
    """Warn in the name of the first caller outside of this package."""
    package = __name__.split('.')[0]
    frame, level = sys._getframe(), 1
    while frame.f_globals.get('__name__', '').split('.')[0] == package:
        if frame.f_back is None:
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
