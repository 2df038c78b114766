"""Models without the channels that left, which compute the same."""

import copy
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Embedding, EmbeddingBag, Module, Parameter, RNNBase

from torch_geometric_ext.lottery.task import Task
from torch_geometric_ext.lottery.weights.channel_selection import (
    Channels,
    is_attention,
)
from torch_geometric_ext.lottery.weights.weight_masks import (
    State,
    Weights,
    build_model,
    clear_caches,
    weight_key,
)
from torch_geometric_ext.nn.equivalence import NoDropout, perturb_parameters
from torch_geometric_ext.nn.linear_layers import LINEARS, find_layers

# The positions that are left of the tensors of a state, by dimensions:
Index = Dict[str, Dict[int, Tensor]]
HEADS = -2  # The last two dimensions, as one: heads and their channels.

EMBEDDINGS = (Embedding, EmbeddingBag)
INPUT_SIZES = ['in_channels', 'in_features']
OUTPUT_SIZES = ['out_channels', 'out_features']
SIZES = [*INPUT_SIZES, *OUTPUT_SIZES, 'hidden_channels', 'num_features']


def find_index(
    template: Module, channels: Channels, state: State, task: Task, seed: int
) -> Optional[Index]:
    """How to narrow a model, or :obj:`None` if the result would not compute
    the same as with channels that are zero, since layers normalize over
    channels, say, or compare all of them: this is tried, with the weights of
    a state and some noise. Nor are layers narrowed that are not pruned.
    """
    index = _index(template, channels, state)
    linears = set(find_layers(template, LINEARS).values())
    names = {key.rpartition('.')[0] for key in index}
    if len(index) == 0 or not names & linears <= channels.rows.keys():
        return None
    wide = build_model(template, Weights(state, {}))
    batch = task.first_batch()
    try:
        torch.manual_seed(seed)
        perturb_parameters(wide)
        for name in channels.rows:
            weight = wide.get_submodule(name).get_parameter('weight')
            weight.data *= channels.mask(name)
        narrow = narrow_model(wide, index)
        found = _trial(narrow, task, batch, seed)
        expected = _trial(wide, task, batch, seed)
    except Exception:  # Models may do anything with their sizes.
        return None
    parts = {key: _part(x, index.get(key, {})) for key, x in expected.items()}
    return index if _are_close(found, parts) else None


def _index(template: Module, channels: Channels, state: State) -> Index:
    """Tensors of no layer with channels, such as biases of convolutions, are
    taken to have them along dimensions of as many elements, but for those of
    convolutions whose layers keep theirs, rows of embeddings, and recurrent
    layers, which keep their weights elsewhere, too.
    """
    modules = dict(template.named_modules(remove_duplicate=False))
    widths = {
        mask.numel(): _positions(mask)
        for mask in channels.rows.values()
        if not mask.all()
    }
    index: Index = {}
    for key, x in state.items():
        name = key.rpartition('.')[0]
        if name in channels.rows:
            masks = [channels.rows[name], channels.cols[name]]
            index[key] = {
                dim: _positions(mask)
                for dim, mask in enumerate(masks[: x.dim()])
                if not mask.all()
            }
        else:
            complete = {
                mask.numel()
                for other, mask in channels.rows.items()
                if other.startswith(f'{name}.') and name and mask.all()
            }
            sizes = dict(enumerate(x.shape))
            if is_attention(x) and x.numel() in widths:
                sizes = {HEADS: x.numel()}
            if isinstance(modules.get(name), EMBEDDINGS):
                sizes.pop(0)
            if isinstance(modules.get(name), RNNBase):
                sizes.clear()
            index[key] = {
                dim: widths[size]
                for dim, size in sizes.items()
                if size in widths and size not in complete
            }
    return {key: kept for key, kept in index.items() if kept}


def _positions(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten()


def _trial(
    model: Module, task: Task, batch: Any, seed: int
) -> Dict[str, Tensor]:
    """The loss in evaluation, and that in training with its gradients."""
    torch.manual_seed(seed)  # With gradients, which a loss may take:
    eval_loss = task.loss(model.eval(), copy.copy(batch)).detach()
    torch.manual_seed(seed)
    with NoDropout():
        loss = task.loss(model.train(), copy.copy(batch))
    loss.backward()
    grads = {
        name: param.grad
        for name, param in model.named_parameters()
        if param.grad is not None
    }
    return {**grads, '': torch.stack([eval_loss, loss.detach()])}


def _are_close(found: Dict[str, Tensor], expected: Dict[str, Tensor]) -> bool:
    """Sums may be in another order, and be zero but for that."""
    if found.keys() != expected.keys():
        return False
    largest = {
        key: float(x.abs().max()) if x.numel() > 0 else 0.0
        for key, x in expected.items()
    }
    floor = 1e-5 * max(largest.values())
    return all(
        torch.allclose(
            x, expected[key], rtol=0, atol=1e-4 * largest[key] + floor
        )
        for key, x in found.items()
    )


def narrow_model(model: Module, index: Index) -> Module:
    """A copy of a model with a part of its tensors."""
    model = copy.deepcopy(model)
    clear_caches(model)
    parts: Dict[Tensor, Tensor] = {}  # Tensors may be shared.
    sizes: Dict[int, int] = {}
    for name, module in model.named_modules():
        for tensors in [module._parameters, module._buffers]:
            for leaf, x in tensors.items():
                kept = index.get(f'{name}.{leaf}'.lstrip('.'))
                if x is None or not kept:
                    continue
                if x not in parts:
                    part: Tensor = _part(x.detach(), kept)
                    if isinstance(x, Parameter):
                        part = Parameter(part, x.requires_grad)
                    parts[x] = part
                    pairs = zip(x.shape, part.shape)
                    sizes.update({a: b for a, b in pairs if a != b})
                tensors[leaf] = parts[x]
    for module in model.modules():
        _set_sizes(module, sizes)
    return model


def _set_sizes(module: Module, sizes: Dict[int, int]) -> None:
    """Tells a module how many channels it has."""
    for name in SIZES:
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


def narrow_weights(weights: Weights, index: Index) -> Weights:
    """What is left of the weights of a model."""
    return Weights(
        {
            key: _part(x, index.get(key, {}))
            for key, x in weights.state.items()
        },
        {
            name: _part(mask, index.get(weight_key(name), {}))
            for name, mask in weights.masks.items()
        },
    )


def widen_weights(weights: Weights, index: Index, state: State) -> Weights:
    """The inverse of :func:`narrow_weights`. Where there are none, weights of
    layers are zero, and all else is that of a state.
    """
    masks = {
        name: _whole(
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
        wide[key] = _whole(x, base, index.get(key, {}))
    return Weights(wide, masks)


def _part(x: Tensor, kept: Dict[int, Tensor]) -> Tensor:
    if HEADS in kept:
        part = x.flatten(HEADS)[..., kept[HEADS].to(x.device)]
        return part.view(*x.shape[:-1], -1)
    for dim, index in kept.items():
        x = x.index_select(dim, index.to(x.device))
    return x


def _whole(part: Tensor, base: Tensor, kept: Dict[int, Tensor]) -> Tensor:
    if len(kept) == 0:
        return part
    if HEADS in kept:
        index = kept[HEADS].to(base.device)
        base.flatten(HEADS)[..., index] = part.flatten(HEADS)
        return base
    base[_grid(base, kept)] = part
    return base


def _grid(x: Tensor, kept: Dict[int, Tensor]) -> Tuple[Any, ...]:
    axes = [
        kept[dim].to(x.device)
        if dim in kept
        else torch.arange(size, device=x.device)
        for dim, size in enumerate(x.shape)
    ]
    return torch.meshgrid(*axes, indexing='ij')
