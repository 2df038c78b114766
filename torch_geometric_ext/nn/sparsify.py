import hashlib
import logging
import math
import warnings
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

from torch_geometric_ext.nn.dense.distribution import layer_densities
from torch_geometric_ext.nn.dense.pattern import random_index
from torch_geometric_ext.nn.dense.sparse_linear import (
    DenseLinear,
    SparseLinear,
)
from torch_geometric_ext.nn.dense.sparse_parameters import is_lazy

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


def sparsify(
    model: Module,
    sparsity: float,
    distribution: str = 'erk',
    ignored: Sequence[Ignored] = (),
    seed: int = 0,
    *,
    min_fan_in: int = 16,
) -> Module:
    r"""Swaps the linear layers of a model for
    :class:`~torch_geometric_ext.nn.SparseLinear`, in place, and returns the
    model (or the sparse layer, if the model is a linear layer itself).

    Swapped are :class:`torch.nn.Linear` and
    :class:`torch_geometric.nn.Linear`, on their own and within convolutions,
    wherever they are called. Left dense, and logged with the reason, are

    * layers whose weight is read instead, as by
      :class:`torch.nn.MultiheadAttention` and
      :class:`~torch_geometric.nn.models.PMLP`,
    * layers that override :meth:`forward`, that have hooks, or whose weight
      is parametrized,
    * layers that share a parameter with another module.

    A layer that has several names in the model is swapped once and stays
    shared.

    The pattern of each layer is drawn uniformly, by a seed of its own that
    depends on its name: other layers do not change it. Its values are those
    of the dense layer, divided by the square root of the density, so that
    freshly drawn weights give outputs of the same variance with the fewer
    weights that come in. Biases stay.

    .. note::
        This is meant for models that are yet to be trained. Of a trained one,
        a random part of the weights is of little use: keep those of largest
        magnitude by :meth:`SparseLinear.from_dense(linear, sparsity=...)
        <torch_geometric_ext.nn.SparseLinear.from_dense>`, or prune while
        training by :class:`~torch_geometric_ext.sparsity.GradualMagnitude`.

    .. note::
        Create the optimizer afterwards: there are new parameters.
        A :meth:`reset_parameters` that writes into :obj:`lin.weight` of a
        layer (as that of :class:`~torch_geometric.nn.conv.PDNConv`), and does
        not call its :meth:`reset_parameters`, leaves a sparse layer as it is.

    Args:
        model (torch.nn.Module): The model, initialized: run one forward pass
            first if it has lazy layers.
        sparsity (float): The share of weights of all swapped layers that do
            not exist, in :math:`[0, 1)`.
        distribution (str, optional): How the other weights are spread over
            the layers (:obj:`"uniform"`, :obj:`"er"` or :obj:`"erk"`): with
            equal densities, or in proportion to
            :math:`(I + O) / (I \cdot O)` for :math:`I` inputs and :math:`O`
            outputs, as in the `"Rigging the Lottery: Making All Tickets
            Winners" <https://arxiv.org/abs/1911.11134>`_ paper.
            (default: :obj:`"erk"`)
        ignored (Sequence[str, torch.nn.Module or type], optional): Layers to
            leave dense: by name, as a module, or by class, each with all it
            contains. (default: :obj:`()`)
        seed (int, optional): Seed of the patterns. (default: :obj:`0`)
        min_fan_in (int, optional): How many weights each output of a layer
            has at least, on average over its outputs, as far as there are
            enough weights; not used by :obj:`"uniform"`. It keeps a last
            layer of few classes from starving at high sparsity.
            (default: :obj:`16`)

    Raises:
        ValueError: If an argument is out of its range, an element of
            :obj:`ignored` matches no linear layer, a lazy layer is not
            initialized, or no layer is left to swap. The model is then
            unchanged.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(1433, 64, num_layers=2, out_channels=7)
        >>> model = sparsify(model, sparsity=0.9, ignored=['convs.1'])
        >>> model.convs[0].lin
        SparseLinear(1433, 64, bias=False, sparsity=0.9...)
        >>> model.convs[1].lin
        Linear(64, 7, bias=False)
    """
    names = _find(model, LINEARS)
    chosen = _ignored(model, ignored)
    reasons = {
        linear: reason
        for linear, reason in _obstacles(model, list(names)).items()
        if linear not in chosen
    }
    layers = [
        linear
        for linear in names
        if linear not in chosen and linear not in reasons
    ]
    _check_initialized([names[x] for x in layers if _waits(x.weight)])
    skipped = ', '.join(f"'{names[x]}' ({why})" for x, why in reasons.items())
    if len(layers) == 0:
        raise ValueError(
            f"'model' needs a linear layer to swap that is not ignored (left "
            f'dense: {skipped or "none"})'
        )
    densities = layer_densities(
        [(linear.weight.size(1), linear.weight.size(0)) for linear in layers],
        sparsity,
        distribution,
        min_fan_in=min_fan_in,
    )
    swaps: Dict[Module, SparseLinear] = {}
    for linear, density in zip(layers, densities):
        swaps[linear] = _sparse(linear, density, _seed(seed, names[linear]))
    empty = [names[x] for x in layers if swaps[x].values.numel() == 0]
    if len(empty) > 0:
        warnings.warn(
            f"'sparsity={sparsity}' leaves no weight in {empty}; lower it, or "
            f'ignore them',
            stacklevel=2,
        )
    if skipped:
        logging.getLogger(__name__).info(f'Left dense: {skipped}')
    return _swap(model, swaps)


def densify(model: Module) -> Module:
    r"""Swaps each :class:`~torch_geometric_ext.nn.SparseLinear` of a model for
    the dense layer of equal outputs, in place, and returns the model (or the
    dense layer): the inverse of :func:`~torch_geometric_ext.nn.sparsify`.

    The weights that do not exist become zeros, which count as any other: save
    and run the model as if it had never been sparse. A layer that has several
    names in the model stays shared.

    .. note::
        To train on, call :meth:`remove` of schedulers first, and create the
        optimizer anew: there are new parameters.

    Args:
        model (torch.nn.Module): The model.

    Raises:
        ValueError: If there is no sparse layer, or a lazy one is not
            initialized. The model is then unchanged.

    Example:
        >>> from torch_geometric.nn import MLP
        >>> model = sparsify(MLP([64, 64, 7]), sparsity=0.9)
        >>> densify(model).lins[0]
        Linear(64, 64, bias=True)
    """
    names = _find(model, (SparseLinear,))
    if len(names) == 0:
        raise ValueError("'model' needs a 'SparseLinear' to swap (got none)")
    _check_initialized([names[layer] for layer in names if is_lazy(layer)])
    return _swap(model, {layer: layer.to_dense() for layer in names})


def _find(model: Module, classes: Tuple[Type[T], ...]) -> Dict[T, str]:
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
        found = {layer for root in roots for layer in _find(root, LINEARS)}
        if len(found) == 0:
            raise ValueError(
                f"'ignored' needs to name modules that are or contain a "
                f'linear layer (got {entry!r})'
            )
        out |= found
    return out


def _obstacles(
    model: Module, linears: List[DenseLinear]
) -> Dict[DenseLinear, str]:
    """Why layers can not be swapped."""
    read = {
        linear
        for reader in _find(model, READERS)
        for linear in _find(reader, LINEARS)
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


def _check_initialized(names: List[str]) -> None:
    if len(names) > 0:
        raise ValueError(
            f"'model' needs to be initialized; run one forward pass first "
            f'(got lazy layers {names})'
        )


def _seed(seed: int, name: str) -> int:
    """A seed for each name, the same in every process."""
    digest = hashlib.sha256(f'{seed}:{name}'.encode()).digest()
    return int.from_bytes(digest[:7], 'little')


@torch.no_grad()
def _sparse(linear: DenseLinear, density: float, seed: int) -> SparseLinear:
    numel = linear.weight.numel()
    size = round(density * numel)
    generator = torch.Generator().manual_seed(seed)
    index = random_index(numel, size, generator).to(linear.weight.device)
    out = SparseLinear.from_dense(linear, index=index)
    out.values.mul_(math.sqrt(numel / max(size, 1)))
    return out


def _swap(model: Module, swaps: Mapping[Any, Module]) -> Module:
    if model in swaps:
        return swaps[model]
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in swaps:
                module._modules[name] = swaps[child]
    return model
