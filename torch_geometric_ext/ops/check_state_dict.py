"""Checks of a `state_dict` before anything of it is loaded."""

import math
from typing import Any, Callable, Collection, Mapping

import torch
from torch import Tensor

Check = Callable[[Any], bool]


def check_state_dict(
    owner: Any,
    state: Any,
    same: Mapping[str, Any],
    checks: Mapping[str, Check],
    optional: Collection[str] = (),
) -> None:
    """Raise an error if an object cannot load a state.

    Args:
        owner (Any): The object, for errors.
        state (dict): The state.
        same (Dict[str, Any]): The values that need to equal those of the
            state.
        checks (Dict[str, Callable]): The checks of all other values.
        optional (Collection[str], optional): The keys that states of earlier
            versions lack. (default: :obj:`()`)

    Raises:
        TypeError: If :obj:`state` is not a dictionary.
        ValueError: If a key is missing or its value is wrong.
    """
    name = f"'state_dict' of '{owner.__class__.__name__}' needs to"
    if not isinstance(state, Mapping):
        raise TypeError(f'{name} be a dictionary (got {type(state)})')
    for key, value in same.items():
        unknown = key not in state and key in optional
        if not unknown and not _is_equal(state.get(key), value):
            raise ValueError(
                f"{name} have the same '{key}' (expected {value}, got "
                f'{state.get(key)})'
            )
    missing = [x for x in checks if x not in state and x not in optional]
    if missing:
        keys = [*same, *checks]
        raise ValueError(
            f'{name} have the keys {keys} (got none of {missing})'
        )
    for key, check in checks.items():
        if key in state and not check(state[key]):
            raise ValueError(
                f"{name} be undamaged (got a wrong '{key}', "
                f'{_describe(state[key])})'
            )


def is_integer(value: Any, low: int = 0, high: float = math.inf) -> bool:
    """Return whether a value is an integer of a range."""
    integral = isinstance(value, int) and not isinstance(value, bool)
    return integral and low <= value <= high


def is_float(value: Any, low: float, high: float = math.inf) -> bool:
    """Return whether a value is a number of a range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and low <= value <= high


def is_scalar(value: Any) -> bool:
    """Return whether a value is a floating-point tensor without dimensions,
    of any value.
    """
    return (
        isinstance(value, Tensor)
        and value.dim() == 0
        and value.is_floating_point()
    )


def is_index(value: Any, size: int) -> bool:
    """Return whether a value is a row of positions in a range."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        return False
    return value.dim() == 1 and bool(((value >= 0) & (value < size)).all())


def is_finite(value: Any, shape: Collection[int]) -> bool:
    """Return whether a value is a tensor of finite numbers of a shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return list(value.shape) == list(shape) and bool(value.isfinite().all())


def is_generator(value: Any) -> bool:
    """Return whether a value is the state of a generator on the CPU."""
    try:
        torch.Generator().set_state(value.cpu())
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def is_records(value: Any, keys: Collection[str] = ()) -> bool:
    """Return whether a value is a list of statistics with given keys."""
    if not isinstance(value, list):
        return False
    return all(
        isinstance(row, dict)
        and set(keys) <= set(row)
        and all(_is_statistic(x) for x in row.values())
        for row in value
    )


def _is_statistic(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_statistic(x) for x in value)
    if isinstance(value, Tensor):
        return value.dim() == 0
    return value is None or isinstance(value, (bool, int, float, str))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f'{value.dtype} of shape {list(value.shape)}'
    text = repr(value)
    return text if len(text) < 80 else f'{text[:76]} ...'


def _is_equal(value: Any, other: Any) -> bool:
    """Return whether plain values are equal, without an error for others."""
    if isinstance(value, (list, tuple)) and isinstance(other, list):
        return len(value) == len(other) and all(map(_is_equal, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(
            _is_equal(value[key], other[key]) for key in value
        )
    plain = (bool, int, float, str)
    return isinstance(value, plain) and bool(value == other)
