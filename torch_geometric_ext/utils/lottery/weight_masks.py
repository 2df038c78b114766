"""Weights that exist, as masks by the names of linear layers, and models that
have only these.
"""

import copy
from typing import Dict, List, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.nn import SparseLinear, densify
from torch_geometric_ext.nn.linear_layers import swap_layers
from torch_geometric_ext.sparsity.ranking import top_mask

Masks = Dict[str, Tensor]
State = Dict[str, Tensor]


class Weights(NamedTuple):
    """The state of a dense model, and masks of those of its weights that
    exist: all of a layer without.
    """

    state: State
    masks: Masks


def global_masks(weights: Weights, names: List[str], size: int) -> Masks:
    """Keeps the :obj:`size` largest magnitudes of the layers that are named,
    compared over all of them, among those that exist.
    """
    dense = {name: weights.state[f'{name}.weight'] for name in names}
    score = torch.cat(
        [
            x.abs().masked_fill(~weights.masks[name], -1).flatten()
            if name in weights.masks
            else x.abs().flatten()
            for name, x in dense.items()
        ]
    )
    masks = top_mask(score, size).split([x.numel() for x in dense.values()])
    return {
        name: mask.view_as(dense[name]) for name, mask in zip(dense, masks)
    }


def random_masks(
    weights: Weights, names: List[str], size: int, generator: torch.Generator
) -> Masks:
    """Keeps :obj:`size` weights of the layers that are named, at random."""
    dense = {name: weights.state[f'{name}.weight'] for name in names}
    sizes = [x.numel() for x in dense.values()]
    index = torch.randperm(sum(sizes), generator=generator)[:size]
    mask = torch.zeros(sum(sizes), dtype=torch.bool)
    mask[index] = True
    return {
        name: part.view(x.shape).to(x.device)
        for part, (name, x) in zip(mask.split(sizes), dense.items())
    }


def build_model(template: Module, weights: Weights) -> Module:
    """A copy of a dense model in which only some weights exist."""
    model = copy.deepcopy(template)
    model.load_state_dict(weights.state)
    clear_caches(model)
    linears = {name: model.get_submodule(name) for name in weights.masks}
    return swap_layers(
        model,
        {
            linear: SparseLinear.from_dense(linear, mask=weights.masks[name])
            for name, linear in linears.items()
        },
    )


def read_weights(model: Module) -> Weights:
    """The inverse of :func:`build_model`."""
    masks = {
        name: module.mask
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    }
    if masks:
        model = densify(copy.deepcopy(model))
    state = {key: x.detach().clone() for key, x in model.state_dict().items()}
    return Weights(state, masks)


def clear_caches(model: Module) -> None:
    """Lets convolutions forget what they computed from a graph."""
    for module in model.modules():
        if isinstance(module, MessagePassing):
            for name in vars(module):
                if name.startswith('_cached'):
                    setattr(module, name, None)
