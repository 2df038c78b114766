"""Weights that exist, as masks by the names of linear layers, and models that
have only these.
"""

import copy
from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.lottery.weights.channel_selection import Channels
from torch_geometric_ext.nn import SparseLinear
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


def global_masks(
    weights: Weights,
    names: List[str],
    size: int,
    channels: Optional[Channels] = None,
) -> Masks:
    """Keeps the :obj:`size` largest magnitudes of the layers that are named,
    compared over all of them, among those that exist (and are of some
    channels).
    """
    scores = {name: weights.state[weight_key(name)].abs() for name in names}
    for name, mask in weights.masks.items():
        scores[name].masked_fill_(~mask, -1)
    if channels is not None:
        for name, score in scores.items():
            score.masked_fill_(~channels.mask(name), -1)
    return _top_masks(scores, size)


def random_masks(
    weights: Weights, names: List[str], size: int, generator: torch.Generator
) -> Masks:
    """Keeps :obj:`size` weights of the layers that are named, at random."""
    scores = {}
    for name in names:
        weight = weights.state[weight_key(name)]
        score = torch.rand(weight.shape, generator=generator)
        scores[name] = score.to(weight.device)
    return _top_masks(scores, size)


def _top_masks(scores: Dict[str, Tensor], size: int) -> Masks:
    """Keeps the largest scores, and the largest one of each layer: without
    any weight, its outputs would not depend on its inputs.
    """
    sizes = [x.numel() for x in scores.values()]
    score = torch.cat([x.flatten() for x in scores.values()])
    for part in score.split(sizes):
        part[part.argmax()] = torch.inf
    masks = top_mask(score, size).split(sizes)
    return {
        name: mask.view_as(x) for mask, (name, x) in zip(masks, scores.items())
    }


def weight_key(name: str) -> str:
    """The name of the weight of a layer, which may be the model itself."""
    return f'{name}.weight'.lstrip('.')


def build_model(template: Module, weights: Weights) -> Module:
    """A copy of a dense model in which only some weights exist."""
    model = copy.deepcopy(template)
    model.load_state_dict(weights.state)
    clear_caches(model)
    swaps: Dict[Module, Module] = {}
    for name, mask in weights.masks.items():
        linear = model.get_submodule(name)
        mask = mask.to(linear.get_parameter('weight').device)
        swaps[linear] = SparseLinear.from_dense(linear, mask=mask)
    return swap_layers(model, swaps)


def read_weights(model: Module) -> Weights:
    """The inverse of :func:`build_model`."""
    layers = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, SparseLinear)
    }
    state = {
        key: x.detach().clone()
        for key, x in model.state_dict().items()
        if key.rpartition('.')[0] not in layers
    }
    for name, layer in layers.items():
        state[weight_key(name)] = layer.weight.detach()
        if layer.bias is not None:
            state[f'{name}.bias'.lstrip('.')] = layer.bias.detach().clone()
    masks = {
        name: layers[name].mask
        for name, _ in model.named_modules()
        if name in layers
    }
    return Weights(state, masks)


def clear_caches(model: Module) -> None:
    """Lets convolutions forget what they computed from a graph."""
    for module in model.modules():
        if isinstance(module, MessagePassing):
            for name in vars(module):
                if name.startswith('_cached'):
                    setattr(module, name, None)
