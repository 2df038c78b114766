"""How far a model looks to classify a node."""

import copy
import logging
from typing import Any, List, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.full_batch.cached_convs import speed_up
from torch_geometric_ext.full_batch.static_graph import (
    EDGE_KEYS,
    KnownGraph,
    call,
)
from torch_geometric_ext.nn.equivalence import NoDropout, perturb_parameters


def find_num_hops(
    model: Module, graph: KnownGraph, adds_up: bool = True
) -> Optional[int]:
    """The number of hops at which a part of a graph gives the same outputs
    and gradients as the whole graph: as many as a model passes messages, or
    one more, which layers need that look at degrees of neighbors. There is
    none if nodes depend on all others, as where layers normalize over them.

    This is tried with a random graph and other weights, in training and in
    evaluation, with double precision. The model may do anything: if it does
    not run so, there is no such number, either.

    Args:
        model (torch.nn.Module): The model, as it is written.
        graph (KnownGraph): The graph that it is to be trained on.
        adds_up (bool, optional): As of
            :func:`~torch_geometric_ext.full_batch.cached_convs.speed_up`.
            (default: :obj:`True`)
    """
    if not graph.is_still:
        return None
    try:
        model = perturb_parameters(copy.deepcopy(model).double())
        num_hops = _num_calls(model, _random_graph(graph, 0), adds_up)
        other = _random_graph(graph, num_hops)
        masks = other.data.train_mask, other.data.val_mask
        expected = _run(model, other.data, other.data)
        for hops in [num_hops, num_hops + 1]:
            parts = [other.part(mask, hops) for mask in masks]
            if other.whole in parts:
                return None
            fast = speed_up(copy.deepcopy(model), other, adds_up)
            found = _run(fast, *(part.data for part in parts))
            if all(map(_equal, expected, found)):
                return hops
    except Exception as error:  # Models may do anything.
        logging.getLogger(__name__).info(f'Trained on all nodes ({error!r})')
    return None


def _random_graph(graph: KnownGraph, num_hops: int) -> KnownGraph:
    """A ring with chords, loops and multi-edges, much longer than some hops,
    whose nodes and edges have the features of any of the graph. Two nodes
    have labels.
    """
    size = 10 * num_hops + 50
    nodes = torch.arange(size)
    chords = torch.randint(size, (size // 3,))
    loops = torch.randint(size, (3,))
    row = torch.cat([nodes, nodes[:5], chords])
    col = torch.cat([nodes + 1, nodes[:5] + 1, chords + 2]) % size
    back = torch.rand(row.numel()) < (1.0 if graph.is_undirected else 0.5)
    edge_index = torch.stack(
        [
            torch.cat([row, col[back], loops]),
            torch.cat([col, row[back], loops]),
        ]
    )
    data = Data(
        x=_rows(graph.data.x, size),
        edge_index=edge_index,
        y=nodes,
        train_mask=nodes == size // 4,
        val_mask=nodes == 3 * size // 4,
    )
    for key in EDGE_KEYS:
        if graph.data.get(key) is not None:
            data[key] = _rows(graph.data[key], edge_index.size(1))
    return KnownGraph(data.to(graph.data.edge_index.device))


def _rows(x: Tensor, size: int) -> Tensor:
    rows = x[torch.randint(x.size(0), (size,)).to(x.device)]
    if not rows.is_floating_point():
        return rows
    return rows.double() + 0.1 * torch.rand_like(rows, dtype=torch.double)


def _num_calls(model: Module, graph: KnownGraph, adds_up: bool) -> int:
    """How often a model passes messages, in training."""
    model = speed_up(copy.deepcopy(model), graph, adds_up).train()
    calls: List[Any] = []
    for module in model.modules():
        if isinstance(module, MessagePassing):
            module.register_propagate_forward_hook(
                lambda *args: calls.append(args[0])
            )
    call(model, graph.data)
    return len(calls)


def _run(model: Module, train: Data, valid: Data) -> List[Optional[Tensor]]:
    """Outputs and gradients in training, then outputs in evaluation. A model
    may hold what it has seen.
    """
    model = copy.deepcopy(model).train()
    with NoDropout():
        out = call(model, train)[train.train_mask]
    loss = (out * torch.linspace(1, 2, out.numel()).view_as(out).to(out)).sum()
    params = [x for x in model.parameters() if x.requires_grad]
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    with torch.no_grad():
        other = call(model.eval(), valid)[valid.val_mask]
    return [out, other, *grads]


def _equal(a: Optional[Tensor], b: Optional[Tensor]) -> bool:
    if a is None or b is None:
        return a is b
    a, b = a.detach(), b.detach()
    scale = float(a.abs().max()) if a.numel() > 0 else 0.0
    return torch.allclose(a, b, rtol=1e-6, atol=1e-7 * scale + 1e-10)
