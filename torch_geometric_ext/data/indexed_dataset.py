import copy
from typing import Any, Iterator, List, Optional, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torch_geometric.data import Data, InMemoryDataset, OnDiskDataset
from torch_geometric.data import Dataset as PyGDataset
from torch_geometric.data.data import BaseData

Index = Union[slice, Tensor, np.ndarray, List[int], List[bool]]


class IndexedDataset(Dataset):
    r"""Stamps each graph of a data set with its position, so that a sampler
    recognizes it in a mini-batch.

    Every item carries :obj:`graph_idx`, an :obj:`torch.int64` tensor of shape
    :obj:`[1]`, which :class:`torch_geometric.loader.DataLoader` collates to
    :obj:`batch.graph_idx` of shape :obj:`[batch_size]`. It is always the
    position in *this* object: slicing an :class:`IndexedDataset` gives a new
    one that counts from zero, and an attribute of that name in the wrapped
    data set is replaced. Items are shallow copies: the wrapped data set stays
    as it is. Wrap a data set when its tensors are complete: what is assigned
    to the storage of an :class:`~torch_geometric.data.InMemoryDataset` later
    is not seen (its :obj:`transform` is).

    .. note::
        Wrap the subset, not the other way round: items of
        :obj:`Subset(IndexedDataset(dataset), indices)` carry positions in
        :obj:`dataset`, while a sampler draws positions in the subset.
        :obj:`IndexedDataset(Subset(dataset, indices))` is right.

    Args:
        dataset (Dataset or Sequence): Any data set of graphs: a
            :class:`torch_geometric.data.Dataset` (in memory, on disk, with
            transforms), a :class:`torch.utils.data.Subset` or a list.

    Raises:
        TypeError: If :obj:`dataset` has no length or no items by position, or
            (on access) an item is not a graph.

    .. code-block:: python

        >>> from torch_geometric.datasets import FakeDataset
        >>> dataset = IndexedDataset(FakeDataset(num_graphs=10))
        >>> dataset[3].graph_idx
        tensor([3])
        >>> dataset[5:][3].graph_idx
        tensor([3])
        >>> len(dataset)
        10
    """

    def __init__(self, dataset: Any) -> None:
        if not (
            hasattr(dataset, '__len__') and hasattr(dataset, '__getitem__')
        ):
            raise TypeError(
                f"'dataset' of '{self.__class__.__name__}' needs a length and "
                f'items by position (got {type(dataset)})'
            )
        self.dataset = dataset
        self._stamped = _stamp_storage(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: Union[int, Index]) -> Any:
        r"""Returns a graph, or the :class:`IndexedDataset` of a selection."""
        if isinstance(idx, (int, np.integer)) or (
            isinstance(idx, Tensor) and idx.dim() == 0
        ):
            try:
                position = range(len(self))[int(idx)]
            except IndexError:
                raise IndexError(
                    f"'idx' of '{self.__class__.__name__}' needs to be in "
                    f'[-{len(self)}, {len(self)}) (got {int(idx)})'
                ) from None
            return self.__getitems__([position])[0]
        return self.__class__(self._select(idx))

    def __getitems__(self, indices: List[int]) -> List[BaseData]:
        r"""Returns the graphs of a mini-batch at once."""
        dataset, stamped = self.dataset, self._stamped
        if stamped is not None and dataset.transform is None:
            # What `stamped[i]` does, less its checks for every graph:
            positions, cache = stamped.indices(), stamped._data_list
            return [
                stamped.get(i) if cache[i] is None else copy.copy(cache[i])
                for i in map(positions.__getitem__, indices)
            ]

        if isinstance(dataset, OnDiskDataset):  # One query to its database.
            positions = dataset.indices()
            items = dataset.multi_get([positions[i] for i in indices])
        elif hasattr(dataset, '__getitems__'):
            items = dataset.__getitems__(indices)
        else:
            items = [dataset[i] for i in indices]
        graph_idx = torch.tensor(indices).split(1)
        return [self._stamp(*pair) for pair in zip(items, graph_idx)]

    def __iter__(self) -> Iterator[BaseData]:
        for idx in range(len(self)):
            yield self[idx]

    def __getattr__(self, name: str) -> Any:
        # `num_classes`, `num_features`, ... of the data set underneath:
        if name.startswith('num_'):
            dataset = self.dataset
            while isinstance(dataset, Subset):
                dataset = dataset.dataset
            return getattr(dataset, name)
        raise AttributeError(
            f"'{self.__class__.__name__}' has no attribute '{name}'"
        )

    def _select(self, idx: Index) -> Any:
        if isinstance(idx, list) and idx and isinstance(idx[0], bool):
            idx = torch.tensor(idx)  # A mask, not the positions 0 and 1.
        if isinstance(self.dataset, PyGDataset):
            return self.dataset[idx]
        if isinstance(idx, Tensor):
            idx = idx.cpu().numpy()
        positions = np.arange(len(self))[idx]
        return Subset(self.dataset, positions.tolist())

    def _stamp(self, data: Any, graph_idx: Tensor) -> BaseData:
        if not isinstance(data, BaseData):
            raise TypeError(
                f"'{self.__class__.__name__}' needs a data set of graphs "
                f'(got an item of {type(data)})'
            )
        data = copy.copy(data)
        data['graph_idx'] = graph_idx
        return data

    def __repr__(self) -> str:
        dataset = self.dataset
        if isinstance(dataset, PyGDataset):
            return f'{self.__class__.__name__}({dataset})'
        name = dataset.__class__.__name__
        return f'{self.__class__.__name__}({name}({len(self)}))'


def _stamp_storage(dataset: Any) -> Optional[InMemoryDataset]:
    """The same graphs with their positions as one more collated attribute,
    which spares to stamp them one by one. None where the storage of a data
    set is not all there is to an item.
    """
    if (
        not isinstance(dataset, InMemoryDataset)
        or type(dataset).get is not InMemoryDataset.get
        or type(dataset).__getitem__ is not InMemoryDataset.__getitem__
        or not isinstance(dataset._data, Data)
        or dataset.slices is None
    ):
        return None
    positions = torch.tensor(dataset.indices(), dtype=torch.long)
    if positions.unique().numel() < positions.numel():
        return None  # The same graph has several positions.

    graph_idx = torch.full((dataset.len(),), -1)
    graph_idx[positions] = torch.arange(positions.numel())
    out = copy.copy(dataset)
    out._data = copy.copy(dataset._data)
    out._data['graph_idx'] = graph_idx
    out.slices = dict(dataset.slices)
    out.slices['graph_idx'] = torch.arange(graph_idx.numel() + 1)
    out._data_list = graph_idx.numel() * [None]
    return out
