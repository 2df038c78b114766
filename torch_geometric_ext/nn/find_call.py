"""Find inputs that a model runs on, and how it is called on them."""

import copy
import inspect
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_geometric_ext.nn.equivalence import (
    fork_rng,
    perturb_parameters,
    run,
)
from torch_geometric_ext.nn.random_trees import (
    GraphsAndTrees,
    Tables,
)
from torch_geometric_ext.nn.reads_one_hop import (
    FAILURES,
    guess_inputs,
    required_arguments,
)
from torch_geometric_ext.nn.shared_batch import shared_batch

MAX_ROWS = 16  # Of the data set; a choice.

# Calls a model on a mini-batch:
Forward = Callable[[Module, Any], Any]


class NotRunnable(Exception):
    """Raised if no inputs are found that a model runs on."""


class Call(NamedTuple):
    """A way to call a model on random graphs.

    Args:
        model (torch.nn.Module): A copy of the model.
        forward (Callable): Calls the model on a graph.
        node (Tables): The features of nodes by their labels.
        edge (Tables): The features of edges by their labels.
        dtype (torch.dtype): The data type of the model.
    """

    model: Module
    forward: Forward
    node: Tables
    edge: Tables
    dtype: torch.dtype

    def fill(self, graphs: GraphsAndTrees) -> Tuple[Data, Data]:
        """Return graphs and their trees with features."""
        return graphs.fill(self.node, self.edge, self.dtype)

    def __call__(self, model: Module, graph: Data) -> Tensor:
        """Return the first output of the model on a graph."""
        with shared_batch(graph, levelwise=False):
            out = self.forward(model, graph)
        return out[0] if isinstance(out, (list, tuple)) else out


def find_call(
    model: Module,
    shared: Optional[Any],
    graphs: GraphsAndTrees,
    forward: Optional[Forward] = None,
) -> Call:
    """Return the first call that runs on random graphs.

    Double precision is preferred to that of the model, and the features of
    the data set to random ones.

    Args:
        model (torch.nn.Module): The model, which is copied.
        shared (SharedTrees, optional): The data set.
        graphs (GraphsAndTrees): The random graphs.
        forward (Callable, optional): Calls the model.
            (default: with the attributes that its arguments name)

    Raises:
        NotRunnable: If no call runs.
    """
    device, dtype = graphs.tree.device, _dtype(model)
    try:
        with fork_rng(0, device):
            copies = [
                (perturb_parameters(copy.deepcopy(model).to(kind)), kind)
                for kind in dict.fromkeys([torch.double, dtype])
            ]
    except FAILURES as error:
        raise NotRunnable(f'it cannot be copied: {error}') from error
    first_error: Optional[Exception] = None
    for node, edge in _inputs(model, shared, device):
        names = [*edge, *(['edge_weight'] if graphs.normalized else [])]
        for function in _forwards(model, forward, names):
            for probe, kind in copies:
                call = Call(probe, function, node, edge, kind)
                found = _try(call, graphs)
                if found is None:
                    return call
                first_error = first_error or found
    raise NotRunnable(str(first_error)) from first_error


def _dtype(model: Module) -> torch.dtype:
    dtypes = (x.dtype for x in model.parameters() if x.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


def _try(call: Call, graphs: GraphsAndTrees) -> Optional[Exception]:
    """Return why a call does not run on plain graphs."""
    plain, _ = call.fill(graphs)
    try:
        for training in [True, False]:
            found = run(
                call.model, lambda m: call(m, plain), training=training
            )
            out = found['']
            if out is None or not out.is_floating_point():
                return TypeError('its output is no floating-point tensor')
            if not bool(out.isfinite().all()):
                return ValueError('its output is not finite')
    except FAILURES as error:
        return error
    return None


def _inputs(
    model: Module, shared: Optional[Any], device: torch.device
) -> Iterator[Tuple[Tables, Tables]]:
    """Iterate over features of nodes and edges that a model may take.

    First come those of the data set, then random ones of other widths, for
    models behind an encoder.
    """
    edge: Tables = {}
    if shared is not None:
        edge = {k: _draw_rows(x, device) for k, x in shared.edge_attrs.items()}
        x = _draw_rows(shared.node_attrs['x'], device)
        for value in [x] if x.is_floating_point() else [x, x.double()]:
            yield {'x': value}, edge
            yield {'x': value}, {}
    for guess in guess_inputs(model):
        x = next(iter(guess.node.values()), torch.empty(1, 0)).to(device)
        others = {key: x.to(device) for key, x in guess.edge.items()}
        if shared is not None:  # Only what the trees have.
            others = {k: x for k, x in others.items() if k in edge}
        yield {'x': x}, {**others, **edge}
        yield {'x': x}, others


def _draw_rows(x: Tensor, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    perm = torch.randperm(x.size(0), generator=generator)[:MAX_ROWS]
    return x[perm.to(x.device)].to(device)


def _forwards(
    model: Module, forward: Optional[Forward], edges: List[str]
) -> List[Forward]:
    """Return ways to call a model on a graph."""
    if forward is not None:
        return [forward]
    params = inspect.signature(model.forward).parameters
    nodes = [
        name
        for name in required_arguments(model)
        if name not in [*edges, 'edge_index']
    ]
    others = [name for name in ['edge_index', *edges] if name in params]

    def by_name(model: Module, graph: Data) -> Any:
        kwargs = {name: graph[name] for name in others}
        return model(**dict.fromkeys(nodes, graph.x), **kwargs)

    out: List[Forward] = [by_name]
    if len(nodes) == 1:
        out.append(lambda model, graph: model(graph))
    return out
