"""Find how to narrow a model, and check that the result is equivalent."""

import copy
import logging
from typing import Any, Container, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Embedding, EmbeddingBag, Module, RNNBase
from torch_geometric.data import Data

from torch_geometric_ext.lottery.task import LossFunction
from torch_geometric_ext.lottery.weights.channel_selection import (
    Channels,
    is_attention,
)
from torch_geometric_ext.lottery.weights.narrow_model import (
    HEADS,
    Index,
    narrow_model,
    narrow_tensor,
)
from torch_geometric_ext.lottery.weights.weight_masks import (
    State,
    Weights,
    build_model,
)
from torch_geometric_ext.nn.equivalence import (
    Results,
    fork_rng,
    is_close,
    perturb_parameters,
    run,
)
from torch_geometric_ext.nn.linear_layers import LINEARS, find_layers

EMBEDDINGS = (Embedding, EmbeddingBag)

# A bound on the costs of a check in double precision, in elements of a
# mini-batch: such a check does not use what accelerates the task.
MAX_DOUBLE = 1 << 20


def find_index(
    template: Module,
    channels: Channels,
    state: State,
    loss_fn: LossFunction,
    batch: Any,
    seed: int,
) -> Optional[Index]:
    """Return the positions that remain in a narrow model, or :obj:`None` if
    the model cannot be narrowed.

    The narrow model needs to be equivalent to the wide one without weights of
    pruned channels, which fails if layers normalize over channels, for
    example. Layers that are not to be pruned are not narrowed.

    Args:
        template (torch.nn.Module): The dense model.
        channels (Channels): The channels that remain.
        state (Dict[str, torch.Tensor]): The state to check equivalence with.
        loss_fn (Callable): Returns the loss of a model on a mini-batch.
        batch (Any): The mini-batch.
        seed (int): Seed of the check.
    """
    index = _index(template, channels, state)
    linears = set(find_layers(template, LINEARS).values())
    names = {key.rpartition('.')[0] for key in index}
    if len(index) == 0 or not names & linears <= channels.rows.keys():
        return None
    wide = build_model(template, Weights(state, {}))
    is_equivalent = _is_equivalent(wide, channels, index, loss_fn, batch, seed)
    return index if is_equivalent else None


def _index(template: Module, channels: Channels, state: State) -> Index:
    """Return the positions that remain in each tensor of a state.

    Tensors of other modules than pruned layers, such as biases of
    convolutions, are narrowed along dimensions of as many elements as a
    layer has outputs.
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
            index[key] = {
                dim: widths[size]
                for dim, size in _sizes(modules.get(name), x, widths).items()
                if size in widths and size not in complete
            }
    return {key: positions for key, positions in index.items() if positions}


def _sizes(
    module: Optional[Module], x: Tensor, widths: Container[int]
) -> Dict[int, int]:
    """Return the sizes of the dimensions of a tensor that may be channels."""
    if isinstance(module, RNNBase):  # It keeps its weights elsewhere, too.
        return {}
    sizes = dict(enumerate(x.shape))
    if is_attention(x) and x.numel() in widths:
        sizes = {HEADS: x.numel()}
    if isinstance(module, EMBEDDINGS):  # Rows are no channels.
        sizes.pop(0)
    return sizes


def _positions(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten()


def _is_equivalent(
    wide: Module,
    channels: Channels,
    index: Index,
    loss_fn: LossFunction,
    batch: Any,
    seed: int,
) -> bool:
    """Return whether a narrow model has the loss and the gradients of a wide
    one: in double precision if possible, or in its own.
    """
    for in_double in [True, False]:
        try:
            model, data = _double(wide, batch) if in_double else (wide, batch)
            _prepare(model, channels, seed)
            expected = _results(model, loss_fn, data, seed)
            parts = [_narrow_results(x, index) for x in expected]
            narrow = narrow_model(model, index)
            found = _results(narrow, loss_fn, data, seed)
            if all(map(is_close, found, parts)):
                return True
            reason, again = 'not equivalent', expected
            if in_double:
                again = _results(model, loss_fn, data, seed)
            if all(map(_is_equal, again, expected)):
                break  # Else, the deviation may be noise of a random loss.
        except Exception as error:  # Models may reject sizes and types.
            reason = repr(error)
    logging.getLogger(__name__).info(f'The model is not narrowed ({reason})')
    return False


def _double(model: Module, batch: Any) -> Tuple[Module, Any]:
    """Return a model and a mini-batch in double precision."""
    if not isinstance(batch, (Tensor, Data)):
        raise TypeError(f"'{type(batch)}' is not cast to double precision")
    tensors = [batch] if isinstance(batch, Tensor) else dict(batch).values()
    floats = [
        x for x in tensors if isinstance(x, Tensor) and x.is_floating_point()
    ]
    if sum(x.numel() for x in floats) > MAX_DOUBLE:
        raise ValueError('the mini-batch is too large for double precision')
    model = copy.deepcopy(model).double()
    if isinstance(batch, Tensor):
        return model, _double_tensor(batch)
    return model, copy.copy(batch).apply(_double_tensor)


def _double_tensor(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _results(
    model: Module, loss_fn: LossFunction, batch: Any, seed: int
) -> List[Results]:
    """Return the results in training and in evaluation mode."""
    return [
        run(
            model,
            lambda model: loss_fn(model, copy.copy(batch)),
            training=training,
            seed=seed,
        )
        for training in [True, False]
    ]


def _prepare(model: Module, channels: Channels, seed: int) -> None:
    """Perturb a model, and set weights of pruned channels to zero."""
    device = next(model.parameters()).device
    with fork_rng(seed, device):
        perturb_parameters(model)
    for name in channels.rows:
        weight = model.get_submodule(name).get_parameter('weight')
        weight.data *= channels.mask(name)


def _is_equal(a: Results, b: Results) -> bool:
    return all(
        x is y or x is not None and y is not None and torch.equal(x, y)
        for x, y in zip(a.values(), b.values())
    )


def _narrow_results(results: Results, index: Index) -> Results:
    return {
        key: None if x is None else narrow_tensor(x, index.get(key, {}))
        for key, x in results.items()
    }
