"""Which hidden channels a ticket has: a few that have many weights do more
than many that have few.
"""

import copy
import math
from collections import defaultdict
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.lottery.task import Task

MIN_CHANNELS = 16
TOLERANCE = 1e-3  # The share of its range that is left of a constant input.


class Channels(NamedTuple):
    """The outputs and inputs of linear layers that are left, as masks by the
    names of the layers.
    """

    rows: Dict[str, Tensor]
    cols: Dict[str, Tensor]

    def mask(self, name: str) -> Tensor:
        """The weights that a layer may have."""
        return self.rows[name][:, None] & self.cols[name]

    def narrow(self) -> 'Channels':
        """Those of a model without the channels that left."""
        return Channels(
            *({name: x[x] for name, x in masks.items()} for masks in self)
        )

    def num_weights(self, name: str) -> int:
        """The number of weights that a layer may have."""
        return int(self.rows[name].sum()) * int(self.cols[name].sum())


def find_channels(
    model: Module,
    task: Task,
    names: List[str],
    size: int,
    min_channels: int = MIN_CHANNELS,
) -> Tuple[Channels, Channels]:
    r"""The most important hidden channels of a trained model, as few as leave
    room for :obj:`size` weights, but no fewer than :obj:`min_channels`.

    Layers with as many outputs share their channels, as is needed where these
    add up, and heads of attention keep as many each. Layers that no other one
    follows give the result of the model, and keep their outputs. The inputs
    that leave are those that no longer depend on anything: this is observed
    (where gradients cannot be taken once more, all channels are left). Layers
    that are also given what depends on no parameter, such as features, keep
    all inputs. A second choice has the inputs leave that are where
    channels left, by their numbers. Takes :math:`O(\log C)` forward passes of
    a mini-batch for :math:`C` channels.
    """
    probe = _Probe(model.eval(), task, names)
    order = probe.by_importance()
    high = max(order, default=0)
    out = probe.channels({})
    low = min(min_channels, high) - 1  # Too few of the widest layers' ones.
    while high - low > 1:
        middle = (low + high) // 2
        share = middle / max(order)
        kept = {}
        for width, index in order.items():
            num_kept = max(math.ceil(share * width), min_channels)
            num_heads = probe.heads.get(width, 1)  # Each keeps as many.
            kept[width] = index[: -(-num_kept // num_heads) * num_heads]
        found = probe.channels(kept)
        if sum(map(found.num_weights, names)) >= size:
            high, out = middle, found
        else:
            low = middle
    return out, _aligned(out, list(probe.ranges))


def _aligned(channels: Channels, fed: List[str]) -> Channels:
    """The inputs of layers that other layers feed are taken to be the
    channels of one with as many outputs, or of several, side by side.
    """
    kept = {x.numel(): x for x in channels.rows.values() if not x.all()}
    cols = dict(channels.cols)
    for name in fed:
        size = cols[name].numel()
        cols[name] = torch.ones_like(cols[name])
        for width in sorted(kept, reverse=True):
            if size % width == 0:
                cols[name] = kept[width].repeat(size // width)
                break
    return Channels(channels.rows, cols)


class _Record(NamedTuple):
    """What is seen of layers whose inputs depend on parameters: how far apart
    the values of each input are, sums of inputs, and outputs of all layers.
    """

    ranges: Dict[str, Tensor]
    sums: List[Tensor]
    outputs: List[Tuple[str, Tensor]]

    def add(self, name: str, x: Tensor) -> None:
        """Looks at what a layer is given."""
        x_range = _range(x)
        before = self.ranges.get(name, x_range)
        self.ranges[name] = torch.maximum(before, x_range)


class _Probe:
    """Runs a model on a mini-batch, and sees what its layers get.

    Args:
        model (torch.nn.Module): The model.
        task (Task): What it does.
        names (List[str]): The layers to look at.
    """

    def __init__(self, model: Module, task: Task, names: List[str]) -> None:
        self.model = model
        self.task = task
        self.layers = {name: model.get_submodule(name) for name in names}
        self.batch = task.first_batch()
        self.hidden, self.ranges = self._observe()
        self.heads = find_num_heads(model, list(self.hidden))

    def by_importance(self) -> Dict[int, Tensor]:
        """The channels of hidden layers by the squares of weights that lead
        to them, the largest first and those without effect last, for each
        number of outputs. Heads take turns.
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

    def channels(self, kept: Mapping[int, Tensor]) -> Channels:
        """What is left with some channels of hidden layers, given by their
        number of outputs.
        """
        rows, cols = {}, {}
        for name, layer in self.layers.items():
            weight = layer.get_parameter('weight')
            width, num_inputs = weight.shape
            rows[name] = weight.new_ones(width, dtype=torch.bool)
            cols[name] = weight.new_ones(num_inputs, dtype=torch.bool)
            if name in self.hidden and width in kept:
                rows[name].zero_()
                rows[name][kept[width]] = True
        if len(kept) > 0:
            ranges = self._record(rows).ranges
            for name in ranges.keys() & self.ranges.keys():
                varies = ranges[name] > TOLERANCE * self.ranges[name]
                if varies.any():  # Else, there may be but a single row.
                    cols[name] = varies
        return Channels(rows, cols)

    def _observe(self) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
        """Which outputs of layers other ones depend on, and how far apart
        the values are that each input of those takes.
        """
        ranges, sums, outputs = self._record({})
        outputs = [x for x in outputs if x[1].requires_grad]
        if len(sums) == 0 or len(outputs) == 0:
            return {}, {}
        tensors = [out for _, out in outputs]
        try:
            grads = torch.autograd.grad(sums, tensors, allow_unused=True)
        except RuntimeError:  # Checkpoints, or a loss that freed the graph.
            return {}, {}
        hidden: Dict[str, Tensor] = {}
        for (name, _), grad in zip(outputs, grads):
            if grad is not None:
                used = grad.reshape(-1, grad.size(-1)).any(dim=0)
                hidden[name] = hidden.get(name, False) | used
        for (name, _), grad in zip(outputs, grads):
            if grad is None:  # A layer may be called once more for a result.
                hidden.pop(name, None)
        return hidden, ranges

    @torch.enable_grad()  # Losses may differentiate, and change batches.
    def _record(self, rows: Mapping[str, Tensor]) -> _Record:
        """Runs the model, and sets outputs of layers to zero that are not
        among :obj:`rows`.
        """
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
                    # Now, since reversible layers free what they are given:
                    record.add(name, x)
                    if len(rows) == 0:  # Else, their gradients are not taken.
                        record.sums.append(_sum(x))
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
            self.task.loss(self.model, copy.copy(self.batch))
        finally:
            for handle in handles:
                handle.remove()
        for name in others:
            record.ranges.pop(name, None)
        return record


def _sum(x: Tensor) -> Tensor:
    """At random, since sums of normalized values are constant."""
    return (torch.rand_like(x) * x).sum()


def find_num_heads(model: Module, names: List[str]) -> Dict[int, int]:
    """The numbers of heads that outputs of layers are divided into, by the
    numbers of these outputs, as parameters of attention tell.
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
    """Whether a parameter is of a convolution with heads, by its shape."""
    return x.dim() == 3 and x.size(0) == 1


def _order(score: Tensor, num_heads: int) -> Tensor:
    """The largest ones of each head, then the second largest ones, ..."""
    score = score.view(num_heads, -1)
    order = score.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(num_heads, device=score.device) * score.size(1)
    return (order + first[:, None]).t().flatten()


def _range(x: Tensor) -> Tensor:
    """How far apart the values in each column are."""
    x = x.detach().reshape(-1, x.size(-1))
    if x.size(0) == 0:
        return x.new_zeros(x.size(-1))
    return x.amax(dim=0) - x.amin(dim=0)
