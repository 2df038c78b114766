"""Masks of the weights of linear layers, and models without pruned weights."""

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
    """The state of a dense model, and masks of the weights that remain, by
    the names of their layers. All weights of other layers remain.
    """

    state: State
    masks: Masks


def global_masks(
    weights: Weights,
    names: List[str],
    size: int,
    channels: Optional[Channels] = None,
) -> Masks:
    """Return masks of the :obj:`size` remaining weights of largest magnitude
    over all named layers, and of some channels if there are any.
    """
    scores = {name: weights.state[weight_key(name)].abs() for name in names}
    for name, mask in weights.masks.items():
        scores[name].masked_fill_(~mask, -1)
    if channels is not None:
        for name, score in scores.items():
            score.masked_fill_(~channels.mask(name), -1)
    return _top_masks(scores, size)


def random_masks(
    state: State, names: List[str], size: int, generator: torch.Generator
) -> Masks:
    """Return masks of :obj:`size` random weights of the named layers."""
    scores = {}
    for name in names:
        weight = state[weight_key(name)]
        score = torch.rand(weight.shape, generator=generator)
        scores[name] = score.to(weight.device)
    return _top_masks(scores, size)


def _top_masks(scores: Dict[str, Tensor], size: int) -> Masks:
    """Return masks of the largest scores, with at least one in each layer, so
    that the outputs of the layer depend on its inputs.
    """
    if len(scores) == 0:
        return {}
    sizes = [x.numel() for x in scores.values()]
    score = torch.cat([x.flatten() for x in scores.values()])
    for part in score.split(sizes):
        part[part.argmax()] = torch.inf
    masks = top_mask(score, size).split(sizes)
    return {
        name: mask.view_as(x) for mask, (name, x) in zip(masks, scores.items())
    }


def weight_key(name: str) -> str:
    """Return the key of the weight of a layer, which may be the model."""
    return f'{name}.weight'.lstrip('.')


def build_model(template: Module, weights: Weights) -> Module:
    """Return a copy of a dense model without pruned weights."""
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
    """Return the weights of a model of :func:`build_model`."""
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


def drop_pruned(state: State, masks: Masks) -> State:
    """Return a state with the remaining weights only, by masks of its
    tensors. Tensors whose pruned weights are not zero stay whole.
    """
    return {
        key: x[masks[key]] if key in masks and not x[~masks[key]].any() else x
        for key, x in state.items()
    }


def fill_pruned(state: State, masks: Masks) -> State:
    """Return the state of :func:`drop_pruned`, with zeros for pruned
    weights.
    """
    out = dict(state)
    for key in state.keys() & masks.keys():
        x, mask = state[key], masks[key]
        if x.shape != mask.shape:
            out[key] = x.new_zeros(mask.shape).masked_scatter(mask, x)
    return out


def clear_caches(model: Module) -> None:
    """Clear what convolutions cache of a graph."""
    for module in model.modules():
        if isinstance(module, MessagePassing):
            for name in vars(module):
                if name.startswith('_cached'):
                    setattr(module, name, None)
