"""Checks of what users pass to a lottery search."""

import inspect
import warnings
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.full_batch.call_model import edge_kwargs
from torch_geometric_ext.nn import SparseLinear

NODE_TASK_KEYS = ['x', 'edge_index', 'y', 'train_mask', 'val_mask']


def check_prunable(model: Any, edge_sparsity: float) -> None:
    """Raise if a model is not dense or holds nothing to prune."""
    if not isinstance(model, Module):
        raise TypeError(
            f"'model' of 'GraphLotteryPruner' needs to be a "
            f"'torch.nn.Module' (got {type(model)})"
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
    checkpoint_every: int,
) -> None:
    """Raise if the arguments of a fit, other than its data, are invalid."""
    if (loss_fn is None) != (evaluate is None):
        raise ValueError(
            f"'loss_fn' and 'evaluate' need to be given together (got "
            f'{loss_fn} and {evaluate})'
        )
    if callable(callbacks):
        raise TypeError(
            f"'callbacks' needs to be a sequence of callables (got "
            f'{type(callbacks)})'
        )
    if checkpoint_every < 1:
        raise ValueError(
            f"'checkpoint_every' needs to be at least one (got "
            f'{checkpoint_every})'
        )


def check_data(data: Any) -> None:
    """Raise if the data is neither a homogeneous graph nor a loader."""
    if isinstance(getattr(data, 'data', data), HeteroData):
        raise NotImplementedError(
            "'data' needs to be homogeneous (got 'HeteroData'); convert it "
            "with 'to_homogeneous'"
        )
    if not isinstance(data, Data) and not (
        hasattr(data, '__iter__') and hasattr(data, '__len__')
    ):
        raise TypeError(
            f"'data' needs to be a 'Data' or a loader with a length (got "
            f'{type(data)})'
        )


def check_node_task(data: Any, model: Module, weight_sparsity: float) -> None:
    """Raise if a graph or a model does not fit node classification."""
    if not isinstance(data, Data):
        raise ValueError(
            f"a loader as 'data' needs 'loss_fn' and 'evaluate' (got "
            f'{type(data)})'
        )
    kwargs = edge_kwargs(model, data)
    try:
        inspect.signature(model.forward).bind(None, None, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"'model' needs to be called with 'x' and 'edge_index' (and "
            f"'edge_weight' and 'edge_attr', if 'data' holds them); for any "
            f"other model, pass 'loss_fn' and 'evaluate' ({error})"
        ) from error
    missing = [key for key in NODE_TASK_KEYS if data.get(key) is None]
    if missing:
        raise ValueError(
            f"'data' needs to hold {missing} for node classification ('adj_t' "
            f"does not replace 'edge_index'); for any other task, pass "
            f"'loss_fn' and 'evaluate' (got {data})"
        )
    layout = getattr(data.x, 'layout', type(data.x))
    if weight_sparsity > 0 and layout != torch.strided:
        raise ValueError(
            f"'x' of 'data' needs to be dense to prune weights; convert it "
            f"with 'to_dense', and layers still skip its zeros (got {layout})"
        )
    _check_labels(data)


def _check_labels(data: Data) -> None:
    y = data.y
    if y.dim() != 1 or y.is_floating_point() or y.size(0) != data.num_nodes:
        raise ValueError(
            f"'y' of 'data' needs to hold one class for each of the "
            f"{data.num_nodes} nodes; for any other task, pass 'loss_fn' and "
            f"'evaluate' (got {list(y.shape)} of {y.dtype})"
        )
    for key in ['train_mask', 'val_mask']:
        mask = data[key]
        if mask.dtype != torch.bool or mask.shape != y.shape:
            raise ValueError(
                f"'{key}' of 'data' needs to be of torch.bool and of shape "
                f'{list(y.shape)}, one split (got {mask.dtype} and '
                f'{list(mask.shape)})'
            )
        if not mask.any():
            raise ValueError(f"'{key}' of 'data' selects no node")


def warn_if_no_update(num_steps: int, update_every: int, stop: float) -> None:
    """Warn in the name of the caller's caller if no weight moves."""
    if update_every >= stop * num_steps:
        warnings.warn(
            f"'search_epochs' of 'GraphLotteryPruner' are too few: no weights "
            f'will move in {num_steps} steps, since the first update is due '
            f"after 'update_every={update_every}' steps and the last one "
            f'before step {stop * num_steps:g}',
            stacklevel=3,
        )
