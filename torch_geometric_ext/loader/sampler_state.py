from typing import Any, Dict

import torch
from torch import Tensor

from torch_geometric_ext.ops.check_state_dict import (
    Check,
    check_state_dict,
    is_finite,
    is_generator,
    is_index,
    is_integer,
    is_records,
)


def check_sampler_state(
    sampler: Any,
    state: Dict[str, Any],
    extra: Dict[str, Any],
    more: Dict[str, Check],
) -> Dict[str, Any]:
    """Check the state of a sampler before it is loaded, and return it.

    Args:
        sampler (DynamicSampler): The sampler that will load the state.
        state (dict): The state.
        extra (dict): The current values that a sub-class adds to the state.
        more (dict): The checks of a sub-class.

    Raises:
        ValueError: If the state is incomplete or damaged, or is that of
            another class, number of graphs or budget.
        TypeError: If the state is not a dictionary.
    """
    size = sampler.size
    same = {
        'policy': sampler.__class__.__name__,
        'size': size,
        'budget': sampler.budget,
    }

    def is_order(value: Any) -> bool:
        lengths = (0,) if state['epoch'] == -1 else (sampler.budget, size)
        return is_index(value, size) and value.numel() in lengths

    checks: Dict[str, Check] = {
        'epoch': lambda x: is_integer(x, -1),
        'started': lambda x: (
            isinstance(x, bool) and (x or state['epoch'] >= 0)
        ),
        'order': is_order,
        'consumed': lambda x: is_integer(x, 0, state['order'].numel()),
        'generator': is_generator,
        'expected': lambda x: x is None or _is_expectation(x, size),
        'graph_idx': lambda x: is_index(x, size),
        'feedback': lambda x: _is_table(x, state['graph_idx']),
        'seen': lambda x: _is_mask(x, size),
        'history': is_records,
    }
    for key, value in extra.items():
        checks[key] = _extra_check(state, extra, key, value, size)
    for key, check in more.items():
        if key in checks:
            checks[key] = _both(checks[key], check)
    check_state_dict(sampler, state, same, checks, optional=('consumed',))
    return state


def _extra_check(
    state: Dict[str, Any], extra: Dict[str, Any], key: str, own: Any, size: int
) -> Check:
    """Return the check of a value that a sub-class adds to the state."""
    if key.endswith('_idx'):
        return lambda x: is_index(x, size)
    if f'{key}_idx' in extra:  # Rows of the graphs at these positions.
        return lambda x: _is_table(x, state[f'{key}_idx'])
    return lambda x: _is_similar(own, x)


def _both(first: Check, second: Check) -> Check:
    return lambda x: first(x) and second(x)


def _is_mask(value: Any, size: int) -> bool:
    is_bool = isinstance(value, Tensor) and value.dtype == torch.bool
    return is_bool and value.shape == (size,)


def _is_expectation(value: Any, size: int) -> bool:
    if not is_finite(value, (size,)) or value.dtype != torch.float:
        return False
    return bool((value >= 0).all())


def _is_table(value: Any, graph_idx: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.dim() == 2 and value.size(0) == graph_idx.numel()


def _is_similar(value: Any, other: Any) -> bool:
    """Return whether a value of the state can replace the current one."""
    if isinstance(value, list):
        numbers = isinstance(other, list)
        return numbers and all(isinstance(x, float) for x in other)
    if isinstance(value, bool) or not isinstance(value, (int, Tensor)):
        return isinstance(other, type(value))
    if isinstance(value, int):
        return is_integer(other)
    if not isinstance(other, Tensor) or other.shape != value.shape:
        return False
    return value.dtype == other.dtype
