from typing import Any, Iterable, Iterator, List, Optional, Tuple, Type

import torch
import torch_geometric.nn as pyg
from torch.nn import Module
from torch_geometric.nn.aggr import Aggregation

from torch_geometric_ext.nn.aggr.root_aggregation import ORDERED_AGGRS
from torch_geometric_ext.nn.conv import LevelwiseConv
from torch_geometric_ext.nn.norm import TreeBatchNorm

# Convolutions that read one hop, aggregate a multiset, and normalize by
# nothing but what the target sees:
EXACT_CONVS: Tuple[Type[Module], ...] = (
    pyg.AGNNConv,
    pyg.CGConv,
    pyg.EdgeConv,
    pyg.FeaStConv,
    pyg.FiLMConv,
    pyg.GATConv,
    pyg.GATv2Conv,
    pyg.GCNConv,
    pyg.GENConv,
    pyg.GINConv,
    pyg.GINEConv,
    pyg.GMMConv,
    pyg.GeneralConv,
    pyg.GraphConv,
    pyg.LEConv,
    pyg.MFConv,
    pyg.NNConv,
    pyg.PNAConv,
    pyg.ResGatedGraphConv,
    pyg.RGCNConv,
    pyg.SAGEConv,
    pyg.SimpleConv,
    pyg.TransformerConv,
)

MIXING_NORMS: Tuple[Type[Module], ...] = (
    pyg.DiffGroupNorm,
    pyg.GraphNorm,
    pyg.GraphSizeNorm,
    pyg.InstanceNorm,
    pyg.MeanSubtractionNorm,
    pyg.PairNorm,
    torch.nn.InstanceNorm1d,
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
) -> None:
    r"""Checks that a model computes the same on shared computation trees as on
    plain graphs, and raises an error that tells why if not.

    Refused are

    * convolutions that read several hops
      (:class:`~torch_geometric.nn.conv.TAGConv`,
      :class:`~torch_geometric.nn.conv.ChebConv`,
      :class:`~torch_geometric.nn.conv.APPNP`, …), that normalize by what only
      neighbors see (:class:`~torch_geometric.nn.conv.SGConv`,
      :class:`~torch_geometric.nn.conv.ClusterGCNConv`,
      :class:`~torch_geometric.nn.conv.GCN2Conv`, …), or that are unknown,
    * :class:`~torch_geometric.nn.conv.GCNConv` that normalizes by itself,
    * convolutions that replace self-loops, if :obj:`shared` has kept some,
    * more convolutions than the trees of :obj:`shared` are deep,
    * norms, attention and pooling that mix the nodes of a graph,
      aggregations that depend on the order of neighbors, and batch
      normalization of messages,
    * dropout, which draws once for each distinct tree.

    Only modules are seen: not that a convolution is called several times, nor
    what :meth:`forward` does by functions, such as
    :func:`torch.nn.functional.dropout`.

    Args:
        model (torch.nn.Module): The layers that work on nodes. Leave out what
            comes after pooling: it may do anything.
        shared (SharedTrees, optional): The trees that it is to be trained on.
            (default: :obj:`None`)
        dropout (bool, optional): If set to :obj:`True`, dropout is let
            through. (default: :obj:`False`)
        num_hops (int, optional): How far the model reads.
            (default: its number of convolutions)
        allow (Iterable[type], optional): Classes to let through unseen, such
            as convolutions of your own. (default: :obj:`()`)

    Raises:
        ValueError: If anything is refused.

    .. code-block:: python

        >>> from torch_geometric.nn import GIN
        >>> check_exact(GIN(16, 32, num_layers=2, norm='graph_norm'))
        Traceback (most recent call last):
            ...
        ValueError: ...
          'norms.0' (GraphNorm) mixes the nodes of a graph
    """
    reasons: List[str] = []
    num_convs = 0
    for name, module, outer in _walk('', model, None, tuple(allow)):
        found = [check(module, outer, shared) for check in CHECKS]
        if not dropout and _dropout(module) > 0:
            found.append(
                "draws once for each distinct tree (set 'dropout=True' if "
                'that is what you want)'
            )
        label = f"'{name}' " if name else ''
        for reason in filter(None, found):
            reasons.append(f'{label}({module.__class__.__name__}) {reason}')
        num_convs += isinstance(module, pyg.MessagePassing)
    modules = list(model.modules())
    if any(isinstance(module, LevelwiseConv) for module in modules):
        if any(isinstance(m, pyg.JumpingKnowledge) for m in modules):
            reasons.append(
                "'JumpingKnowledge' needs the outputs of all layers, of which "
                "'LevelwiseConv' computes one level each"
            )
    if num_hops is None:
        num_hops = num_convs
    if shared is not None and num_hops > shared.num_layers:
        reasons.append(
            f'{num_hops} convolutions read further than trees of depth '
            f"{shared.num_layers} (set 'num_hops' if they are not one behind "
            f'the other)'
        )
    if reasons:
        raise ValueError(
            "'model' differs on shared computation trees (leave out what "
            'comes after pooling):\n  ' + '\n  '.join(reasons)
        )


def _walk(
    name: str,
    module: Module,
    outer: Optional[Module],
    allowed: Tuple[Type[Module], ...],
) -> Iterator[Tuple[str, Module, Optional[Module]]]:
    """All modules, with the convolution or aggregation that they are in."""
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
    if type(module) not in EXACT_CONVS:
        return (
            'is not known to read one hop only and to normalize by nothing '
            "but what the target sees (put it into 'allow' if it does)"
        )
    if module.flow != 'source_to_target':
        return "needs 'flow' to be 'source_to_target'"
    is_gcn = isinstance(module, pyg.GCNConv)
    if is_gcn and (module.normalize or module.add_self_loops):
        return (
            "needs 'normalize=False', 'add_self_loops=False', and trees with "
            "'gcn_norm=True'"
        )
    return None if shared is None else _trees(module, shared)


def _trees(module: Module, shared: Any) -> Optional[str]:
    """What a convolution needs of the trees."""
    is_gcn = isinstance(module, pyg.GCNConv)
    if shared.gcn_norm != is_gcn:
        return f"needs trees with 'gcn_norm={is_gcn}'"
    replaces = isinstance(module, (pyg.AGNNConv, pyg.FeaStConv))
    replaces = not is_gcn and getattr(module, 'add_self_loops', replaces)
    if replaces and shared.has_self_loops:
        return 'replaces self-loops, needs trees with \'self_loops="remove"\''
    reads = isinstance(module, (pyg.GINEConv, pyg.GMMConv, pyg.NNConv))
    reads = reads or getattr(module, 'edge_dim', None) is not None
    reads = reads or (isinstance(module, pyg.CGConv) and module.dim > 0)
    if reads and 'edge_attr' not in shared.edge_attrs:
        return "reads 'edge_attr', which the trees do not have"
    return None


def _norm(
    module: Module,
    outer: Optional[Module],
    shared: Optional[Any],
) -> Optional[str]:
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
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
