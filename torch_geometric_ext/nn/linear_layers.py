"""Find the linear layers of a model that can be replaced, and replace them."""

import logging
from collections import Counter
from typing import (
    Any,
    Dict,
    Iterable,
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
from torch.nn.parameter import is_lazy
from torch_geometric.nn.models import PMLP

from torch_geometric_ext.nn.dense.check_weights import check_materialized
from torch_geometric_ext.nn.dense.sparse_linear import (
    DenseLinear,
    SparseLinear,
)
from torch_geometric_ext.nn.hooks import is_hooked

T = TypeVar('T', bound=Module)

LINEARS: Tuple[Type[DenseLinear], ...] = (
    torch.nn.Linear,
    torch_geometric.nn.Linear,
)
FORWARDS = [cls.forward for cls in LINEARS]

# Modules that read the weights of their layers instead of calling them:
READERS: Tuple[Type[Module], ...] = (PMLP,)

Ignored = Union[str, Module, Type[Module]]


def swappable_linears(
    model: Module, ignored: Sequence[Ignored] = ()
) -> Dict[DenseLinear, str]:
    """Return the linear layers that can be replaced, with their names.

    Layers that cannot be replaced are logged with the reason.

    Args:
        model (torch.nn.Module): The model.
        ignored (Sequence[str, torch.nn.Module or type], optional): Names,
            modules or classes of layers to skip, or of modules that contain
            them. (default: :obj:`()`)

    Raises:
        ValueError: If there is none, a layer is not initialized or on the
            meta device, or an element of :obj:`ignored` matches no linear
            layer.
        TypeError: If :obj:`ignored` is not a sequence.
    """
    names = find_layers(model, LINEARS)
    skipped = _find_ignored(model, ignored)
    reasons = {
        linear: reason
        for linear, reason in obstacles(model, list(names)).items()
        if linear not in skipped
    }
    layers = {
        linear: name
        for linear, name in names.items()
        if linear not in skipped and linear not in reasons
    }
    weights = {name: linear.weight for linear, name in layers.items()}
    check_materialized('model', weights)
    dense = ', '.join(f"'{names[x]}' ({why})" for x, why in reasons.items())
    if len(layers) == 0:
        sparse = list(find_layers(model, (SparseLinear,)).values())
        hint = (
            f". Its 'SparseLinear' layers {sparse} are sparse already: call "
            f"'densify' first, or change their sparsity with a scheduler "
            f"such as 'GradualMagnitude'"
        )
        raise ValueError(
            f"'model' needs a linear layer to swap that is not in 'ignored' "
            f'(layers that stay dense: {dense or "none"})'
            f'{hint if sparse else ""}'
        )
    if dense:
        logging.getLogger(__name__).info(f'Layers that stay dense: {dense}')
    return layers


def find_layers(model: Module, classes: Tuple[Type[T], ...]) -> Dict[T, str]:
    """Return the modules of given classes, with their (first) names."""
    return {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, classes)
    }


def _find_ignored(model: Module, ignored: Sequence[Ignored]) -> Set[Module]:
    """Return the linear layers within modules given by name, object or
    class.
    """
    if isinstance(ignored, (str, Module)) or not isinstance(ignored, Iterable):
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
    """Return the layers that cannot be replaced, with the reason."""
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
    # The class of the layer that `torch.nn.MultiheadAttention` never calls:
    if is_read or isinstance(linear, NonDynamicallyQuantizableLinear):
        return 'another module reads its weight'
    if type(linear).forward not in FORWARDS:
        return "overrides 'forward'"
    if set(linear._parameters) != {'weight', 'bias'}:
        return 'its weight is parametrized'
    if is_lazy(linear.weight):  # Removes its own hook once initialized.
        return None
    if is_hooked(linear):
        return 'has hooks'
    if linear.weight.numel() == 0:
        return 'has no weights'
    return None


def swap_layers(model: Module, swaps: Mapping[Any, Module]) -> Module:
    """Replace layers of a model in-place, wherever they occur.

    Args:
        model (torch.nn.Module): The model.
        swaps (Mapping[torch.nn.Module, torch.nn.Module]): The replacement of
            each layer.

    Returns:
        The model, or its replacement.
    """
    if model in swaps:
        return swaps[model]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in swaps:
                module._modules[name] = swaps[child]
    return model
