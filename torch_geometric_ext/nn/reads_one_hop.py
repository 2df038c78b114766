"""Check whether a convolution computes a function of computation trees."""

import copy
import inspect
import itertools
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.nn.equivalence import (
    fork_rng,
    is_close,
    perturb_parameters,
    run,
)

NUM_NODES, NUM_EDGES, NUM_LOOPS = 8, 24, 3  # Of the random graph.
MAX_CANDIDATES = 64  # Inputs to try, a bound.
WIDTHS = ['in_channels', 'channels', 'in_features']
WIDTHS += ['num_features', 'normalized_shape']  # Of norms.
EDGE_WIDTHS = ['edge_dim', 'in_edge_channels', 'dim']
FAILURES = (Exception,)  # User models can raise anything.
BATCH_NORMS = (
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.SyncBatchNorm,
)


class Inputs(NamedTuple):
    """Examples of the arguments of a convolution by name.

    Args:
        node (Dict[str, torch.Tensor]): Features of nodes.
        edge (Dict[str, torch.Tensor]): Features of edges.
        other (Dict[str, Any]): Arguments that do not depend on the graph.
    """

    node: Dict[str, Tensor]
    edge: Dict[str, Tensor] = {}
    other: Dict[str, Any] = {}


def reads_one_hop(
    conv: Module,
    inputs: Inputs,
    *,
    loops: bool = False,
    errors: Optional[List[Exception]] = None,
) -> Optional[bool]:
    r"""Return whether a convolution is exact on computation trees of depth 1.

    Compares a random graph with the graph in which each node has its own
    copies of its neighbors, in another order: outputs and gradients, in double
    precision and with perturbed parameters. They agree if the convolution
    reads one hop, aggregates a multiset, and normalizes by nothing but what
    the target sees. Batch normalization uses its running statistics.

    Args:
        conv (torch.nn.Module): The convolution, which stays as it is.
        inputs (Inputs): Examples of its arguments.
        loops (bool, optional): Whether the graph has self-loops.
            (default: :obj:`False`)
        errors (list, optional): A list that receives the exception of a
            convolution that does not run. (default: :obj:`None`)

    Returns:
        :obj:`None` if the convolution does not run on the graph.
    """
    if any(is_lazy(param) for param in conv.parameters()):
        return None
    device = next(iter(inputs.node.values())).device
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _compare(conv, inputs, loops, device)
    except FAILURES as error:
        if errors is not None:
            errors.append(error)
        return None


def reads_edges(conv: Module) -> bool:
    """Return whether a convolution needs :obj:`edge_attr`.

    It does if it does not run without, or if it has parameters that only the
    features of edges reach.
    """
    for inputs in guess_inputs(conv):
        if 'edge_attr' not in inputs.edge:
            continue
        edge = {k: x for k, x in inputs.edge.items() if k != 'edge_attr'}
        used = _used_parameters(conv, inputs)
        if used is not None:
            without = _used_parameters(conv, inputs._replace(edge=edge))
            return without is None or len(used - without) > 0
    return False


def _used_parameters(conv: Module, inputs: Inputs) -> Optional[Set[str]]:
    """Return the parameters with gradients, if a convolution runs."""
    device = next(iter(inputs.node.values())).device
    try:
        with torch.inference_mode(False), torch.enable_grad():
            with fork_rng(0, device):
                graph = _random_graph(inputs, False, device)
                probe = _Probe(conv, graph.node)
            grads = run(probe, lambda model: model(graph), training=True)
    except FAILURES:
        return None
    return {key for key, grad in grads.items() if grad is not None}


def _compare(
    conv: Module, inputs: Inputs, loops: bool, device: torch.device
) -> bool:
    with fork_rng(0, device):
        graph = _random_graph(inputs, loops, device)
        trees = _unroll(graph, torch.randperm(graph.edge_index.size(1)))
        probe = _Probe(conv, graph.node)
    return all(
        is_close(
            run(probe, lambda model: model(trees), training=training),
            run(probe, lambda model: model(graph), training=training),
        )
        for training in [True, False]
    )


class _Graph(NamedTuple):
    """Edges between rows of node features."""

    node: Dict[str, Tensor]
    row: Tensor  # Of the node features, for each node.
    edge_index: Tensor
    edge: Dict[str, Tensor]
    other: Dict[str, Any]


class _Probe(Module):
    """A copy of a convolution, with node features as parameters."""

    def __init__(self, conv: Module, node: Dict[str, Tensor]) -> None:
        super().__init__()
        self.conv = perturb_parameters(copy.deepcopy(conv).double())
        for module in self.conv.modules():
            if isinstance(module, BATCH_NORMS):
                module.forward = _frozen(module)  # type: ignore[method-assign]
        self.node = dict(node)
        for key, x in node.items():
            if x.is_floating_point():
                self.node[key] = torch.nn.Parameter(x)
        self.params = torch.nn.ParameterList(
            x for x in self.node.values() if isinstance(x, torch.nn.Parameter)
        )

    def forward(self, graph: _Graph) -> Tensor:
        out = self.conv.forward(  # Without hooks, which may count calls.
            edge_index=graph.edge_index,
            **{key: x[graph.row] for key, x in self.node.items()},
            **graph.edge,
            **graph.other,
        )
        out = out[0] if isinstance(out, (list, tuple)) else out
        return out[:NUM_NODES]


def guess_inputs(conv: Module) -> Iterator[Inputs]:
    """Iterate over arguments that a convolution may take, by its attributes.

    Widths are those of its attributes and of the linear layers in it.
    """
    tensors = itertools.chain(conv.parameters(), conv.buffers())
    device = next((x.device for x in tensors), torch.device('cpu'))
    names = inspect.signature(conv.forward).parameters
    edges = [n for n in names if n.startswith('edge_') and n != 'edge_index']
    required = required_arguments(conv)
    nodes = [n for n in required if n not in ['edge_index', *edges]]
    generator = torch.Generator().manual_seed(0)
    num_types = getattr(conv, 'num_relations', None) or 2
    candidates = itertools.product(_edge_widths(conv), _node_widths(conv))
    for edge_width, width in itertools.islice(candidates, MAX_CANDIDATES):
        edge = {}
        for name in edges:
            if name == 'edge_type':
                edge[name] = torch.arange(num_types, device=device)
            elif name in required or (
                name == 'edge_attr' and edge_width is not None
            ):
                size = (5,) if edge_width is None else (5, edge_width)
                value = torch.rand(size, generator=generator)
                edge[name] = value.to(device)
        x = torch.randn(5, width, generator=generator).to(device)
        yield Inputs({name: x for name in nodes}, edge)


def required_arguments(conv: Module) -> List[str]:
    """Return the names of the arguments of a module without a default."""
    return [
        name
        for name, param in inspect.signature(conv.forward).parameters.items()
        if param.default is param.empty
        and param.kind is param.POSITIONAL_OR_KEYWORD
    ]


def _node_widths(conv: Module) -> List[int]:
    found = _attributes(conv, WIDTHS)
    for module in conv.modules():
        found += _attributes(module, WIDTHS)
    halves = [x // 2 for x in found if x > 1]
    return list(dict.fromkeys([*found, *halves, 4]))


def _edge_widths(conv: Module) -> List[Optional[int]]:
    found = _attributes(conv, EDGE_WIDTHS)
    if found:
        return [found[0]]
    inner = [x for m in conv.modules() for x in _attributes(m, WIDTHS)]
    return list(dict.fromkeys([None, 1, *inner]))


def _attributes(module: Module, names: List[str]) -> List[int]:
    out = []
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int) and value > 0:
            out.append(value)
    return out


def _random_graph(inputs: Inputs, loops: bool, device: torch.device) -> _Graph:
    """Draw a graph with multi-edges, and a node without neighbors."""
    source = torch.randint(NUM_NODES, (NUM_EDGES,))
    shift = torch.randint(1, NUM_NODES, (NUM_EDGES,))
    target = (source + shift) % NUM_NODES
    source[:3], target[:3] = source[0].clone(), target[0].clone()
    if loops:
        target[-NUM_LOOPS:] = source[-NUM_LOOPS:]
    keep = target != NUM_NODES - 1
    edge_index = torch.stack([source, target])[:, keep].to(device)
    size = edge_index.size(1)
    return _Graph(
        {key: _draw(x, NUM_NODES) for key, x in inputs.node.items()},
        torch.arange(NUM_NODES, device=device),
        edge_index,
        {key: _draw(x, size) for key, x in inputs.edge.items()},
        inputs.other,
    )


def _draw(x: Tensor, size: int) -> Tensor:
    """Draw rows; noise tells equal rows apart."""
    rows = x[torch.randint(x.size(0), (size,)).to(x.device)].detach()
    if not rows.is_floating_point():
        return rows
    rows = rows.double()
    return rows + 0.1 * torch.rand_like(rows)


def _unroll(graph: _Graph, perm: Tensor) -> _Graph:
    """Give each node copies of its own of all its neighbors."""
    perm = perm.to(graph.row.device)
    source, target = graph.edge_index[:, perm]
    copies = torch.arange(source.numel(), device=perm.device) + NUM_NODES
    return graph._replace(
        row=torch.cat([graph.row, source]),
        edge_index=torch.stack([copies, target]),
        edge={key: x[perm] for key, x in graph.edge.items()},
    )


def _frozen(norm: Any) -> Any:
    """Return a normalization by fixed statistics."""
    shift, scale = torch.randn(2, norm.num_features, dtype=torch.double)
    return lambda x: x * scale.to(x.device) + shift.to(x.device)
