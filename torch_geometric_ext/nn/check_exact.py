import warnings
from typing import Any, Iterable, Iterator, List, Optional, Tuple, Type

import torch
import torch_geometric.nn as pyg
from torch.nn import Module
from torch_geometric.nn.aggr import Aggregation

from torch_geometric_ext.nn.aggr.root_aggregation import ORDERED_AGGRS
from torch_geometric_ext.nn.compare_on_trees import (
    Forward,
    NotRunnable,
    compare_on_trees,
)
from torch_geometric_ext.nn.norm import TreeBatchNorm
from torch_geometric_ext.nn.reads_one_hop import (
    BATCH_NORMS,
    guess_inputs,
    reads_edges,
    reads_one_hop,
)

MIXING_NORMS: Tuple[Type[Module], ...] = (
    pyg.DiffGroupNorm,
    pyg.GraphNorm,
    pyg.GraphSizeNorm,
    pyg.HeteroBatchNorm,
    pyg.InstanceNorm,
    pyg.MeanSubtractionNorm,
    pyg.PairNorm,
)

# Convolutions whose inner networks work on nodes, not on messages:
NODE_CONVS = (pyg.CGConv, pyg.GENConv, pyg.GINConv, pyg.GINEConv)


def check_exact(
    model: Module,
    shared: Optional[Any] = None,
    *,
    dropout: bool = False,
    num_hops: Optional[int] = None,
    allow: Iterable[Type[Module]] = (),
    forward: Optional[Forward] = None,
) -> None:
    r"""Check that a model is exact on shared computation trees.

    An error lists the layers that are not exact, with the reason.

    The model, its mode, its buffers and the random generators stay as they
    are.

    Args:
        model (torch.nn.Module): The layers that work on nodes.
        shared (SharedTrees, optional): The trees. (default: :obj:`None`)
        dropout (bool, optional): If set to :obj:`True`, dropout is accepted.
            (default: :obj:`False`)
        num_hops (int, optional): The receptive field of the model. (default:
            its number of convolutions)
        allow (Iterable[type], optional): Classes of modules to accept without
            a check. (default: :obj:`()`)
        forward (Callable, optional): Calls the model,
            :obj:`forward(model, batch)`, on a mini-batch of graphs or trees,
            as the training loop does. (default: the model is called with the
            attributes that its arguments name, or with the mini-batch)

    Raises:
        ValueError: If a layer or the model is not exact, or :obj:`forward`
            does not run.

    .. code-block:: python

        >>> from torch_geometric.nn import GIN
        >>> check_exact(GIN(16, 32, num_layers=2, norm='graph_norm'))
        Traceback (most recent call last):
            ...
        ValueError: ...
          'norms.0' (GraphNorm) mixes the nodes of a graph

    .. rubric:: Details

    First, an equivalence check runs each convolution on a random graph and on
    computation trees of depth 1, in double precision, with other weights and
    with neighbors in another order. An error lists the layers that differ:

    * convolutions that read several hops, that normalize by what only
      neighbors see (:class:`~torch_geometric.nn.conv.GCNConv` by default), or
      that do not run on inputs guessed from their attributes,
    * convolutions that replace self-loops, if :obj:`shared` has kept some,
    * more convolutions than the trees of :obj:`shared` are deep,
    * norms, attention and pooling that mix the nodes of a graph,
      aggregations that depend on the order of neighbors, and batch
      normalization of messages,
    * dropout, which draws once for each distinct tree.

    Second, if no layer differs, an equivalence check runs the model on a few
    small random graphs, with the features of :obj:`shared` if the model takes
    them, and on their shared trees. Outputs and gradients of all parameters
    need to agree, in training and in evaluation. This finds all other layers
    and functions in :meth:`forward` that differ. The layers of a
    :class:`torch.nn.ModuleList` are run one by one. A warning tells if a model
    does not run: set :obj:`forward`.
    """
    allow = tuple(allow)
    reasons, num_convs = _reasons(model, shared, dropout, allow)
    num_hops = num_convs if num_hops is None else num_hops
    if shared is not None and num_hops > shared.num_layers:
        reasons.append(
            f'{num_hops} convolutions read further than trees of depth '
            f"{shared.num_layers} (set 'num_hops' if they are parallel)"
        )
    what = 'leave out layers after pooling'
    if not reasons:
        depth = max(num_hops, 1) if shared is None else shared.num_layers
        reasons = _compare(model, shared, depth, forward, dropout, allow)
        what = 'in an equivalence check on random graphs'
    if reasons:
        raise ValueError(
            f"'model' differs on shared computation trees ({what}):\n  "
            + '\n  '.join(reasons)
        )


def _compare(
    model: Module,
    shared: Optional[Any],
    depth: int,
    forward: Optional[Forward],
    dropout: bool,
    allow: Tuple[Type[Module], ...],
) -> List[str]:
    """Return how models differ that are run on graphs and on their trees."""
    out, errors = [], []
    parts = [('', model)] if forward is not None else _runnable('', model)
    for name, part in parts:
        if isinstance(part, allow):
            continue
        label = f"'{name}' ({part.__class__.__name__}): " if name else ''
        try:
            reason = compare_on_trees(
                part, shared, depth, forward, dropout, allow
            )
        except NotRunnable as error:
            errors.append(f'{label}{error}')
        else:
            out += [] if reason is None else [f'{label}{reason}']
    if errors and forward is not None:
        raise ValueError(
            f"'forward' of 'check_exact' does not run on random graphs: "
            f'{errors[0]}'
        )
    if errors and not out:
        warnings.warn(
            f"'check_exact' checked each layer of 'model', but not its "
            f"outputs: it does not run on random graphs (set 'forward' to a "
            f'function that calls it on a mini-batch). {errors[0]}',
            stacklevel=3,
        )
    return out


def _runnable(name: str, model: Module) -> Iterator[Tuple[str, Module]]:
    """Iterate over the modules in containers that cannot be called."""
    if isinstance(model, (torch.nn.ModuleList, torch.nn.ModuleDict)):
        for key, child in model.named_children():
            yield from _runnable(f'{name}.{key}' if name else key, child)
    else:
        yield name, model


def _reasons(
    model: Module,
    shared: Optional[Any],
    dropout: bool,
    allow: Tuple[Type[Module], ...],
) -> Tuple[List[str], int]:
    """Return why layers are not exact, and the number of convolutions."""
    reasons: List[str] = []
    num_convs = 0
    for name, module, outer in _walk('', model, None, allow):
        found = [check(module, outer, shared) for check in CHECKS]
        if not dropout and _dropout(module) > 0:
            found.append(
                "draws once for each distinct tree (set 'dropout=True' to "
                'accept that)'
            )
        label = f"'{name}' " if name else ''
        for reason in filter(None, found):
            reasons.append(f'{label}({module.__class__.__name__}) {reason}')
        num_convs += isinstance(module, pyg.MessagePassing)
    return reasons, num_convs


def _walk(
    name: str,
    module: Module,
    outer: Optional[Module],
    allowed: Tuple[Type[Module], ...],
) -> Iterator[Tuple[str, Module, Optional[Module]]]:
    """Iterate over modules, with the convolution or aggregation around."""
    if isinstance(module, allowed):
        return
    yield name, module, outer
    if isinstance(module, (pyg.MessagePassing, Aggregation)):
        outer = module
    for key, child in module.named_children():
        path = f'{name}.{key}' if name else key
        yield from _walk(path, child, outer, allowed)


def _conv(
    module: Module,
    outer: Optional[Module],
    shared: Optional[Any],
) -> Optional[str]:
    if not isinstance(module, pyg.MessagePassing):
        return None
    if module.flow != 'source_to_target':
        return "needs 'flow' to be 'source_to_target'"
    is_gcn = isinstance(module, pyg.GCNConv)
    if is_gcn and module.normalize:
        return (
            "needs 'normalize=False', 'add_self_loops=False', and trees with "
            "'gcn_norm=True'"
        )
    if any(isinstance(child, ORDERED_AGGRS) for child in module.modules()):
        return None  # '_order' gives the reason.
    if outer is None:
        errors: List[Exception] = []
        is_exact = _is_exact(module, errors=errors)
        if is_exact is None:
            return (
                'does not run on inputs guessed from its attributes (put it '
                "into 'allow' if it reads one hop only)"
            ) + ''.join(
                f': {error.__class__.__name__}: {error}'
                for error in errors[:1]  # The first guess is the best one.
            )
        if not is_exact:
            return (
                'reads more than one hop, or normalizes by what only '
                'neighbors see'
            )
    return None if shared is None else _trees(module, shared)


def _is_exact(
    conv: Module,
    loops: bool = False,
    errors: Optional[List[Exception]] = None,
) -> Optional[bool]:
    """Return the result of the equivalence check on inputs that fit."""
    for inputs in guess_inputs(conv):
        found = reads_one_hop(conv, inputs, loops=loops, errors=errors)
        if found is not None:
            return found
    return None


def _trees(module: Module, shared: Any) -> Optional[str]:
    """Return why a convolution needs other trees."""
    is_gcn = isinstance(module, pyg.GCNConv)
    if shared.gcn_norm != is_gcn:
        return f"needs trees with 'gcn_norm={is_gcn}'"
    if shared.has_self_loops and _is_exact(module, loops=True) is False:
        return 'replaces self-loops, needs trees with \'self_loops="remove"\''
    if 'edge_attr' not in shared.edge_attrs and reads_edges(module):
        return "reads 'edge_attr', which the trees do not have"
    return None


def _norm(
    module: Module,
    outer: Optional[Module],
    shared: Optional[Any],
) -> Optional[str]:
    if isinstance(module, BATCH_NORMS):
        if outer is not None and not isinstance(outer, NODE_CONVS):
            return 'normalizes messages, which are not counted'
        if not isinstance(module, TreeBatchNorm):
            return "counts each tree once (use 'TreeBatchNorm.convert(model)')"
    if isinstance(module, pyg.BatchNorm) and module.allow_single_element:
        return "counts rows (needs 'allow_single_element=False')"
    if isinstance(module, pyg.LayerNorm) and module.mode == 'graph':
        return 'mixes the nodes of a graph (use \'mode="node"\')'
    if isinstance(module, MIXING_NORMS):
        return 'mixes the nodes of a graph'
    return None


def _mixing(
    module: Module,
    outer: Optional[Module],
    shared: Optional[Any],
) -> Optional[str]:
    package = type(module).__module__
    if package.startswith('torch_geometric.nn.pool'):
        return 'pools nodes, which belong to several graphs'
    if package.startswith('torch_geometric.nn.dense') and not isinstance(
        module, (pyg.Linear, pyg.HeteroLinear)
    ):
        return 'needs dense graphs'
    attends = package.startswith('torch_geometric.nn.attention') or isinstance(
        module, (torch.nn.MultiheadAttention, torch.nn.Transformer)
    )
    if attends and not isinstance(outer, Aggregation):  # Of neighbors only.
        return 'mixes the nodes of a graph'
    return None


def _order(
    module: Module,
    outer: Optional[Module],
    shared: Optional[Any],
) -> Optional[str]:
    if isinstance(module, ORDERED_AGGRS):
        return 'depends on the order of neighbors'
    return None


CHECKS = [_conv, _norm, _mixing, _order]


def _dropout(module: Module) -> float:
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p
    if isinstance(module, torch.nn.RReLU):
        return module.upper - module.lower
    rate = getattr(module, 'dropout', 0.0)
    if isinstance(rate, (list, tuple)):  # Of each layer.
        return max(rate, default=0.0)
    return rate if isinstance(rate, (int, float)) else 0.0
