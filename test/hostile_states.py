"""Replace each value of a state by values that it cannot be."""

import copy
import math

import pytest
import torch

PLAIN = [None, 'x', -1, 10**9, math.nan, math.inf, True, 0.5, [], {}]


def assert_same(a, b):
    """Assert that two states are equal, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


def hostile_tensors(x):
    """Return tensors of other types, sizes and values."""
    out = [x.to(dtype) for dtype in (torch.half, torch.int64, torch.double)]
    out += [x.bool(), x.unsqueeze(0), x.flatten()[:1].squeeze()]
    if x.dim() > 0:
        out += [x[1:], torch.cat([x, x[:1]]), x[:0]]
    if x.dtype != torch.bool:
        out += [torch.full_like(x, 0).sub_(1)]
        out += [torch.full_like(x, 200 if x.dtype == torch.uint8 else 10**9)]
    if x.is_floating_point():
        out += [torch.full_like(x, value) for value in (math.nan, math.inf)]
    return out


def hostile_values(value):
    """Return replacements of a value, and of the values that it holds."""
    out = list(PLAIN)
    if isinstance(value, torch.Tensor):
        out += hostile_tensors(value)
    elif isinstance(value, list):
        out += [value[1:], [*value, *value[:1]], dict(enumerate(value))]
        nested = hostile_values(value[0])[:20] if value else PLAIN
        out += [[x, *value[1:]] for x in nested]
        out += [[*value, x] for x in PLAIN]
    elif isinstance(value, dict):
        out += [list(value), {**value, 'extra': 0}]
        for key, x in value.items():
            out.append({k: y for k, y in value.items() if k != key})
            out += [{**value, key: y} for y in hostile_values(x)]
    elif value is None:
        out += [torch.zeros(()), torch.zeros(3)]
    return out


def check_hostile_states(make, behave, optional=()):
    """Assert that a damaged state is refused before anything changes, or that
    the object works with it.

    Args:
        make (Callable): Returns an object in the middle of its work, and the
            later state that it will load.
        behave (Callable): Continues the work, and returns a record of it.
        optional (Collection[str]): The keys that may be missing.
    """
    original, state = make()
    before, expected = copy.deepcopy(original.state_dict()), behave(original)
    states = [
        (key, {**state, key: x})
        for key in state
        for x in hostile_values(state[key])
    ]
    num_refused = 0
    for key, damaged in states:
        made, _ = make()
        copied = copy.deepcopy(damaged)
        try:
            made.load_state_dict(damaged)
        except (TypeError, ValueError) as error:
            assert "'state_dict' of '" in str(error)
            assert_same(made.state_dict(), before)
            assert_same(behave(made), expected)
            num_refused += 1
        else:
            try:
                behave(made)
            except Exception as error:
                message = f'{key}: {damaged[key]}'
                raise AssertionError(message) from error
        assert_same(damaged, copied)
    assert num_refused > len(states) / 2

    made, _ = make()
    for key in state:
        incomplete = {k: x for k, x in state.items() if k != key}
        if key in optional:
            made.load_state_dict(incomplete)
            made, _ = make()
            continue
        with pytest.raises(ValueError, match=f"'{key}'"):
            made.load_state_dict(incomplete)
    for wrong in [None, [], 'x', 3, [state]]:
        with pytest.raises(TypeError, match='needs to be a dictionary'):
            made.load_state_dict(wrong)
    assert_same(made.state_dict(), before)
    made.load_state_dict({**state, 'extra': 0})
    assert_same(made.state_dict(), state)
    behave(made)
