"""Compare a model on random graphs with the model on their trees."""

import copy
import inspect
from typing import (
    Any,
    Callable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Type,
)

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch_geometric.data import Data

from torch_geometric_ext.nn.equivalence import (
    DropoutSpy,
    Results,
    fork_rng,
    is_close,
    perturb_parameters,
    run,
)
from torch_geometric_ext.nn.first_difference import (
    Difference,
    distance,
    first_difference,
)
from torch_geometric_ext.nn.random_trees import (
    NUM_LABELS,
    GraphsAndTrees,
    Tables,
    draw_trees,
)
from torch_geometric_ext.nn.reads_one_hop import (
    FAILURES,
    guess_inputs,
    required_arguments,
)
from torch_geometric_ext.nn.shared_batch import shared_batch

# Calls a model on a mini-batch:
Forward = Callable[[Module, Any], Any]


class NotRunnable(Exception):
    """Raised if no inputs are found that a model runs on."""


class _Call(NamedTuple):
    """A model in one data type, its inputs, and how it is called on them."""

    model: Module
    plain: Data
    trees: Data
    forward: Forward

    def __call__(self, model: Module, graph: Data) -> Tensor:
        with shared_batch(graph, levelwise=False):
            out = self.forward(model, graph)
        return out[0] if isinstance(out, (list, tuple)) else out


def compare_on_trees(
    model: Module,
    shared: Optional[Any],
    num_layers: int,
    forward: Optional[Forward] = None,
    dropout: bool = False,
    allow: Tuple[Type[Module], ...] = (),
) -> Optional[str]:
    """Return how a model differs on shared computation trees, if it does.

    Compares outputs and gradients on a few random graphs with those on the
    distinct trees of these graphs, in training and in evaluation. The model
    is copied, and the random generators are restored.

    Args:
        model (torch.nn.Module): The model.
        shared (SharedTrees, optional): The trees whose features of nodes and
            edges the random graphs have, if they fit.
        num_layers (int): The depth of trees.
        forward (Callable, optional): Calls the model on a mini-batch.
            (default: with the attributes that its arguments name)
        dropout (bool, optional): Whether dropout is accepted.
            (default: :obj:`False`)
        allow (Tuple[type, ...], optional): Classes of modules that may
            differ. (default: :obj:`()`)

    Raises:
        NotRunnable: If the model does not run on the graphs.
    """
    model = getattr(model, '_orig_mod', model)  # Of a compiled module.
    graphs = draw_trees(
        num_layers,
        loops=shared is not None and shared.has_self_loops,
        edge_labels=shared is None or len(shared.edge_attrs) > 0,
        normalize=shared is not None and shared.gcn_norm,
    )
    params = [*model.parameters(), *model.buffers()]
    if any(is_lazy(param) for param in params):
        raise NotRunnable('it has lazy parameters')
    graphs = graphs.to(params[0].device if params else torch.device('cpu'))
    with torch.inference_mode(False), torch.enable_grad():
        call = _find_call(model, shared, graphs, forward)
        for training in [True, False]:
            reason = _compare(call, graphs, training, dropout, allow)
            if reason is not None:
                return reason
    return None


def _compare(
    call: _Call,
    graphs: GraphsAndTrees,
    training: bool,
    dropout: bool,
    allow: Tuple[Type[Module], ...],
) -> Optional[str]:
    spy = DropoutSpy()

    def run_plain(model: Module) -> Tensor:
        with spy:
            return call(model, call.plain)

    expected = run(call.model, run_plain, training=training)
    if spy.found and not dropout:
        return (
            "draws dropout in 'forward' once for each distinct tree (set "
            "'dropout=True' to accept that)"
        )
    try:
        found = run(
            call.model,
            lambda m: _lift(call(m, call.trees), graphs, expected['']),
            training=training,
        )
    except FAILURES as error:
        return f'runs on graphs, but not on their trees ({error})'
    if is_close(found, expected):
        return None
    layer = _locate(call, graphs, training)
    if layer is not None:
        outer = _around(call.model, layer.name)
        return None if any(isinstance(x, allow) for x in outer) else layer[1]
    return _tell(found, expected)


def _locate(
    call: _Call, graphs: GraphsAndTrees, training: bool
) -> Optional[Difference]:
    def align(expected: Tensor, found: Tensor) -> Optional[Tensor]:
        found = _lift(found, graphs, expected)
        return found if found.shape == expected.shape else None

    return first_difference(
        call.model,
        lambda model: call(model, call.plain),
        lambda model: call(model, call.trees),
        align,
        training,
    )


def _tell(found: Results, expected: Results) -> str:
    """Return which output or gradient differs."""
    for key, a in found.items():
        b = expected.get(key)
        what = f"gradients of '{key}' differ" if key else 'outputs differ'
        if a is None or b is None or a.shape != b.shape:
            if a is not b:
                return what
        elif not is_close({key: a}, {key: b}):
            return f'{what} by {distance(a, b)}'
    return 'outputs differ'


def _lift(x: Tensor, graphs: GraphsAndTrees, expected: Any) -> Tensor:
    """Return outputs of trees for each node, unless they are of graphs."""
    if expected.dim() == 0 or expected.size(0) != graphs.plain.num_nodes:
        return x
    return graphs.lift(x)


def _find_call(
    model: Module,
    shared: Optional[Any],
    graphs: GraphsAndTrees,
    forward: Optional[Forward],
) -> _Call:
    """Return the first call that runs on the random graphs."""
    error: Optional[Exception] = None
    try:
        with fork_rng(0, graphs.tree.device):
            exact = perturb_parameters(copy.deepcopy(model).double())
            models = [exact, perturb_parameters(copy.deepcopy(model))]
    except FAILURES as error:
        raise NotRunnable(f'it cannot be copied: {error}') from error
    for node, edge in _inputs(model, shared, graphs, forward):
        for probe, function in [
            (probe, function)
            for function in _forwards(model, forward, node, edge)
            for probe in models
        ]:
            tables = [_cast(tables, probe is exact) for tables in (node, edge)]
            call = _Call(probe, *graphs.fill(*tables), function)
            found = _try(call)
            if found is None:
                return call
            error = error or found
    raise NotRunnable(str(error)) from error


def _cast(tables: Tables, exact: bool) -> Tables:
    return {
        key: x.double() if exact and x.is_floating_point() else x
        for key, x in tables.items()
    }


def _try(call: _Call) -> Optional[Exception]:
    """Return why a call does not run on plain graphs."""
    try:
        for training in [True, False]:
            found = run(
                call.model, lambda m: call(m, call.plain), training=training
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
    model: Module,
    shared: Optional[Any],
    graphs: GraphsAndTrees,
    forward: Optional[Forward],
) -> Iterator[Tuple[Tables, Tables]]:
    """Iterate over features of nodes and edges that a model may take.

    First come those of the data set, then random ones of other widths, for
    models behind an encoder.
    """
    edge: Tables = {}
    device = graphs.tree.device
    if shared is not None and shared.gcn_norm:
        edge = {'edge_weight': graphs.weight}
    elif shared is not None:
        edge = {k: _draw_rows(x, device) for k, x in shared.edge_attrs.items()}
    if shared is not None:
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
    perm = torch.randperm(x.size(0), generator=generator)[:NUM_LABELS]
    return x[perm.to(x.device)].to(device)


def _forwards(
    model: Module, forward: Optional[Forward], node: Tables, edge: Tables
) -> List[Forward]:
    """Return ways to call a model on a graph."""
    if forward is not None:
        return [forward]
    params = inspect.signature(model.forward).parameters
    edges = [name for name in edge if name in params]
    inner = [name for name in required_arguments(model) if name not in edge]

    def by_name(model: Module, graph: Data) -> Any:
        kwargs = {name: graph.x for name in inner if name != 'edge_index'}
        if 'edge_index' in params:
            kwargs['edge_index'] = graph.edge_index
        return model(**kwargs, **{name: graph[name] for name in edges})

    out: List[Forward] = [by_name]
    if len(inner) == 1:
        out.append(lambda model, graph: model(graph))
    return out


def _around(model: Module, name: str) -> List[Module]:
    """Return a module and all modules around it."""
    parts = name.split('.') if name else []
    paths = ['.'.join(parts[:i]) for i in range(len(parts) + 1)]
    return [model.get_submodule(path) for path in paths]
