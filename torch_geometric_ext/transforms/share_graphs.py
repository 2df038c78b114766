from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.merge_trees import compact
from torch_geometric_ext.ops import unique_rows
from torch_geometric_ext.ops.computation_tree_ids import (
    check_categorical,
    check_edges,
    refine,
    row_labels,
)
from torch_geometric_ext.ops.ragged import row_index, row_ptr
from torch_geometric_ext.transforms.collated import Collated
from torch_geometric_ext.transforms.discretize import Discretize

Labels = Tuple[Tensor, Tensor]  # And the first row of each.

EDGE_KEYS = ['edge_attr', 'edge_weight', 'edge_type']

# What mini-batches call their own:
RESERVED_KEYS = [
    'own',
    'num_roots',
    'num_sampled_edges',
    'num_sampled_nodes',
    'root',
    'root_count',
    'root_ptr',
]


class Settings(NamedTuple):
    """What tells computation trees apart."""

    num_layers: int
    gcn_norm: bool
    self_loops: str
    edge_attr: bool
    degree_labels: bool
    discretizer: Optional[Discretize]


def share_graphs(chunk: Collated, settings: Settings) -> SharedTrees:
    """The shared trees of a part of a data set."""
    graph_attrs = _graph_attrs(chunk)
    num_nodes = int(chunk.node_ptr[-1])
    attrs = _prepare(chunk.attrs, num_nodes, settings)
    edge_index = attrs['edge_index']

    node_keys = ['x']
    if settings.gcn_norm:
        attrs['degree'] = edge_index[1].bincount(minlength=num_nodes)
        node_keys.append('degree')
    label, label_index = _label({key: attrs[key] for key in node_keys})
    edge_keys = [key for key in EDGE_KEYS if key in attrs]
    edge_label: Optional[Tensor] = None
    edge_label_index: Optional[Tensor] = None
    if edge_keys:
        edge_label, edge_label_index = _label({k: attrs[k] for k in edge_keys})
    trees = refine(
        label, label_index, edge_index, settings.num_layers, edge_label
    )
    graph_ptr, tree, count = _count(trees.ids[-1], chunk.node_ptr)
    return SharedTrees(
        settings.num_layers,
        settings.gcn_norm,
        bool((edge_index[0] == edge_index[1]).any()),
        {key: attrs[key][label_index] for key in node_keys},
        {key: attrs[key][edge_label_index] for key in edge_keys},
        [compact(level) for level in trees.levels],
        graph_ptr,
        tree,
        count,
        graph_attrs,
        num_nodes,
        edge_index.size(1),
        sum(x.numel() * x.element_size() for x in chunk.attrs.values()),
    )


def check_labels(shared: SharedTrees, settings: Settings) -> None:
    """Refuses continuous features that no discretizer has seen to."""
    seen: Tuple[str, ...] = ()
    if settings.discretizer is not None:
        seen = settings.discretizer.attrs
    if 'x' not in seen:
        check_categorical(shared.node_attrs['x'], shared.num_nodes, 'x')
    for key, value in shared.edge_attrs.items():
        if key not in seen:
            check_categorical(value, shared.num_edges, key)


def _prepare(
    attrs: Dict[str, Tensor],
    num_nodes: int,
    settings: Settings,
) -> Dict[str, Tensor]:
    """Discretized features, without self-loops where they go."""
    out = dict(attrs)
    if 'edge_index' not in out:
        out['edge_index'] = torch.empty(2, 0, dtype=torch.long)
    if 'edge_weight' in out and settings.gcn_norm:
        raise NotImplementedError(
            "'gcn_norm' does not support graphs with 'edge_weight'"
        )
    if 'x' not in out:
        if not settings.degree_labels:
            raise ValueError(
                "'dataset' needs graphs with 'x' (set 'degree_labels=True' to "
                'use the in-degrees, or add features by a transform such as '
                "'OneHotDegree')"
            )
        degree = out['edge_index'][1].bincount(minlength=num_nodes)
        out['x'] = degree.view(-1, 1)
    if out['x'].size(0) != num_nodes:
        raise ValueError(
            f"'x' needs one row for each of {num_nodes} nodes (got "
            f'{out["x"].size(0)})'
        )
    if settings.discretizer is not None:
        out = settings.discretizer(Data.from_dict(out)).to_dict()
    if not settings.edge_attr:
        out = {k: v for k, v in out.items() if k not in EDGE_KEYS}
    for key in EDGE_KEYS:
        check_edges(out['edge_index'], out.get(key))
    if settings.self_loops == 'remove':
        kept = out['edge_index'][0] != out['edge_index'][1]
        for key in EDGE_KEYS:
            if key in out:
                out[key] = out[key][kept]
        out['edge_index'] = out['edge_index'][:, kept]
    return out


def _label(attrs: Dict[str, Tensor]) -> Labels:
    """One label for several features."""
    labels = [row_labels(value, key) for key, value in attrs.items()]
    if len(labels) == 1:
        return labels[0]
    return unique_rows(torch.stack([ids for ids, _ in labels], dim=1))


def _count(ids: Tensor, node_ptr: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """The distinct ids of each graph, and how often it holds them."""
    node_ptr = node_ptr.to(ids.device)
    num_ids = int(ids.max()) + 1 if ids.numel() > 0 else 1
    code, count = torch.unique(
        row_index(node_ptr) * num_ids + ids, return_counts=True
    )
    graph = code // num_ids
    size = graph.bincount(minlength=node_ptr.numel() - 1)
    return row_ptr(size), (code - graph * num_ids).int(), count.int()


def _graph_attrs(chunk: Collated) -> Dict[str, Tensor]:
    """Copies of the attributes with one row for each graph."""
    num_graphs = chunk.node_ptr.numel() - 1
    out = {}
    for key, ptr in chunk.ptrs.items():
        value = chunk.attrs[key]
        if key in RESERVED_KEYS:
            raise ValueError(
                f"'dataset' needs graphs without an attribute '{key}', which "
                f'mini-batches of trees have'
            )
        if key in [*EDGE_KEYS, 'x', 'edge_index', 'graph_idx']:
            continue
        if value.dim() > 0 and value.size(0) == num_graphs:
            if bool((ptr.diff() == 1).all()):
                out[key] = value.detach().clone()
    if 'y' in chunk.ptrs and 'y' not in out:
        raise NotImplementedError(
            f"'y' needs one row for each graph (got "
            f'{chunk.attrs["y"].size(0)} rows in {num_graphs} graphs)'
        )
    return out
