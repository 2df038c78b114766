"""Checks of the graph and the model of a node classification."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.utils import is_sparse

from torch_geometric_ext.full_batch.call_model import call_model, edge_kwargs

LABEL_KEYS = ['y', 'train_mask', 'val_mask']
NODE_TASK_KEYS = ['x', 'edge_index', *LABEL_KEYS]


def check_node_task(data: Any, model: Module, weight_sparsity: float) -> None:
    """Raise if a graph or a model does not fit node classification."""
    if not isinstance(data, Data):
        raise ValueError(
            f"a loader as 'data' needs 'loss_fn' and 'evaluate', and a data "
            f"set to be indexed, such as 'dataset[0]' (got {type(data)})"
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
    keys = [*NODE_TASK_KEYS, *kwargs]
    _check_tensors(data, keys, model)
    layout = data.x.layout
    if weight_sparsity > 0 and layout != torch.strided:
        raise ValueError(
            f"'x' of 'data' needs to be dense to prune weights; convert it "
            f"with 'to_dense', and layers still skip its zeros (got {layout})"
        )
    _check_labels(data)
    for key in kwargs:
        if data[key].shape[:1] != (data.num_edges,):
            raise ValueError(
                f"'{key}' of 'data' needs to have a row for each of the "
                f'{data.num_edges} edges (got shape {list(data[key].shape)})'
            )
    for key in {'x', 'edge_weight'} & {'x', *kwargs}:
        _check_finite(data[key], f"'{key}' of 'data'")


def _check_tensors(data: Data, keys: Any, model: Module) -> None:
    """Raise unless attributes are tensors on the device of the model."""
    states = [*model.parameters(), *model.buffers()]
    devices = {x.device for x in states}  # More in model parallelism.
    for key in keys:
        value = data[key]
        if key == 'edge_index' and is_sparse(value):
            continue
        if not isinstance(value, Tensor):
            raise TypeError(
                f"'{key}' of 'data' needs to be a tensor (got {type(value)})"
            )
        if len(devices) == 1 and value.device not in devices:
            raise ValueError(
                f"'{key}' of 'data' needs to be on the device of 'model', "
                f"'{devices.pop()}' (got '{value.device}')"
            )


def _check_finite(value: Tensor, name: str) -> None:
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
    if value.layout != torch.strided:
        value = value.values()
    # A sum in one pass is finite, unless a value is not or it overflows:
    if not value.sum().isfinite() and not value.isfinite().all():
        raise ValueError(
            f'{name} needs to be finite (got '
            f'{int((~value.isfinite()).sum())} values that are infinite or '
            f'not a number)'
        )


def _check_labels(data: Data) -> None:
    y, num_nodes = data.y, data.num_nodes
    is_class = not (y.is_floating_point() or y.is_complex())
    if y.shape != (num_nodes,) or not is_class:
        raise ValueError(
            f"'y' of 'data' needs to hold one class for each of the "
            f"{num_nodes} nodes; for any other task, pass 'loss_fn' and "
            f"'evaluate' (got {list(y.shape)} of {y.dtype})"
        )
    for key in LABEL_KEYS[1:]:
        mask = data[key]
        if mask.dtype != torch.bool or mask.shape != y.shape:
            raise ValueError(
                f"'{key}' of 'data' needs to be of torch.bool and of shape "
                f'{list(y.shape)}, one split (got {mask.dtype} and '
                f'{list(mask.shape)})'
            )
        if not mask.any():
            raise ValueError(f"'{key}' of 'data' selects no node")


@torch.no_grad()
def check_model(model: Module, data: Data) -> None:
    """Run a model once, which initializes lazy layers, and raise if its
    scores do not fit the labels of the graph.
    """
    try:
        out = call_model(model.eval(), data)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # User models can raise anything.
        dtypes = sorted({str(x.dtype) for x in model.parameters()})
        advice = "; convert 'x' with 'float', unless 'model' embeds it"
        if data.x.is_floating_point():
            advice = ''
        raise ValueError(
            f"'model' needs to run on 'x' and 'edge_index' of 'data' (got "
            f"{error!r} for 'x' of {data.x.dtype} and shape "
            f'{list(data.x.shape)}, and parameters of {", ".join(dtypes)})'
            f'{advice}'
        ) from error
    check_outputs(out, data)


def check_outputs(out: Any, data: Data) -> None:
    """Raise if the scores of a model do not fit the labels of the graph."""
    check_scores(out)
    if out.size(0) != data.num_nodes:
        raise ValueError(
            f"'model' needs to return a row of scores for each of "
            f'{data.num_nodes} nodes (got {list(out.shape)})'
        )
    if out.log_softmax(dim=-1).isnan().any():
        raise ValueError(
            "'model' needs to return scores that are numbers; check its "
            "parameters and the edge weights of 'data' (got nan or infinity)"
        )
    for key in LABEL_KEYS[1:]:
        y = data.y[data[key]].long()
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= out.size(1):
            raise ValueError(
                f"'y' of 'data' needs to be in [0, {out.size(1)}), the "
                f"columns of scores of 'model', for all nodes of '{key}' (got "
                f'{low} to {high})'
            )


def check_scores(out: Any) -> None:
    """Raise an error unless there is a score for each node and class."""
    if (
        not isinstance(out, Tensor)
        or out.dim() != 2
        or not out.is_floating_point()
    ):
        got = f'{type(out)}'
        if isinstance(out, Tensor):
            got = f'{list(out.shape)} of {out.dtype}'
        raise ValueError(
            f"'model' needs to return a score of each class for each node; "
            f"for any other, give 'loss_fn' and 'evaluate' (got {got})"
        )
