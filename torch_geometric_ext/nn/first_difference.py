"""Find the first layer whose output differs between two runs of a model."""

import copy
from typing import Any, Callable, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.nn.equivalence import NoDropout, fork_rng, is_close

Run = Callable[[Module], Any]


class Difference(NamedTuple):
    """A layer whose input or output differs.

    Args:
        name (str): The path of the layer in the model.
        reason (str): What differs, by how much.
    """

    name: str
    reason: str


class _Event(NamedTuple):
    name: str
    layer: str
    is_output: bool
    value: Tensor


def first_difference(
    model: Module,
    expected: Run,
    found: Run,
    align: Callable[[Tensor, Tensor], Tensor],
    training: bool,
) -> Optional[Difference]:
    """Return the first layer whose input or output differs, if any does.

    Args:
        model (torch.nn.Module): The model.
        expected (Callable): Runs a copy of the model.
        found (Callable): Runs a copy of the model in another way.
        align (Callable): Returns a tensor of the second run with the rows of
            the tensor of the first run. Tensors of other shapes are ignored.
        training (bool): Whether the copies are in training mode.
    """
    runs = [_record(model, run, training) for run in (expected, found)]
    for a, b in zip(*runs):
        if a[:3] != b[:3]:
            return None
        value = align(a.value, b.value)
        if value.shape != a.value.shape or is_close(
            {'': value}, {'': a.value}
        ):
            continue
        label = f"'{a.name}' ({a.layer})" if a.name else f"'{a.layer}'"
        size, scale = (value - a.value).abs().max(), a.value.abs().max()
        by = f'by {float(size):.2g} (of {float(scale):.2g})'
        if a.is_output:
            return Difference(a.name, f'{label} is the first to differ, {by}')
        reason = f"a function in 'forward' before {label} differs, {by}"
        return Difference(a.name, reason)
    return None


def _record(model: Module, run: Run, training: bool) -> List[_Event]:
    """Return the inputs and outputs of all layers in the order of calls."""
    model = copy.deepcopy(model).train(training)
    events: List[_Event] = []

    def add(name: str, layer: Module, values: Any, is_output: bool) -> None:
        values = values if isinstance(values, (list, tuple)) else [values]
        kind = layer.__class__.__name__
        for x in values:
            if isinstance(x, Tensor) and x.is_floating_point():
                events.append(_Event(name, kind, is_output, x.detach()))

    for name, module in model.named_modules():
        module.register_forward_pre_hook(
            lambda layer, args, name=name: add(name, layer, args, False)
        )
        module.register_forward_hook(
            lambda layer, args, out, name=name: add(name, layer, out, True)
        )
    device = next((x.device for x in model.parameters()), torch.device('cpu'))
    with fork_rng(0, device), NoDropout(), torch.no_grad():
        run(model)
    return events
