from typing import Any, Dict

import torch
from torch import Tensor

from torch_geometric_ext.loader.draw import UNKNOWN

KEYS = (
    'policy',
    'size',
    'budget',
    'epoch',
    'started',
    'order',
    'generator',
    'expected',
    'graph_idx',
    'feedback',
    'seen',
    'history',
)


def check_state(
    sampler: Any,
    state: Dict[str, Any],
    extra: Dict[str, Any],
    num_columns: int,
) -> Dict[str, Any]:
    """Check the state of a sampler before it is loaded, and return it.

    Args:
        sampler (DynamicSampler): The sampler that will load the state.
        state (dict): The state.
        extra (dict): The current values that a sub-class adds to the state.
        num_columns (int): The number of values of the feedback on a graph.

    Raises:
        ValueError: If the state is incomplete or damaged, or is that of
            another class, number of graphs or budget.
    """
    owner = f"'state_dict' of '{sampler.__class__.__name__}' needs to"
    expected = {
        'policy': sampler.__class__.__name__,
        'size': sampler.size,
        'budget': sampler.budget,
    }
    for key, value in expected.items():
        if state.get(key) != value:
            raise ValueError(
                f"{owner} have the same '{key}' (expected {value}, got "
                f'{state.get(key)})'
            )
    keys = [*KEYS, *extra]
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(
            f'{owner} have the keys {keys} (got none of {missing})'
        )
    problem = _find_problem(sampler, state, extra, num_columns)
    if problem is not None:
        raise ValueError(f"{owner} be undamaged (got a wrong '{problem}')")
    return state


def _find_problem(
    sampler: Any,
    state: Dict[str, Any],
    extra: Dict[str, Any],
    num_columns: int,
) -> Any:
    """Return the first key with a value that cannot be loaded."""
    size, order, generator = sampler.size, state['order'], state['generator']
    graph_idx, feedback = state['graph_idx'], state['feedback']
    expected, seen = state['expected'], state['seen']
    epoch = state['epoch']
    if not isinstance(epoch, int) or epoch < -1:
        return 'epoch'
    if not isinstance(state['started'], bool):
        return 'started'
    length = (0,) if epoch == -1 else (sampler.budget, size)
    if not _is_index(order, size) or order.numel() not in length:
        return 'order'
    if not _is_index(graph_idx, size):
        return 'graph_idx'
    if not _is_table(feedback, graph_idx) or (feedback.size(1) != num_columns):
        return 'feedback'
    if expected is not None and not _is_expectation(expected, size):
        return 'expected'
    if not _is_row(seen, size) or seen.dtype != torch.bool:
        return 'seen'
    history = state['history']
    if not isinstance(history, list) or not all(
        isinstance(row, dict) for row in history
    ):
        return 'history'
    try:
        torch.Generator().set_state(generator.cpu())
    except (AttributeError, RuntimeError, TypeError):
        return 'generator'
    return _find_extra_problem(state, extra, size)


def _find_extra_problem(
    state: Dict[str, Any], extra: Dict[str, Any], size: int
) -> Any:
    for key, value in extra.items():
        other = state[key]
        if key.endswith('_idx'):
            valid = _is_index(other, size)
        elif f'{key}_idx' in extra:  # Rows of the graphs at these positions.
            index = state[f'{key}_idx']
            valid = _is_index(index, size) and _is_table(other, index)
        else:
            valid = _is_similar(value, other)
        if not valid:
            return key
    return None


def _is_row(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.shape == (size,)


def _is_expectation(value: Any, size: int) -> bool:
    return _is_row(value, size) and value.is_floating_point()


def _is_index(value: Any, size: int) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        return False
    return value.dim() == 1 and bool(((value >= 0) & (value < size)).all())


def _is_table(value: Any, graph_idx: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.dim() == 2 and value.size(0) == graph_idx.numel()


def _is_similar(value: Any, other: Any) -> bool:
    """Return whether a value of the state can replace the current one."""
    if isinstance(value, list):
        numbers = isinstance(other, list)
        return numbers and all(isinstance(x, float) for x in other)
    if not isinstance(value, Tensor):
        return isinstance(other, type(value))
    if not isinstance(other, Tensor) or other.shape != value.shape:
        return False
    if value.dtype == torch.int64 and bool((other < UNKNOWN).any()):
        return False  # Classes of graphs.
    return value.dtype == other.dtype
