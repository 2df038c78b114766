from typing import Any, Iterable, List, Optional, Tuple, Type

import torch
import torch_geometric.nn as pyg
from torch.nn import Module

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

ORDERED_AGGRS: Tuple[Type[Module], ...] = (
    pyg.aggr.GRUAggregation,
    pyg.aggr.LSTMAggregation,
    pyg.aggr.MLPAggregation,
    pyg.aggr.PatchTransformerAggregation,
)


def check_exact(
    model: Module,
    shared: Optional[Any] = None,
    *,
    dropout: bool = False,
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
    * norms, attention and pooling that mix the nodes of a graph, and
      aggregations that depend on the order of neighbors,
    * dropout, which draws once for each distinct tree.

    A convolution that is called several times counts once: this is not seen.

    Args:
        model (torch.nn.Module): The layers that work on nodes. Leave out what
            comes after pooling: it may do anything.
        shared (SharedTrees, optional): The trees that it is to be trained on.
            (default: :obj:`None`)
        dropout (bool, optional): If set to :obj:`True`, dropout is let
            through. (default: :obj:`False`)
        allow (Iterable[type], optional): Classes to let through, such as
            convolutions of your own. (default: :obj:`()`)

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
    allowed, convs = tuple(allow), 0
    reasons: List[str] = []
    for name, module in model.named_modules():
        convs += isinstance(module, pyg.MessagePassing)
        if isinstance(module, allowed):
            continue
        for check in [_conv, _norm, _mixing, _order]:
            reason = check(module, shared)
            if reason is not None:
                reasons.append(_line(name, module, reason))
        if not dropout and _dropout(module) > 0:
            reasons.append(
                _line(
                    name,
                    module,
                    'draws once for each distinct tree (set '
                    "'dropout=True' if that is what you want)",
                )
            )
    if shared is not None and convs > shared.num_layers:
        reasons.append(
            f'{convs} convolutions read further than trees of depth '
            f'{shared.num_layers}'
        )
    if reasons:
        raise ValueError(
            "'model' differs on shared computation trees:\n  "
            + '\n  '.join(reasons)
        )


def _line(name: str, module: Module, reason: str) -> str:
    label = f"'{name}' " if name else ''
    return f'{label}({module.__class__.__name__}) {reason}'


def _conv(module: Module, shared: Optional[Any]) -> Optional[str]:
    if not isinstance(module, pyg.MessagePassing):
        return None
    if type(module) not in EXACT_CONVS:
        return (
            'is not known to read one hop only and to normalize by nothing '
            "but what the target sees (put it into 'allow' if it does)"
        )
    if module.flow != 'source_to_target':
        return "needs 'flow' to be 'source_to_target'"
    if isinstance(module, pyg.GCNConv):
        if module.normalize or module.add_self_loops:
            return (
                "needs 'normalize=False', 'add_self_loops=False', and trees "
                "with 'gcn_norm=True'"
            )
        if shared is not None and not shared.gcn_norm:
            return "needs trees with 'gcn_norm=True'"
        return None
    if shared is not None and shared.gcn_norm:
        return "needs trees with 'gcn_norm=False'"
    replaces = isinstance(module, (pyg.FeaStConv, pyg.AGNNConv))
    if getattr(module, 'add_self_loops', replaces):
        if shared is not None and shared.has_self_loops:
            return (
                'replaces self-loops, needs trees with \'self_loops="remove"\''
            )
    return None


def _norm(module: Module, shared: Optional[Any]) -> Optional[str]:
    if isinstance(module, torch.nn.BatchNorm1d):
        if isinstance(module, TreeBatchNorm):
            return None
        return "counts each tree once (use 'TreeBatchNorm.convert(model)')"
    if isinstance(module, pyg.LayerNorm) and module.mode == 'graph':
        return 'mixes the nodes of a graph (use \'mode="node"\')'
    if isinstance(module, MIXING_NORMS):
        return 'mixes the nodes of a graph'
    return None


def _mixing(module: Module, shared: Optional[Any]) -> Optional[str]:
    package = type(module).__module__
    if package.startswith('torch_geometric.nn.pool'):
        return 'pools nodes, which belong to several graphs'
    if package.startswith('torch_geometric.nn.attention') or isinstance(
        module, (torch.nn.MultiheadAttention, torch.nn.Transformer)
    ):
        return 'mixes the nodes of a graph'
    return None


def _order(module: Module, shared: Optional[Any]) -> Optional[str]:
    if isinstance(module, ORDERED_AGGRS):
        return 'depends on the order of neighbors'
    return None


def _dropout(module: Module) -> float:
    if isinstance(module, torch.nn.modules.dropout._DropoutNd):
        return module.p
    rate = getattr(module, 'dropout', 0.0)
    return rate if isinstance(rate, float) else 0.0
