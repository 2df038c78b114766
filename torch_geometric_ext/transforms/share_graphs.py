from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.atomic_save import tensor_bytes
from torch_geometric_ext.data.merge_trees import merge_trees
from torch_geometric_ext.data.shared_trees import to_int32
from torch_geometric_ext.ops import unique_rows
from torch_geometric_ext.ops.computation_tree_ids import (
    check_categorical,
    check_edges,
    refine,
    row_labels,
)
from torch_geometric_ext.ops.ragged import row_index, row_ptr
from torch_geometric_ext.transforms.collated import (
    CHUNK_SIZE,
    EDGE_KEYS,
    STAMP,
    Collated,
    read_chunks,
)
from torch_geometric_ext.transforms.tree_settings import TreeSettings

MERGE_SIZE = 8  # Parts to merge at a time; a choice.
LARGE_PART = 10_000  # Nodes that suffice to find continuous features.

# Attributes of `SharedTreeBatch`:
RESERVED_KEYS = [
    'own',
    'num_roots',
    'num_sampled_edges',
    'num_sampled_nodes',
    'root',
    'root_count',
    'root_ptr',
]


def share_graphs(
    dataset: Any,
    settings: TreeSettings,
    known: Optional[SharedTrees] = None,
    chunk_size: int = CHUNK_SIZE,
    distributed: bool = False,
    log: bool = False,
) -> SharedTrees:
    """Return the shared trees of a data set, read in chunks.

    Args:
        dataset (Dataset or Sequence): The graphs.
        settings (TreeSettings): The settings of trees. Their discretizer is
            fitted to the graphs if it is not fitted yet.
        known (SharedTrees, optional): Trees that keep their ids.
            (default: :obj:`None`)
        chunk_size (int, optional): The number of graphs to read at a time.
            (default: :obj:`4096`)
        distributed (bool, optional): Whether each rank reads a part of the
            graphs. (default: :obj:`False`)
        log (bool, optional): Whether to show a progress bar.
            (default: :obj:`False`)
    """
    if settings.discretizer is not None and not settings.discretizer.fitted:
        settings.discretizer.fit(dataset)
    if distributed:
        parts = _share_with_ranks(dataset, settings, chunk_size)
    else:
        chunks = read_chunks(dataset, chunk_size)
        total = (len(dataset) - 1) // chunk_size + 1
        bar = tqdm(chunks, 'Computation trees', total, disable=not log)
        parts = _share_chunks(bar, settings)
    out = merge_trees(parts, known)
    if known is None:
        _check_labels(out, settings)
    return out


def _share_with_ranks(
    dataset: Any,
    settings: TreeSettings,
    chunk_size: int,
) -> List[SharedTrees]:
    """Return the shared trees of all ranks. Each rank reads its graphs."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    start, stop = ((rank + i) * len(dataset) // world_size for i in range(2))
    chunks = read_chunks(dataset, chunk_size, start, stop)
    result: Union[List[SharedTrees], Exception]
    try:
        result = _share_chunks(chunks, settings)
    except Exception as error:  # All ranks raise it below.
        result = error
    results: List[Any] = world_size * [None]
    dist.all_gather_object(results, result)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [part for result in results for part in result]


def _share_chunks(
    chunks: Iterable[Collated],
    settings: TreeSettings,
) -> List[SharedTrees]:
    """Return the shared trees of chunks in few parts. Memory is linear in the
    result, and each row is merged O(log) times.
    """
    stack: List[SharedTrees] = []
    for num_chunks, chunk in enumerate(chunks, 1):
        part = _share_chunk(chunk, settings)
        if part.num_nodes >= LARGE_PART:  # Fail early.
            _check_labels(part, settings)
        stack.append(part)
        while num_chunks % MERGE_SIZE == 0:  # Carry, as a counter does.
            stack[-MERGE_SIZE:] = [merge_trees(stack[-MERGE_SIZE:])]
            num_chunks //= MERGE_SIZE
    return stack


def _share_chunk(chunk: Collated, settings: TreeSettings) -> SharedTrees:
    graph_attrs = _graph_attrs(chunk)
    num_nodes = int(chunk.node_ptr[-1])
    attrs = _preprocess(chunk.attrs, num_nodes, settings)
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
        num_layers=settings.num_layers,
        gcn_norm=settings.gcn_norm,
        has_self_loops=bool((edge_index[0] == edge_index[1]).any()),
        node_attrs={key: attrs[key][label_index] for key in node_keys},
        edge_attrs={key: attrs[key][edge_label_index] for key in edge_keys},
        levels=[to_int32(level) for level in trees.levels],
        graph_ptr=graph_ptr,
        tree=tree,
        count=count,
        graph_attrs=graph_attrs,
        num_nodes=num_nodes,
        num_edges=edge_index.size(1),
        num_bytes=tensor_bytes(chunk.attrs),
    )


def _check_labels(shared: SharedTrees, settings: TreeSettings) -> None:
    """Raise an error if features are continuous and not discretized."""
    discretized: Tuple[str, ...] = ()
    if settings.discretizer is not None:
        discretized = settings.discretizer.attrs
    if 'x' not in discretized:
        check_categorical(shared.node_attrs['x'], shared.num_nodes, 'x')
    for key, value in shared.edge_attrs.items():
        if key not in discretized:
            check_categorical(value, shared.num_edges, key)


def _preprocess(
    attrs: Dict[str, Tensor],
    num_nodes: int,
    settings: TreeSettings,
) -> Dict[str, Tensor]:
    """Check and discretize features, and remove self-loops on demand."""
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
        mask = out['edge_index'][0] != out['edge_index'][1]
        for key in EDGE_KEYS:
            if key in out:
                out[key] = out[key][mask]
        out['edge_index'] = out['edge_index'][:, mask]
    return out


def _label(attrs: Dict[str, Tensor]) -> Tuple[Tensor, Tensor]:
    """Return a label for each row of features, and the first row of each
    label.
    """
    labels = [row_labels(value, key) for key, value in attrs.items()]
    if len(labels) == 1:
        return labels[0]
    return unique_rows(torch.stack([ids for ids, _ in labels], dim=1))


def _count(ids: Tensor, node_ptr: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the distinct ids of each graph, with boundaries and counts."""
    node_ptr = node_ptr.to(ids.device)
    num_ids = int(ids.max()) + 1 if ids.numel() > 0 else 1
    code, count = torch.unique(
        row_index(node_ptr) * num_ids + ids, return_counts=True
    )
    graph = code // num_ids
    size = graph.bincount(minlength=node_ptr.numel() - 1)
    return row_ptr(size), (code - graph * num_ids).int(), count.int()


def _graph_attrs(chunk: Collated) -> Dict[str, Any]:
    """Copy the attributes of graphs: tensors of one row each, and strings."""
    num_graphs = chunk.node_ptr.numel() - 1
    out: Dict[str, Any] = {}
    for key in [*chunk.ptrs, *chunk.texts]:
        if key in RESERVED_KEYS:
            raise ValueError(
                f"'dataset' needs graphs without an attribute '{key}', a name "
                f"that 'SharedTreeLoader' uses"
            )
    for key, ptr in chunk.ptrs.items():
        value, size = chunk.attrs[key], ptr.diff()
        if key in [*EDGE_KEYS, 'x', 'edge_index', STAMP]:
            continue
        if bool((size == 1).all()) and value.size(0) == num_graphs:
            out[key] = value.detach().clone()
        elif key == 'y':
            raise NotImplementedError(
                f"'y' needs one row for each graph (got {value.size(0)} rows "
                f'in {num_graphs} graphs)'
            )
        elif _lacks_dimension(chunk, key):
            raise ValueError(
                f"'{key}' of 'dataset' needs one row for each graph, node or "
                f'edge (got {int(ptr[-1])} rows in {num_graphs} graphs: add a '
                f"dimension by 'data.{key} = data.{key}.unsqueeze(0)', or "
                f'remove it by a transform)'
            )
    return {**out, **chunk.texts}


def _lacks_dimension(chunk: Collated, key: str) -> bool:
    """Return whether a tensor has equally many rows in each graph, but neither
    one for each node or edge, nor indices or labels of edges by its name.
    """
    ptr, edge_ptr = chunk.ptrs[key], chunk.ptrs.get('edge_index')
    size = ptr.diff()
    return bool(
        size.numel() > 1  # One graph tells nothing.
        and size[0] > 0
        and (size == size[0]).all()
        and Data().__cat_dim__(key, chunk.attrs[key]) == 0
        and not key.startswith('edge_label')
        and not torch.equal(ptr, chunk.node_ptr)
        and (edge_ptr is None or not torch.equal(ptr, edge_ptr))
    )
