"""Convolutions that run faster on a static graph, with equal results.

They normalize edges and aggregate the features of the graph once, multiply by
weights before they aggregate where a layer has fewer outputs than inputs, and
aggregate by a sparse matrix product instead of one message for each edge.
"""

from typing import Any, Dict, List, Optional, Tuple

from torch.nn import Module
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
)

from torch_geometric_ext.full_batch.adjacency import REDUCTIONS
from torch_geometric_ext.full_batch.conv.static_edges_conv import (
    StaticAPPNP,
    StaticGATConv,
    StaticGATv2Conv,
    StaticGCN2Conv,
)
from torch_geometric_ext.full_batch.conv.static_gcn_conv import StaticGCNConv
from torch_geometric_ext.full_batch.conv.static_sum_conv import (
    StaticGINConv,
    StaticGraphConv,
    StaticSAGEConv,
)
from torch_geometric_ext.full_batch.static_graph import StaticGraph
from torch_geometric_ext.nn.shallow_copy import shallow_copy

METHODS = ['forward', 'propagate', 'message', 'aggregate', 'update']

CLASSES: Dict[type, type] = {
    APPNP: StaticAPPNP,
    GATConv: StaticGATConv,
    GATv2Conv: StaticGATv2Conv,
    GCN2Conv: StaticGCN2Conv,
    GCNConv: StaticGCNConv,
    GINConv: StaticGINConv,
    GraphConv: StaticGraphConv,
    SAGEConv: StaticSAGEConv,
}


def find_static_convs(
    model: Module,
    graph: StaticGraph,
    cache_aggregation: bool,
    calls: List[Tuple[str, str]],
) -> Dict[Module, Module]:
    """Return a faster copy of each convolution of a model that has one. The
    copies share parameters, buffers, hooks and inner layers.

    Args:
        model (torch.nn.Module): The model.
        graph (StaticGraph): The graph that it runs on.
        cache_aggregation (bool): Whether the aggregation of the features is
            cached.
        calls (List[Tuple[str, str]]): Is appended the name and the way of
            each aggregation.
    """
    swaps: Dict[Module, Module] = {}
    for name, conv in model.named_modules():
        if obstacle(conv) is None:
            fast = shallow_copy(conv, CLASSES[type(conv)])
            vars(fast).update(
                name=name,
                graph=graph,
                cache_aggregation=cache_aggregation,
                calls=calls,
            )
            if 'cached' in vars(fast):  # Edges of subgraphs differ.
                vars(fast)['cached'] = False
            swaps[conv] = fast
    return swaps


def obstacle(conv: Any) -> Optional[str]:
    """Return why a convolution has no faster copy, if it has none."""
    if type(conv) not in CLASSES:
        return 'it has no faster version'
    if conv.flow != 'source_to_target':
        return "its flow is not 'source_to_target'"
    if conv.aggr not in REDUCTIONS:
        return f"its aggregation '{conv.aggr}' is no sum or mean"
    if getattr(conv, 'project', False):
        return 'it projects features first'
    if any(name in vars(conv) for name in METHODS):
        return 'one of its methods is replaced'
    return None
