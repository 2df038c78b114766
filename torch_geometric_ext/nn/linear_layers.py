"""Which linear layers of a model can be swapped for sparse ones, and how."""

import logging
from collections import Counter
from typing import (
    Any,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import torch
import torch_geometric.nn
from torch.nn import Module
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter
from torch_geometric.nn.models import PMLP

from torch_geometric_ext.nn.dense.sparse_linear import DenseLinear

T = TypeVar('T', bound=Module)

LINEARS: Tuple[Type[DenseLinear], ...] = (
    torch.nn.Linear,
    torch_geometric.nn.Linear,
)
FORWARDS = [cls.forward for cls in LINEARS]

# Modules that multiply by the weights of their layers, never calling them:
READERS: Tuple[Type[Module], ...] = (PMLP,)

HOOKS = [
    '_forward_hooks',
    '_forward_pre_hooks',
    '_backward_hooks',
    '_backward_pre_hooks',
]

Ignored = Union[str, Module, Type[Module]]


def swappable_linears(
    model: Module, ignored: Sequence[Ignored] = ()
) -> Dict[DenseLinear, str]:
    """The linear layers that can be swapped, with their (first) names. Those
    that can not, and are not ignored, are logged with the reason.
    """
    names = find_layers(model, LINEARS)
    chosen = _ignored(model, ignored)
    reasons = {
        linear: reason
        for linear, reason in obstacles(model, list(names)).items()
        if linear not in chosen
    }
    layers = {
        linear: name
        for linear, name in names.items()
        if linear not in chosen and linear not in reasons
    }
    check_initialized([layers[x] for x in layers if _waits(x.weight)])
    skipped = ', '.join(f"'{names[x]}' ({why})" for x, why in reasons.items())
    if len(layers) == 0:
        raise ValueError(
            f"'model' needs a linear layer to swap that is not ignored (left "
            f'dense: {skipped or "none"})'
        )
    if skipped:
        logging.getLogger(__name__).info(f'Left dense: {skipped}')
    return layers


def find_layers(model: Module, classes: Tuple[Type[T], ...]) -> Dict[T, str]:
    """The modules of some classes, with their (first) names."""
    return {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, classes)
    }


def _ignored(model: Module, ignored: Sequence[Ignored]) -> Set[Module]:
    """The linear layers in modules given by name, object or class."""
    if isinstance(ignored, (str, Module)):
        raise TypeError(
            f"'ignored' needs to be a sequence of names, modules and classes "
            f'(got {ignored!r})'
        )
    modules = list(model.named_modules(remove_duplicate=False))
    out: Set[Module] = set()
    for entry in ignored:
        if isinstance(entry, str):
            roots = [module for name, module in modules if name == entry]
        elif isinstance(entry, type):
            roots = [
                module for _, module in modules if isinstance(module, entry)
            ]
        else:
            roots = [module for _, module in modules if module is entry]
        found = {
            layer for root in roots for layer in find_layers(root, LINEARS)
        }
        if len(found) == 0:
            raise ValueError(
                f"'ignored' needs to name modules that are or contain a "
                f'linear layer (got {entry!r})'
            )
        out |= found
    return out


def obstacles(
    model: Module, linears: List[DenseLinear]
) -> Dict[DenseLinear, str]:
    """Why layers can not be swapped."""
    read = {
        linear
        for reader in find_layers(model, READERS)
        for linear in find_layers(reader, LINEARS)
    }
    owners = Counter(
        id(param)
        for module in model.modules()
        for param in module._parameters.values()
        if param is not None
    )
    out: Dict[DenseLinear, str] = {}
    for linear in linears:
        reason = _obstacle(linear, linear in read)
        if reason is None:
            params = linear._parameters.values()
            if any(owners[id(param)] > 1 for param in params):
                reason = 'shares a parameter with another module'
        if reason is not None:
            out[linear] = reason
    return out


def _obstacle(linear: DenseLinear, is_read: bool) -> Optional[str]:
    # `torch.nn.MultiheadAttention` marks what it never calls by a class:
    if is_read or isinstance(linear, NonDynamicallyQuantizableLinear):
        return 'its weight is read by another module'
    if type(linear).forward not in FORWARDS:
        return "overrides 'forward'"
    if set(linear._parameters) != {'weight', 'bias'}:
        return 'its weight is parametrized'
    if _waits(linear.weight):  # Its own hook is gone once it is initialized.
        return None
    if any(getattr(linear, name) for name in HOOKS):
        return 'has hooks'
    if linear.weight.numel() == 0:
        return 'has no weights'
    return None


def _waits(weight: torch.Tensor) -> bool:
    return isinstance(weight, UninitializedParameter)


def check_initialized(names: List[str]) -> None:
    """Raises if there are names of lazy layers."""
    if len(names) > 0:
        raise ValueError(
            f"'model' needs to be initialized; run one forward pass first "
            f'(got lazy layers {names})'
        )


def swap_layers(model: Module, swaps: Mapping[Any, Module]) -> Module:
    """Replaces layers, wherever they are in the model, in place."""
    if model in swaps:
        return swaps[model]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in swaps:
                module._modules[name] = swaps[child]
    return model
