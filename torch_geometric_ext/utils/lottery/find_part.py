"""How much of a graph a model needs to classify some of its nodes."""

import copy
from typing import Any, List, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.utils.lottery.fast_convs import is_fast
from torch_geometric_ext.utils.lottery.known_graph import (
    KnownGraph,
    View,
    call,
)

TOLERANCE = 1e-3  # Of how far outputs are apart.


@torch.no_grad()
def find_parts(
    model: Module, graph: KnownGraph, keys: Sequence[str]
) -> List[View]:
    """The parts of a graph that give the same outputs of the nodes of some
    masks, and the same gradients: as many hops as the model passes messages,
    or one more, which layers need that look at degrees of neighbors. This is
    tried, and does not hold for all models: if not, it is the whole graph.
    """
    if not graph.is_divisible or not _is_local(model):
        return [graph.whole for _ in keys]
    probe = copy.deepcopy(model)  # Training may change it.
    num_hops = _num_hops(probe, graph)
    probe.eval()
    out = call(probe, graph.data)
    return [_find(probe, graph, key, num_hops, out) for key in keys]


def _is_local(model: Module) -> bool:
    """Whether it may be that nodes do not depend on all others. Layers that
    hold statistics of what they are trained on do not tell if not trained.
    """
    return not any(
        isinstance(module, MessagePassing)
        and getattr(module, 'cached', False)
        and not is_fast(module)
        for module in model.modules()
    ) and not any('running_' in name for name, _ in model.named_buffers())


def _num_hops(model: Module, graph: KnownGraph) -> int:
    """How often a model passes messages, in training."""
    calls: List[Any] = []
    for module in model.modules():
        if isinstance(module, MessagePassing):
            module.register_propagate_forward_pre_hook(
                lambda *args: calls.append(args[0])
            )
    call(model.train(), graph.data)  # Where sums of features are computed.
    calls.clear()
    call(model, graph.data)
    return len(calls)


def _find(
    model: Module, graph: KnownGraph, key: str, num_hops: int, out: Tensor
) -> View:
    expected = out[graph.data[key]]
    scale = (expected - expected.mean(dim=0)).abs().max()
    for hops in [num_hops, num_hops + 1]:
        part = graph.part(key, hops)
        if part is graph.whole:
            break
        try:
            found = call(model, part.data)[part.data[key]]
        except Exception:  # Models may do anything with their sizes.
            break
        if found.shape == expected.shape:
            error = (found - expected).abs().max()
            if error < TOLERANCE * scale:
                return part
    return graph.whole
