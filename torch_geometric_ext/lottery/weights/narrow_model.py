"""Build models without pruned channels, and convert their weights."""

import copy
from typing import Any, Dict, Tuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from torch_geometric_ext.lottery.weights.weight_masks import (
    State,
    Weights,
    clear_caches,
    weight_key,
)

# Positions that remain in the tensors of a state, by their dimensions:
Index = Dict[str, Dict[int, Tensor]]
HEADS = -2  # The last two dimensions as one: heads and their channels.

INPUT_SIZES = ['in_channels', 'in_features']
OUTPUT_SIZES = ['out_channels', 'out_features']
ALL_SIZES = [*INPUT_SIZES, *OUTPUT_SIZES, 'hidden_channels', 'num_features']


def narrow_model(model: Module, index: Index) -> Module:
    """Return a copy of a model without pruned channels."""
    model = copy.deepcopy(model)
    clear_caches(model)
    parts: Dict[Tensor, Tensor] = {}  # Modules may share tensors.
    sizes: Dict[int, int] = {}
    for name, module in model.named_modules():
        for tensors in [module._parameters, module._buffers]:
            for leaf, x in tensors.items():
                positions = index.get(f'{name}.{leaf}'.lstrip('.'))
                if x is None or not positions:
                    continue
                if x not in parts:
                    part: Tensor = narrow_tensor(x.detach(), positions)
                    if isinstance(x, Parameter):
                        part = Parameter(part, x.requires_grad)
                    parts[x] = part
                    pairs = zip(x.shape, part.shape)
                    sizes.update({a: b for a, b in pairs if a != b})
                tensors[leaf] = parts[x]
    for module in model.modules():
        _set_sizes(module, sizes)
    return model


def narrow_weights(weights: Weights, index: Index) -> Weights:
    """Return the weights of a narrow model."""
    return Weights(
        {
            key: narrow_tensor(x, index.get(key, {}))
            for key, x in weights.state.items()
        },
        {
            name: narrow_tensor(mask, index.get(weight_key(name), {}))
            for name, mask in weights.masks.items()
        },
    )


def widen_weights(weights: Weights, index: Index, state: State) -> Weights:
    """Return the weights of a wide model from the weights of a narrow one.
    Weights of pruned channels are zero; all else is copied from a state.
    """
    masks = {
        name: _widen_tensor(
            mask,
            torch.zeros_like(state[weight_key(name)], dtype=torch.bool),
            index.get(weight_key(name), {}),
        )
        for name, mask in weights.masks.items()
    }
    keys = {weight_key(name) for name in masks}
    wide = {}
    for key, x in weights.state.items():
        base = state[key].clone()
        if key in keys:
            base.zero_()
        wide[key] = _widen_tensor(x, base, index.get(key, {}))
    return Weights(wide, masks)


def narrow_tensor(x: Tensor, positions: Dict[int, Tensor]) -> Tensor:
    """Return some positions of a tensor along each dimension."""
    if HEADS in positions:
        part = x.flatten(HEADS)[..., positions[HEADS].to(x.device)]
        return part.view(*x.shape[:-1], -1)
    for dim, index in positions.items():
        x = x.index_select(dim, index.to(x.device))
    return x


def _widen_tensor(
    part: Tensor, base: Tensor, positions: Dict[int, Tensor]
) -> Tensor:
    if len(positions) == 0:
        return part
    if HEADS in positions:
        index = positions[HEADS].to(base.device)
        base.flatten(HEADS)[..., index] = part.flatten(HEADS)
        return base
    base[_grid(base, positions)] = part
    return base


def _grid(x: Tensor, positions: Dict[int, Tensor]) -> Tuple[Any, ...]:
    axes = [
        positions[dim].to(x.device)
        if dim in positions
        else torch.arange(size, device=x.device)
        for dim, size in enumerate(x.shape)
    ]
    return torch.meshgrid(*axes, indexing='ij')


def _set_sizes(module: Module, sizes: Dict[int, int]) -> None:
    """Update the numbers of channels that a module stores."""
    for name in ALL_SIZES:
        size = vars(module).get(name)
        if isinstance(size, int):
            setattr(module, name, sizes.get(size, size))
        elif isinstance(size, tuple):
            setattr(module, name, tuple(sizes.get(x, x) for x in size))
    weight = module._parameters.get('weight')
    if weight is not None and weight.dim() == 2:
        for names, size in zip([OUTPUT_SIZES, INPUT_SIZES], weight.shape):
            for name in names:
                if name in vars(module):
                    setattr(module, name, size)
