"""Chunks of data sets as a few large graphs instead of many small ones."""

from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch_geometric.data import Data
from torch_geometric.data.collate import collate
from torch_geometric.data.data import BaseData
from torch_geometric.utils import is_sparse

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.data.storage import Storage, get_items, read_storage
from torch_geometric_ext.ops.computation_tree_ids import check_edges
from torch_geometric_ext.ops.ragged import row_index, row_ptr, take_rows

CHUNK_SIZE = 4096  # Graphs; a choice that limits memory.
EDGE_KEYS = ['edge_attr', 'edge_weight', 'edge_type']
STAMP = 'graph_idx'  # `IndexedDataset` adds this attribute.


class Collated(NamedTuple):
    """Collated graphs, with edges that point to rows of the collated nodes."""

    attrs: Dict[str, Tensor]
    ptrs: Dict[str, Tensor]  # The boundaries of graphs in each attribute.
    node_ptr: Tensor
    texts: Dict[str, List[str]]  # One string for each graph.


def check_dataset(dataset: Any, name: str) -> None:
    """Raise an error for single graphs and empty data sets."""
    if isinstance(dataset, BaseData) or not hasattr(dataset, '__len__'):
        raise TypeError(
            f"'dataset' of '{name}' needs to be a data set of graphs, not a "
            f"single graph: do not pass '{name}' as a 'transform' (got "
            f'{type(dataset)})'
        )
    if len(dataset) == 0:
        raise ValueError(f"'dataset' of '{name}' needs at least one graph")


def read_chunks(
    dataset: Any,
    chunk_size: int = CHUNK_SIZE,
    start: int = 0,
    stop: Optional[int] = None,
) -> Iterator[Collated]:
    """Iterate over the graphs of a data set, or a range of them, in chunks.

    Raises:
        TypeError: If an item is no :class:`torch_geometric.data.Data`.
        ValueError: If keys or shapes of graphs differ, or edges point outside
            of their graph.
    """
    storage = _find_storage(dataset)
    stop = len(dataset) if stop is None else stop
    for begin in range(start, stop, chunk_size):
        end = min(begin + chunk_size, stop)
        if storage is not None:
            yield _read_storage(storage, begin, end)
        else:
            yield _read_items(dataset, begin, end)


def _find_storage(dataset: Any) -> Optional[Storage]:
    """Return the collated graphs of a data set, or `None` if items must be
    read one by one.
    """
    if type(dataset) is IndexedDataset:
        return _find_storage(dataset.dataset)
    if type(dataset) is Subset:
        storage = _find_storage(dataset.dataset)
        if storage is None:
            return None
        index = torch.as_tensor(dataset.indices, dtype=torch.long)
        return storage._replace(positions=storage.positions[index])
    storage = read_storage(dataset)
    if (
        storage is None
        or type(storage.data) is not Data
        or storage.num_nodes is None
        or dataset.transform is not None
    ):
        return None
    return storage


def _read_storage(storage: Storage, begin: int, end: int) -> Collated:
    data, positions = storage.data, storage.positions[begin:end]
    _check_layout(data)
    attrs, ptrs = {}, {}
    texts: Dict[str, List[str]] = {}
    for key, slices in storage.slices.items():
        value = data[key]
        if not isinstance(value, Tensor):
            texts.update(_read_texts(key, value, positions.tolist()))
            continue
        ptrs[key], index = take_rows(slices, positions)
        dim = data.__cat_dim__(key, value)
        if index.numel() == value.size(dim) and _is_range(index):
            attrs[key] = value
        else:
            attrs[key] = value.index_select(dim, index.to(value.device))
    assert storage.num_nodes is not None
    sizes = storage.num_nodes[positions]
    return _offset_edges(Collated(attrs, ptrs, row_ptr(sizes), texts), begin)


def _read_items(dataset: Any, begin: int, end: int) -> Collated:
    items = get_items(dataset, list(range(begin, end)))
    for position, item in enumerate(items, begin):
        if not isinstance(item, Data):
            raise TypeError(
                f"'dataset' needs to hold graphs of type 'Data' (got "
                f'{type(item)} at {position})'
            )
        _check_layout(item)
        other = set(item.keys()) ^ set(items[0].keys())
        if other - {STAMP}:
            raise ValueError(
                f"'dataset' needs graphs with the same attributes (got "
                f'{sorted(other)} in only one of the graphs {begin} and '
                f'{position})'
            )
    try:
        data, slices, _ = collate(
            Data,
            items,
            increment=False,
            add_batch=False,
            exclude_keys=[STAMP],
        )
    except RuntimeError as error:
        raise ValueError(
            f"'dataset' needs graphs whose attributes have the same shapes "
            f'(got different ones in the graphs {begin} to {end - 1}: {error})'
        ) from error
    ptrs = {
        key: torch.as_tensor(value)
        for key, value in slices.items()
        if isinstance(data[key], Tensor)
    }
    attrs = {key: data[key] for key in ptrs}
    texts: Dict[str, List[str]] = {}
    for key in slices.keys() - ptrs.keys():
        texts.update(_read_texts(key, data[key], list(range(len(items)))))
    sizes = torch.tensor([item.num_nodes for item in items])
    return _offset_edges(Collated(attrs, ptrs, row_ptr(sizes), texts), begin)


def _read_texts(
    key: str, values: Any, index: List[int]
) -> Dict[str, List[str]]:
    """Return the strings of graphs, unless they are sparse matrices."""
    first = values[0] if isinstance(values, list) else values
    if key != 'y' and is_sparse(first):
        return {}
    if not isinstance(values, list) or not isinstance(first, str):
        kind = type(first).__name__
        raise ValueError(
            f"'{key}' of 'dataset' needs to be a tensor, a number or a string "
            f"for each graph (got '{kind}': remove it by a transform)"
        )
    return {key: [str(values[i]) for i in index]}


def _check_layout(data: Data) -> None:
    if 'adj_t' in data and 'edge_index' not in data:
        raise ValueError(
            "'dataset' needs graphs with 'edge_index' (got 'adj_t')"
        )
    for key in ['x', 'edge_index', *EDGE_KEYS]:
        value = data[key] if key in data else None
        if isinstance(value, Tensor) and value.layout == torch.strided:
            continue
        if isinstance(value, list) and isinstance(value[0], Tensor):
            value = value[0]  # Of the first graph.
        if value is not None:
            layout = getattr(value, 'layout', None)
            kind = type(value).__name__ if layout is None else layout
            raise ValueError(
                f"'{key}' of 'dataset' needs to be a dense tensor (got "
                f"'{kind}': convert it by a transform)"
            )


def _offset_edges(chunk: Collated, begin: int) -> Collated:
    """Let the edges of each graph point to its rows of the collated nodes."""
    attrs, ptrs, node_ptr, _ = chunk
    num_nodes = node_ptr.diff()
    if 'edge_index' in attrs:
        edge_index = attrs['edge_index']
        check_edges(edge_index, None)
        graph = row_index(ptrs['edge_index']).to(edge_index.device)
        sizes = num_nodes.to(edge_index.device)[graph]
        outside = ((edge_index < 0) | (edge_index >= sizes)).any(dim=0)
        if bool(outside.any()):
            i = int(outside.nonzero()[0])
            raise ValueError(
                f"'edge_index' of graph {begin + int(graph[i])} needs to be "
                f'in [0, {int(sizes[i])}) (got {edge_index[:, i].tolist()})'
            )
        offset = node_ptr.to(edge_index.device)[graph]
        attrs['edge_index'] = edge_index + offset
    return chunk


def _is_range(index: Tensor) -> bool:
    return bool((index == torch.arange(index.numel())).all())
