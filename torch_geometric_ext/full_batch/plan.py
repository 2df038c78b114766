"""Find the receptive field and the fastest exact plan of a model by
equivalence checks.
"""

import copy
import logging
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.full_batch.conv.find_static_convs import obstacle
from torch_geometric_ext.full_batch.conv.static_conv import CACHED, MESSAGES
from torch_geometric_ext.full_batch.static_graph import StaticGraph
from torch_geometric_ext.nn.equivalence import (
    NoDropout,
    Results,
    fork_rng,
    is_close,
    perturb_parameters,
    run,
)
from torch_geometric_ext.ops.csr_product import DTYPES

Forward = Callable[[Module, Data], Tensor]
# Runs a model on a static graph by a plan, for the outputs of some nodes:
RunOn = Callable[..., Tensor]

MODES = {True: 'training', False: 'evaluation'}
SEED = 0
NUM_SAMPLES = 64  # Nodes whose outputs are compared on the graph itself.
# Nodes whose outputs are compared on the random graph: one node has equal
# outputs by chance if a model passes messages against the edges.
NUM_SEEDS = 4
NOT_LOCAL = (
    'outputs or gradients of a node differ if the model only sees its '
    'receptive field'
)


@dataclass
class Plan:
    """Tell how a model runs on a static graph.

    Attributes:
        num_hops (Dict[bool, int]): The receptive field in training and in
            evaluation (by :obj:`model.training`), beyond what is cached, or
            :obj:`None` if the model needs the whole graph.
        fast_convs (bool): Whether convolutions are swapped for faster ones.
        cache_aggregation (bool): Whether aggregated features are cached.
        ways (Dict[bool, Dict[str, str]]): How each convolution aggregates in
            training and in evaluation.
        num_messages (Dict[bool, int]): How often faster convolutions pass
            messages.
        modes (Dict[bool, List[bool]]): The mode of each module.
        reasons (Dict[str, str]): Why something is not used.
    """

    num_hops: Dict[bool, Optional[int]] = field(
        default_factory=lambda: {True: None, False: None}
    )
    fast_convs: bool = True
    cache_aggregation: bool = True
    ways: Dict[bool, Dict[str, str]] = field(
        default_factory=lambda: {True: {}, False: {}}
    )
    num_messages: Dict[bool, int] = field(
        default_factory=lambda: {True: 0, False: 0}
    )
    modes: Dict[bool, List[bool]] = field(
        default_factory=lambda: {True: [], False: []}
    )
    reasons: Dict[str, str] = field(default_factory=dict)


def find_plan(
    model: Module,
    graph: StaticGraph,
    forward: Forward,
    run_on: RunOn,
    cache_aggregation: bool = True,
) -> Plan:
    """Return the fastest plan that passes the equivalence check.

    Plans are tried on a random graph whose nodes and edges have features of
    the graph, in double precision, with perturbed parameters, in training
    (without dropout) and in evaluation. Outputs and gradients need to be
    equal. The state of random generators is kept.

    Args:
        model (torch.nn.Module): The model.
        graph (StaticGraph): The graph.
        forward (Callable): Calls the model with a graph.
        run_on (Callable): Runs the model on a static graph by a plan.
        cache_aggregation (bool, optional): Whether aggregated features may be
            cached. (default: :obj:`True`)
    """
    reasons: Dict[str, str] = {}
    cache_aggregation &= graph.data.x.dtype in DTYPES
    for fast_convs in [True, False]:
        plan = Plan(
            fast_convs=fast_convs,
            cache_aggregation=cache_aggregation and fast_convs,
            reasons=reasons,
        )
        try:
            with fork_rng(SEED, graph.data.x.device):
                trial = _Trial(model, graph, forward, run_on)
                if all(trial.fits(plan, training) for training in MODES):
                    return plan
            error = 'outputs or gradients differ'
        except Exception as e:  # User models can raise anything.
            error = f'the equivalence check raised {e!r}'
        what = 'faster convolutions' if fast_convs else 'the receptive field'
        reasons[what] = error
        logging.getLogger(__name__).info('No %s: %s', what, error)
    return Plan(fast_convs=False, cache_aggregation=False, reasons=reasons)


def verify_plan(
    model: Module,
    graph: StaticGraph,
    plan: Plan,
    run_on: RunOn,
) -> None:
    """Fall back to the whole graph, in training or in evaluation, if outputs
    of sampled nodes differ between their receptive field and the whole graph.

    The random graph cannot show all differences: a model may compare the
    degree of a node with a median, for example. Both ways use the faster
    convolutions of the plan, which need no message for each edge.
    """
    generator = torch.Generator().manual_seed(SEED)
    nodes = torch.randperm(graph.num_nodes, generator=generator)
    nodes = nodes[:NUM_SAMPLES].to(graph.data.x.device)
    whole = replace(plan, num_hops=dict.fromkeys(MODES))
    for training, mode in MODES.items():
        hops = plan.num_hops[training]
        if graph.select(nodes, hops).subgraph.nodes is None:
            continue
        outs: List[Results] = []
        error = None
        try:
            for option in [whole, plan]:
                other = copy_model(model).train(training)
                with fork_rng(SEED, nodes.device), torch.no_grad():
                    with NoDropout():
                        out = run_on(other, graph, option, nodes)
                        outs.append({'': out})
            if not is_close(outs[1], outs[0]):
                error = NOT_LOCAL
        except Exception as e:  # User models can raise anything.
            error = f'the check on the graph raised {e!r}'
        if error is not None:
            plan.num_hops[training] = None
            plan.reasons[f'the receptive field in {mode}'] = error


class _Trial:
    """Compare plans with the model as it is written."""

    def __init__(
        self,
        model: Module,
        graph: StaticGraph,
        forward: Forward,
        run_on: RunOn,
    ) -> None:
        self.model = perturb_parameters(copy_model(model).double())
        self.graph = graph
        self.forward = forward
        self.run_on = run_on

    def fits(self, plan: Plan, training: bool) -> bool:
        """Set the smallest receptive field that gives equal results, or
        :obj:`None` for the whole graph. Return whether any does.
        """
        num_hops = self.num_messages(plan, training)
        graph = random_graph(self.graph, num_hops + 1)
        size = graph.num_nodes
        # A model may cache what it saw first, which is another subgraph:
        nodes = torch.arange(2 * NUM_SEEDS) * size // (2 * NUM_SEEDS)
        first, second = nodes.view(-1, 2).t().to(graph.data.x.device)

        def plain(model: Module) -> Tensor:
            self.forward(model, graph.data)
            return self.forward(model, graph.data)[second]

        def planned(model: Module) -> Tensor:
            self.run_on(model, graph, plan, first)
            return self.run_on(model, graph, plan, second)

        expected = run(self.model, plain, training=training)
        # Layers that read degrees of neighbors need one hop more:
        for hops in [num_hops, num_hops + 1, None]:
            plan.num_hops[training] = hops
            if is_close(self.run(planned, training), expected):
                if hops is None:
                    key = f'the receptive field in {MODES[training]}'
                    plan.reasons[key] = NOT_LOCAL
                return True
        return False

    def run(
        self, forward: Callable[[Module], Tensor], training: bool
    ) -> Results:
        """Run a plan, which may raise where the model needs all nodes."""
        try:
            return run(self.model, forward, training=training)
        except Exception:  # User models can raise anything.
            return {}

    def num_messages(self, plan: Plan, training: bool) -> int:
        """Return how often a model passes messages, with its dropout."""
        graph = random_graph(self.graph, 1)
        model = copy.deepcopy(self.model).train(training)
        plan.modes[training] = [x.training for x in model.modules()]
        calls: List[Tuple[str, str]] = []
        others: List[Tuple[str, str]] = []
        for name, conv in model.named_modules():
            if isinstance(conv, MessagePassing) and (
                not plan.fast_convs or obstacle(conv) is not None
            ):
                conv.register_propagate_forward_hook(
                    lambda *args, name=name: others.append((name, MESSAGES))
                )
        plan.num_hops[training] = None
        with torch.no_grad():
            self.run_on(model, graph, plan, None, calls)
        for name, way in calls + others:
            ways = plan.ways[training].setdefault(name, way).split(' and ')
            if way not in ways:
                plan.ways[training][name] = ' and '.join([*ways, way])
        plan.num_messages[training] = sum(way != CACHED for _, way in calls)
        return plan.num_messages[training] + len(others)


def copy_model(model: Module) -> Module:
    """Return a deep copy of a model, even if it has attributes that it
    computed, which PyTorch refuses to copy.
    """
    memo: Dict[int, Any] = {
        id(value): value.detach()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)


def random_graph(graph: StaticGraph, num_hops: int) -> StaticGraph:
    """Return a ring with chords, loops and multi-edges, much longer than some
    hops, whose nodes and edges have features of any of the graph.
    """
    size = 10 * NUM_SEEDS * num_hops + 50
    nodes = torch.arange(size)
    chords = torch.randint(size, (size // 3,))
    loops = torch.randint(size, (3,))
    row = torch.cat([nodes, nodes[:5], chords])
    col = torch.cat([nodes + 1, nodes[:5] + 1, chords + 2]) % size
    back = torch.rand(row.numel()) < (1.0 if graph.undirected else 0.2)
    edge_index = torch.stack(
        [
            torch.cat([row, col[back], loops]),
            torch.cat([col, row[back], loops]),
        ]
    )
    source = graph.data
    data = copy.copy(source)
    data.edge_index, data.num_nodes = edge_index, size
    for key, value in source:
        if key == 'edge_index' or not isinstance(value, Tensor):
            continue
        if source.is_edge_attr(key):
            data[key] = _rows(value, edge_index.size(1))
        elif source.is_node_attr(key):
            data[key] = _rows(value, size)
        elif value.is_floating_point():
            data[key] = value.double()
    return StaticGraph(data.to(source.x.device))


def _rows(x: Tensor, size: int) -> Tensor:
    if x.size(0) == 0:
        x = x.new_zeros(1, *x.shape[1:])
    rows = x[torch.randint(x.size(0), (size,)).to(x.device)]
    if not rows.is_floating_point():
        return rows
    return rows.double() + 0.1 * torch.rand_like(rows, dtype=torch.double)
