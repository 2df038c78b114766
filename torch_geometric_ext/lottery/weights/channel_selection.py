"""Select the hidden channels of a ticket: few channels of many weights are
more accurate than many channels of few weights.
"""

import copy
import math
from bisect import bisect_left
from collections import defaultdict
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Tuple,
)

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.lottery.task import LossFunction

# Chosen by `benchmark/lottery/lottery.py`:
MIN_CHANNELS = 16
CHANNEL_DENSITY = 0.25  # Density of the weights of selected channels.
HEADS_DENSITY = 0.125  # The same, if attention heads share the channels.

# A bound: an input is constant if its range shrinks below this fraction.
TOLERANCE = 1e-3


class Channels(NamedTuple):
    """Masks of the remaining outputs and inputs of linear layers, by the names
    of the layers.
    """

    rows: Dict[str, Tensor]
    cols: Dict[str, Tensor]

    def mask(self, name: str) -> Tensor:
        """Return a mask of the weights of the channels of a layer."""
        return self.rows[name][:, None] & self.cols[name]

    def narrow(self) -> 'Channels':
        """Return the channels of the narrow model: all of its channels."""
        return Channels(
            *({name: x[x] for name, x in masks.items()} for masks in self)
        )

    def num_weights(self, name: str) -> int:
        """Return the number of weights of the channels of a layer."""
        return int(self.rows[name].sum()) * int(self.cols[name].sum())


def find_channels(
    model: Module,
    loss_fn: LossFunction,
    batch: Any,
    names: List[str],
    size: int,
    min_channels: int = MIN_CHANNELS,
) -> Tuple[Channels, Channels]:
    r"""Return the most important hidden channels of a trained model, as few
    as hold :obj:`size` weights, but no fewer than :obj:`min_channels`.

    * Layers with equal numbers of outputs share their channels, as residual
      connections need. All attention heads keep equally many.
    * Layers that no other layer follows compute the result of the model and
      keep all outputs.
    * An input is pruned if it becomes constant. Layers that also read values
      which depend on no parameter, such as features, keep all inputs.
    * All channels remain if the loss cannot be differentiated twice.

    The search takes two forward passes if inputs become constant exactly where
    outputs are pruned, and :math:`O(\log C)` for :math:`C` channels at most.

    Args:
        model (torch.nn.Module): The model.
        loss_fn (Callable): Returns the loss of the model on a mini-batch.
        batch (Any): The mini-batch.
        names (List[str]): The linear layers.
        size (int): Number of weights that the channels need to hold.
        min_channels (int, optional): Number of channels that remain at least.
            (default: :obj:`16`)

    Returns:
        The channels with the inputs that were observed to vary, and with the
        inputs that follow from the positions of pruned channels.
    """
    probe = _Probe(model.eval(), loss_fn, batch, names)
    order, seen = probe.by_importance(), {0: probe.channels({})}

    def select(num_channels: int) -> Dict[int, Tensor]:
        return _leading(order, num_channels, min_channels, probe.heads)

    def suffice(channels: Channels) -> bool:
        return sum(map(channels.num_weights, names)) >= size

    def guess(num_channels: int) -> bool:
        outputs = probe.outputs(select(num_channels))
        return suffice(_aligned(outputs, probe.ranges))

    def observe(num_channels: int) -> bool:
        seen[num_channels] = probe.channels(select(num_channels))
        return suffice(seen[num_channels])

    high = max(order, default=0)
    low = min(min_channels, high) - 1  # Too few channels of the widest layer.
    numbers = range(low + 1, high)
    first = low + 1 + bisect_left(numbers, True, key=guess)
    out = seen.get(_bisect(low, high, first, observe), seen[0])
    return out, _aligned(out, probe.ranges)


def _bisect(
    low: int, high: int, guess: int, is_enough: Callable[[int], bool]
) -> int:
    """Return the smallest number that is enough, given numbers that are too
    low and enough. A guess and its neighbors are tried first.
    """
    guesses = iter([guess, guess - 1, guess + 1])
    while high - low > 1:
        middle = next(guesses, (low + high) // 2)
        if not low < middle < high:
            continue
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def channel_density(model: Module, names: List[str]) -> float:
    """Return the density of weights that channels are selected for."""
    shared = max(find_num_heads(model, names).values(), default=1) > 1
    return HEADS_DENSITY if shared else CHANNEL_DENSITY


def find_num_heads(model: Module, names: List[str]) -> Dict[int, int]:
    """Return the numbers of attention heads that share the outputs of layers,
    by the numbers of outputs.
    """
    heads: Dict[int, int] = {}
    for name in names:
        width = model.get_submodule(name).get_parameter('weight').size(0)
        parent = model.get_submodule(name.rpartition('.')[0])
        for param in parent.parameters(recurse=False):
            if is_attention(param) and param.numel() == width:
                heads[width] = math.lcm(heads.get(width, 1), param.size(1))
    return heads


def is_attention(x: Tensor) -> bool:
    """Return whether a parameter has the shape of an attention vector."""
    return x.dim() == 3 and x.size(0) == 1


def _leading(
    order: Mapping[int, Tensor],
    num_channels: int,
    min_channels: int,
    heads: Mapping[int, int],
) -> Dict[int, Tensor]:
    """Return the most important channels for each number of outputs, in
    proportion to :obj:`num_channels` of the widest layer.
    """
    fraction, out = num_channels / max(order), {}
    for width, index in order.items():
        size = max(math.ceil(fraction * width), min_channels)
        num_heads = heads.get(width, 1)  # Each head keeps equally many.
        out[width] = index[: -(-size // num_heads) * num_heads]
    return out


def _aligned(channels: Channels, hidden: Iterable[str]) -> Channels:
    """Return channels whose hidden inputs are the outputs of one layer, or of
    several layers side by side.
    """
    pruned = {x.numel(): x for x in channels.rows.values() if not x.all()}
    cols = dict(channels.cols)
    for name in hidden:
        size = cols[name].numel()
        cols[name] = torch.ones_like(cols[name])
        for width in sorted(pruned, reverse=True):
            if size % width == 0:
                cols[name] = pruned[width].repeat(size // width)
                break
    return Channels(channels.rows, cols)


class _Record(NamedTuple):
    """Observations of layers whose inputs depend on parameters: the range of
    each input, random sums of inputs, and the outputs of all layers.
    """

    ranges: Dict[str, Tensor]
    sums: List[Tensor]
    outputs: List[Tuple[str, Tensor]]

    def add(self, name: str, x: Tensor) -> None:
        """Record the input of a layer."""
        x_range = _range(x)
        before = self.ranges.get(name, x_range)
        self.ranges[name] = torch.maximum(before, x_range)


class _Probe:
    """Run a model on a mini-batch and record the inputs of its layers.

    Args:
        model (torch.nn.Module): The model.
        loss_fn (Callable): Returns the loss of the model on a mini-batch.
        batch (Any): The mini-batch.
        names (List[str]): The layers to record.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFunction,
        batch: Any,
        names: List[str],
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.batch = batch
        self.layers = {name: model.get_submodule(name) for name in names}
        self.hidden, self.ranges = self._observe()
        self.heads = find_num_heads(model, list(self.hidden))

    def by_importance(self) -> Dict[int, Tensor]:
        """Return the channels of hidden layers for each number of outputs,
        sorted by the squared norms of their weights. Unused channels are last;
        attention heads take turns.
        """
        scores: Dict[int, List[Tensor]] = defaultdict(list)
        for name, used in self.hidden.items():
            weight = self.layers[name].get_parameter('weight').detach()
            score = weight.double().square().sum(dim=1) * used
            scores[score.numel()].append(score / score.sum().clamp(min=1e-99))
        return {
            width: _order(
                torch.stack(parts).sum(dim=0), self.heads.get(width, 1)
            )
            for width, parts in scores.items()
        }

    def channels(self, index: Mapping[int, Tensor]) -> Channels:
        """Return the outputs and inputs that remain with some channels of
        hidden layers, given for each number of outputs.
        """
        rows, cols = self.outputs(index)
        if len(index) > 0:
            ranges = self._record(rows).ranges
            for name in ranges.keys() & self.ranges.keys():
                varies = ranges[name] > TOLERANCE * self.ranges[name]
                if varies.any():  # A single row has no range.
                    cols[name] = varies
        return Channels(rows, cols)

    def outputs(self, index: Mapping[int, Tensor]) -> Channels:
        """Return the outputs that remain with some channels, and all
        inputs.
        """
        rows, cols = {}, {}
        for name, layer in self.layers.items():
            weight = layer.get_parameter('weight')
            width, num_inputs = weight.shape
            rows[name] = weight.new_ones(width, dtype=torch.bool)
            cols[name] = weight.new_ones(num_inputs, dtype=torch.bool)
            if name in self.hidden and width in index:
                rows[name].zero_()
                rows[name][index[width]] = True
        return Channels(rows, cols)

    def _observe(self) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
        """Return masks of the outputs that other layers depend on, and the
        ranges of the inputs of these layers.
        """
        ranges, sums, outputs = self._record({})
        outputs = [x for x in outputs if x[1].requires_grad]
        if len(sums) == 0 or len(outputs) == 0:
            return {}, {}
        tensors = [out for _, out in outputs]
        try:
            grads = torch.autograd.grad(sums, tensors, allow_unused=True)
        except RuntimeError:  # Checkpointing, or a loss that freed the graph.
            return {}, {}
        hidden: Dict[str, Tensor] = {}
        for (name, _), grad in zip(outputs, grads):
            if grad is not None:
                used = grad.reshape(-1, grad.size(-1)).any(dim=0)
                hidden[name] = hidden.get(name, False) | used
        for (name, _), grad in zip(outputs, grads):
            if grad is None:  # A later call may compute the result.
                hidden.pop(name, None)
        return hidden, ranges

    @torch.enable_grad()  # The loss may need gradients.
    def _record(self, rows: Mapping[str, Tensor]) -> _Record:
        """Run the model with outputs set to zero that :obj:`rows` excludes."""
        record, others = _Record({}, [], []), set()

        def hook_of(name: str) -> Any:
            def hook(
                _: Module,
                args: Tuple[Any, ...],
                kwargs: Dict[str, Any],
                out: Tensor,
            ) -> Any:
                (x,) = [*args, *kwargs.values()]
                if x.requires_grad and torch.is_grad_enabled():
                    # At once, since reversible layers free their inputs:
                    record.add(name, x)
                    if len(rows) == 0:  # Only `_observe` needs gradients.
                        record.sums.append(_random_sum(x))
                else:
                    others.add(name)
                if name in rows:
                    out = out * rows[name]
                record.outputs.append((name, out))
                return out

            return hook

        handles = [
            layer.register_forward_hook(hook_of(name), with_kwargs=True)
            for name, layer in self.layers.items()
        ]
        try:
            self.loss_fn(self.model, copy.copy(self.batch))
        finally:
            for handle in handles:
                handle.remove()
        for name in others:
            record.ranges.pop(name, None)
        return record


def _random_sum(x: Tensor) -> Tensor:
    """Return a random sum, since plain sums of normalized values are
    constant.
    """
    return (torch.rand_like(x) * x).sum()


def _order(score: Tensor, num_heads: int) -> Tensor:
    """Return the largest score of each head, then the second largest, ..."""
    score = score.view(num_heads, -1)
    order = score.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(num_heads, device=score.device) * score.size(1)
    return (order + first[:, None]).t().flatten()


def _range(x: Tensor) -> Tensor:
    """Return the range (maximum - minimum) of each column."""
    x = x.detach().reshape(-1, x.size(-1))
    if x.size(0) == 0:
        return x.new_zeros(x.size(-1))
    return x.amax(dim=0) - x.amin(dim=0)
