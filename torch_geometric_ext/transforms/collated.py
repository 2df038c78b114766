"""Reads data sets as a few large graphs instead of many small ones."""

from typing import Any, Dict, Iterator, NamedTuple, Optional

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.data.collate import collate

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.ops.computation_tree_ids import check_edges
from torch_geometric_ext.ops.ragged import row_index, row_ptr, take_rows

STAMP = 'graph_idx'  # Of an `IndexedDataset`; not part of the graphs.


class Collated(NamedTuple):
    """Graphs side by side: the tensors of all, the boundaries of each graph
    in them, and those of its nodes. Edges point to rows of the tensors.
    """

    attrs: Dict[str, Tensor]
    ptrs: Dict[str, Tensor]
    node_ptr: Tensor


class _Storage(NamedTuple):
    """A data set in memory, the positions of its graphs in there, and the
    number of nodes of each.
    """

    dataset: InMemoryDataset
    positions: Tensor
    num_nodes: Tensor


def read_chunks(
    dataset: Any,
    start: int,
    stop: int,
    chunk_size: int,
) -> Iterator[Collated]:
    """The graphs from `start` to `stop`, at most `chunk_size` at a time."""
    storage, indexed = _storage(dataset), IndexedDataset(dataset)
    for begin in range(start, stop, chunk_size):
        end = min(begin + chunk_size, stop)
        if storage is not None:
            yield _read_storage(storage, begin, end)
        else:
            yield _read_items(indexed, begin, end)


def _storage(dataset: Any) -> Optional[_Storage]:
    """What is below a data set in memory. None where that is not all there is
    to an item.
    """
    if type(dataset) is IndexedDataset:
        return _storage(dataset.dataset)
    if type(dataset) is Subset:
        storage = _storage(dataset.dataset)
        if storage is None:
            return None
        index = torch.as_tensor(dataset.indices, dtype=torch.long)
        below, positions, num_nodes = storage
        return _Storage(below, positions[index], num_nodes[index])
    if (
        not isinstance(dataset, InMemoryDataset)
        or type(dataset).get is not InMemoryDataset.get
        or type(dataset).__getitem__ is not InMemoryDataset.__getitem__
        or dataset.transform is not None
        or type(dataset._data) is not Data
        or not isinstance(dataset.slices, dict)
    ):
        return None
    num_nodes = dataset._data._store.get('_num_nodes')
    if 'x' in dataset.slices:
        num_nodes = torch.as_tensor(dataset.slices['x']).diff()
    elif not isinstance(num_nodes, list):
        return None
    positions = torch.tensor(list(dataset.indices()), dtype=torch.long)
    return _Storage(dataset, positions, torch.as_tensor(num_nodes)[positions])


def _read_storage(storage: _Storage, begin: int, end: int) -> Collated:
    data, positions = storage.dataset._data, storage.positions[begin:end]
    _check_layout(data)
    attrs, ptrs = {}, {}
    for key, slices in storage.dataset.slices.items():
        value = data[key]
        if not isinstance(value, Tensor) or not isinstance(slices, Tensor):
            continue
        ptrs[key], index = take_rows(slices, positions)
        dim = data.__cat_dim__(key, value)
        if index.numel() == value.size(dim) and _is_range(index):
            attrs[key] = value
        else:
            attrs[key] = value.index_select(dim, index.to(value.device))
    return _side_by_side(attrs, ptrs, storage.num_nodes[begin:end], begin)


def _read_items(dataset: IndexedDataset, begin: int, end: int) -> Collated:
    items = dataset.__getitems__(list(range(begin, end)))
    for position, item in enumerate(items, begin):
        if not isinstance(item, Data):
            raise TypeError(
                f"'dataset' needs to hold graphs of type 'Data' (got "
                f'{type(item)} at {position})'
            )
        _check_layout(item)
        other = set(item.keys()) ^ set(items[0].keys())
        if other:
            raise ValueError(
                f"'dataset' needs graphs with the same attributes (got "
                f'{sorted(other)} in only one of the graphs {begin} and '
                f'{position})'
            )
    try:
        data, slices, _ = collate(
            Data, items, increment=False, add_batch=False, exclude_keys=[STAMP]
        )
    except RuntimeError as error:
        raise ValueError(
            f"'dataset' needs graphs whose attributes have the same shapes "
            f'(got other ones among the graphs {begin} to {end - 1}: {error})'
        ) from error
    ptrs = {
        key: torch.as_tensor(value)
        for key, value in slices.items()
        if isinstance(data[key], Tensor)
    }
    attrs = {key: data[key] for key in ptrs}
    sizes = torch.tensor([item.num_nodes for item in items])
    return _side_by_side(attrs, ptrs, sizes, begin)


def _check_layout(data: Data) -> None:
    if 'adj_t' in data and 'edge_index' not in data:
        raise ValueError(
            "'dataset' needs graphs with 'edge_index' (got 'adj_t')"
        )


def _side_by_side(
    attrs: Dict[str, Tensor],
    ptrs: Dict[str, Tensor],
    num_nodes: Tensor,
    begin: int,
) -> Collated:
    """Lets the edges of each graph point to its own nodes."""
    node_ptr = row_ptr(num_nodes)
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
    return Collated(attrs, ptrs, node_ptr)


def _is_range(index: Tensor) -> bool:
    return bool((index == torch.arange(index.numel())).all())
