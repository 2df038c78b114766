"""Reads data sets as a few large graphs instead of many small ones."""

from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils.data import Subset
from torch_geometric.data import Batch, Data, InMemoryDataset

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.ops.ragged import row_index, row_ptr, take_rows


class Collated(NamedTuple):
    """Graphs side by side: the tensors of all, the boundaries of each graph
    in them, and those of its nodes. Edges point to rows of the tensors.
    """

    attrs: Dict[str, Tensor]
    ptrs: Dict[str, Tensor]
    node_ptr: Tensor


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
            yield _read_storage(*storage, begin, end)
        else:
            yield _read_items(indexed, begin, end)


def _storage(dataset: Any) -> Optional[Tuple[InMemoryDataset, Tensor]]:
    """The data set in memory below, and the positions of its graphs. None
    where its storage is not all there is to an item.
    """
    if isinstance(dataset, IndexedDataset):
        return _storage(dataset.dataset)
    if isinstance(dataset, Subset):
        storage = _storage(dataset.dataset)
        if storage is None:
            return None
        return storage[0], storage[1][torch.as_tensor(dataset.indices)]
    if (
        not isinstance(dataset, InMemoryDataset)
        or type(dataset).get is not InMemoryDataset.get
        or type(dataset).__getitem__ is not InMemoryDataset.__getitem__
        or dataset.transform is not None
        or type(dataset._data) is not Data
        or not isinstance(dataset.slices, dict)
        or _node_ptr(dataset._data, dataset.slices) is None
    ):
        return None
    return dataset, torch.tensor(list(dataset.indices()), dtype=torch.long)


def _node_ptr(data: Data, slices: Dict[str, Any]) -> Optional[Tensor]:
    if 'x' in slices:
        return torch.as_tensor(slices['x'])
    if isinstance(data._store.get('_num_nodes'), list):
        return row_ptr(torch.tensor(data._store['_num_nodes']))
    return None


def _read_storage(
    dataset: InMemoryDataset,
    positions: Tensor,
    begin: int,
    end: int,
) -> Collated:
    data, positions = dataset._data, positions[begin:end]
    node_ptr = _node_ptr(data, dataset.slices)
    assert node_ptr is not None
    attrs, ptrs = {}, {}
    for key, slices in dataset.slices.items():
        value = data[key]
        if not isinstance(value, Tensor) or not isinstance(slices, Tensor):
            continue
        ptrs[key], index = take_rows(slices, positions)
        dim = data.__cat_dim__(key, value)
        if index.numel() == value.size(dim) and _is_range(index):
            attrs[key] = value
        else:
            attrs[key] = value.index_select(dim, index.to(value.device))
    node_ptr = row_ptr(node_ptr.diff()[positions])
    if 'edge_index' in attrs:
        offset = node_ptr[row_index(ptrs['edge_index'])]
        offset = offset.to(attrs['edge_index'].device)
        attrs['edge_index'] = attrs['edge_index'] + offset
    return Collated(attrs, ptrs, node_ptr)


def _read_items(dataset: IndexedDataset, begin: int, end: int) -> Collated:
    items = dataset.__getitems__(list(range(begin, end)))
    for position, item in enumerate(items, begin):
        if not isinstance(item, Data):
            raise TypeError(
                f"'dataset' needs to hold graphs of type 'Data' (got "
                f'{type(item)} at {position})'
            )
    batch = Batch.from_data_list(items)
    ptrs = {
        key: torch.as_tensor(slices)
        for key, slices in batch._slice_dict.items()
        if isinstance(batch[key], Tensor) and key != 'graph_idx'
    }
    attrs = {key: batch[key] for key in ptrs}
    return Collated(attrs, ptrs, batch.ptr)


def _is_range(index: Tensor) -> bool:
    return bool((index == torch.arange(index.numel())).all())
