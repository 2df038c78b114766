"""Access to the items of data sets, and to the storage of those in memory."""

import copy
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset, OnDiskDataset
from torch_geometric.data.data import BaseData


def get_items(dataset: Any, indices: List[int]) -> List[Any]:
    """Return several items of a data set at once."""
    if isinstance(dataset, OnDiskDataset):  # One query to its database.
        positions = dataset.indices()
        return list(dataset.multi_get([positions[i] for i in indices]))
    if hasattr(dataset, '__getitems__'):
        return list(dataset.__getitems__(indices))
    return [dataset[i] for i in indices]


def stack_labels(dataset: Any) -> Optional[Tensor]:
    """Return the labels :obj:`y` of all items, with one row per graph, or
    `None` if an item has no numbers, or another count of them.
    """
    rows: List[Tensor] = []
    for i in range(len(dataset)):
        try:
            y = torch.as_tensor(getattr(dataset[i], 'y', None))
        except (RuntimeError, TypeError, ValueError):
            return None  # No label, or a string.
        rows.append(y.reshape(1, -1).cpu())
        if rows[-1].size(1) != rows[0].size(1):
            return None
    return torch.cat(rows) if rows else None


class Storage(NamedTuple):
    """The collated graphs of an in-memory data set."""

    data: Data
    slices: Dict[str, Any]
    positions: Tensor  # The stored graph behind each item of the data set.
    num_nodes: Optional[Tensor]  # Of each stored graph.


def read_storage(dataset: Any) -> Optional[Storage]:
    """Return the collated graphs of a data set, which are its items before
    :obj:`transform` is applied, or `None` if items have another source.
    """
    if (
        not isinstance(dataset, InMemoryDataset)
        or type(dataset).get is not InMemoryDataset.get
        or type(dataset).__getitem__ is not InMemoryDataset.__getitem__
        or not isinstance(dataset._data, Data)
        or not isinstance(dataset.slices, dict)
    ):
        return None
    positions = torch.tensor(list(dataset.indices()), dtype=torch.long)
    num_nodes = _count_nodes(dataset._data, dataset.slices)
    return Storage(dataset._data, dataset.slices, positions, num_nodes)


def _count_nodes(data: Data, slices: Dict[str, Any]) -> Optional[Tensor]:
    if isinstance(slices.get('x'), Tensor):
        return slices['x'].diff()
    num_nodes = getattr(data._store, '_num_nodes', None)
    return torch.tensor(num_nodes) if isinstance(num_nodes, list) else None


def from_tensors(
    attrs: Mapping[str, Any],
    slices: Dict[str, Tensor],
) -> InMemoryDataset:
    """Return a data set of collated graphs."""
    out = InMemoryDataset()
    out._data, out.slices = Data.from_dict(dict(attrs)), slices
    return out


def to_tensors(dataset: InMemoryDataset) -> Dict[str, Dict[str, Any]]:
    """Return the arguments with which :func:`from_tensors` restores a data
    set.
    """
    return {'attrs': dataset._data.to_dict(), 'slices': dataset.slices}


def add_graph_attr(
    dataset: InMemoryDataset,
    key: str,
    value: Tensor,
) -> InMemoryDataset:
    """Return a shallow copy of a data set with one more attribute, of one row
    for each stored graph.
    """
    out = copy.copy(dataset)
    out._data = copy.copy(dataset._data)
    out._data[key] = value
    out.slices = dict(dataset.slices)
    out.slices[key] = torch.arange(value.size(0) + 1)
    out._data_list = value.size(0) * [None]
    return out


def get_graphs(dataset: InMemoryDataset, indices: List[int]) -> List[BaseData]:
    """Return items of a data set made by :func:`add_graph_attr`, without the
    checks that `dataset[i]` repeats for each of them.
    """
    positions, cache = dataset.indices(), dataset._data_list
    return [
        dataset.get(i) if cache[i] is None else copy.copy(cache[i])
        for i in map(positions.__getitem__, indices)
    ]


def graph_bytes(dataset: InMemoryDataset) -> Tensor:
    """Return the number of bytes of the tensors of each stored graph."""
    out = torch.zeros(dataset.len(), dtype=torch.long)
    for key, ptr in dataset.slices.items():
        value = dataset._data[key]
        if not isinstance(value, Tensor):
            continue  # Strings.
        dim = dataset._data.__cat_dim__(key, value)
        row = value.numel() // max(value.size(dim), 1) * value.element_size()
        out += ptr.diff().cpu() * row
    return out
