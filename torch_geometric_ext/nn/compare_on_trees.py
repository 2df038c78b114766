"""Compare a model on random graphs with the model on their trees."""

import itertools
from typing import Any, List, Optional, Tuple, Type

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.nn.equivalence import (
    DropoutSpy,
    Results,
    is_close,
    run,
)
from torch_geometric_ext.nn.find_call import (
    Call,
    Forward,
    NotRunnable,
    find_call,
)
from torch_geometric_ext.nn.first_difference import first_difference
from torch_geometric_ext.nn.random_trees import GraphsAndTrees, draw_trees
from torch_geometric_ext.nn.reads_one_hop import FAILURES

NUM_DRAWS = 2  # Connected graphs, and graphs with isolated nodes.


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
    params = [*model.parameters(), *model.buffers()]
    if any(is_lazy(param) for param in params):
        raise NotRunnable('it has lazy parameters')
    device = params[0].device if params else torch.device('cpu')
    draws = [
        draw_trees(
            num_layers,
            seed,
            loops=shared is not None and shared.has_self_loops,
            isolated=seed % 2 == 1,
            edge_labels=shared is None or len(shared.edge_attrs) > 0,
            normalize=shared is not None and shared.gcn_norm,
        ).to(device)
        for seed in range(NUM_DRAWS)
    ]
    with torch.inference_mode(False), torch.enable_grad():
        call = find_call(model, shared, draws[0], forward)
        for graphs, training in itertools.product(draws, [True, False]):
            try:
                reason = _compare(call, graphs, training, dropout, allow)
            except FAILURES as error:
                if graphs is not draws[0]:
                    continue  # Some layers fail on isolated nodes.
                return f'runs on graphs, but not on their trees ({error})'
            if reason is not None:
                return reason
    return None


def _compare(
    call: Call,
    graphs: GraphsAndTrees,
    training: bool,
    dropout: bool,
    allow: Tuple[Type[Module], ...],
) -> Optional[str]:
    plain, trees = call.fill(graphs)
    spy = DropoutSpy()

    def run_plain(model: Module) -> Tensor:
        with spy:
            return call(model, plain)

    def run_trees(model: Module) -> Tensor:
        return call(model, trees)

    def align(a: Tensor, b: Tensor) -> Tensor:
        is_node = a.dim() > 0 and a.size(0) == plain.num_nodes
        return graphs.lift(b) if is_node else b

    expected = run(call.model, run_plain, training=training)
    out = expected['']
    assert out is not None
    allowed = any(isinstance(x, allow) for x in call.model.modules())
    if spy.found and not (dropout or allowed):
        return (
            "draws dropout in 'forward' once for each distinct tree (set "
            "'dropout=True' to accept that)"
        )
    found = run(
        call.model, lambda m: align(out, run_trees(m)), training=training
    )
    # Batch normalization divides rounding errors of zero gradients by small
    # deviations, hence a higher tolerance:
    zero = torch.finfo(call.dtype).eps ** (2 / 3)
    if is_close(found, expected, zero):
        return None
    layer = first_difference(call.model, run_plain, run_trees, align, training)
    if layer is None:
        return _tell(found, expected)
    around = _around(call.model, layer.name)
    return None if any(isinstance(x, allow) for x in around) else layer.reason


def _tell(found: Results, expected: Results) -> str:
    """Return which output, or else which gradient, differs most."""
    sizes = {}
    for key, a in found.items():
        b = expected.get(key)
        if a is not None and b is not None and a.shape == b.shape:
            sizes[key] = float((a - b).abs().max()) if a.numel() > 0 else 0.0
        elif a is not b:
            sizes[key] = torch.inf
    if not is_close({'': found['']}, {'': expected['']}):
        return 'outputs differ'
    key = max(sizes, key=lambda key: sizes[key])
    return f"gradients of '{key}' differ by {sizes[key]:.2g}"


def _around(model: Module, name: str) -> List[Module]:
    """Return a module and all modules around it."""
    parts = name.split('.') if name else []
    paths = ['.'.join(parts[:i]) for i in range(len(parts) + 1)]
    return [model.get_submodule(path) for path in paths]
