import copy
from typing import Any, Iterator, List, Optional, Sequence, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torch_geometric.data import Dataset as PyGDataset
from torch_geometric.data import InMemoryDataset
from torch_geometric.data.data import BaseData

from torch_geometric_ext.data.storage import (
    add_graph_attr,
    get_graphs,
    get_items,
    read_storage,
    stack_labels,
)

Index = Union[slice, Tensor, np.ndarray, List[int], List[bool]]


class IndexedDataset(Dataset):
    r"""Add the index of each graph to its data object, so that a sampler
    recognizes the graph in a mini-batch.

    Every item has the attribute :obj:`graph_idx`, a :obj:`torch.int64` tensor
    of shape :obj:`[1]`. :class:`torch_geometric.loader.DataLoader` collates it
    to :obj:`batch.graph_idx` of shape :obj:`[batch_size]`. The index is the
    position in *this* object: a slice of an :class:`IndexedDataset` counts
    from zero again. An attribute :obj:`graph_idx` of the wrapped data set is
    replaced. Items are shallow copies, so that the wrapped data set does not
    change.

    Complete the tensors of an :class:`~torch_geometric.data.InMemoryDataset`
    before you wrap it. Later changes of its :obj:`transform` have an effect,
    later changes of its storage have none.

    .. note::
        Wrap the subset: :obj:`IndexedDataset(Subset(dataset, indices))` is
        right. Items of :obj:`Subset(IndexedDataset(dataset), indices)` carry
        positions in :obj:`dataset`, while a sampler draws positions in the
        subset.

    Args:
        dataset (Dataset or Sequence): A data set of graphs: a
            :class:`torch_geometric.data.Dataset` (in memory, on disk, with
            transforms), a :class:`torch.utils.data.Subset` or a list.

    Raises:
        TypeError: If :obj:`dataset` has no length or no integer indexing. On
            access, if an item is not a graph.

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
        r"""Return a graph, or the :class:`IndexedDataset` of several."""
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
        r"""Return the graphs of a mini-batch."""
        dataset, stamped = self.dataset, self._stamped
        if stamped is not None and dataset.transform is None:
            return get_graphs(stamped, indices)
        items = get_items(dataset, indices)
        graph_idx = torch.tensor(indices).split(1)
        return [self._stamp(*pair) for pair in zip(items, graph_idx)]

    def __iter__(self) -> Iterator[BaseData]:
        for idx in range(len(self)):
            yield self[idx]

    def __getattr__(self, name: str) -> Any:
        # `num_classes`, `num_features`, ... of the wrapped data set:
        if name.startswith('num_'):
            dataset = self.dataset
            while isinstance(dataset, Subset):
                dataset = dataset.dataset
            if isinstance(dataset, (list, tuple)):
                return _infer(dataset, name)
            return getattr(dataset, name)
        raise AttributeError(
            f"'{self.__class__.__name__}' has no attribute '{name}'"
        )

    def _select(self, idx: Index) -> Any:
        if isinstance(idx, list) and idx and isinstance(idx[0], bool):
            idx = torch.tensor(idx)  # A mask is no list of positions.
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


def _infer(graphs: Sequence[Any], name: str) -> Any:
    """Return a property of a list of graphs, as a data set of PyG does: the
    number of classes by the labels, others by the first graph.
    """
    if name != 'num_classes':
        return getattr(graphs[0] if graphs else None, name)
    y = stack_labels(graphs)
    if y is not None and y.size(1) > 1:
        return y.size(1)
    wrong = 'none'
    if y is not None:
        y = y.double()
        fractions = y[y - y.round() != 0]  # Also NaN and infinite values.
        if fractions.numel() == 0:
            return int(y.max()) + 1
        wrong = f'values such as {float(fractions[0]):g}'
    raise AttributeError(
        f"'num_classes' of 'IndexedDataset' needs graphs with one class 'y' "
        f'each (got {wrong})'
    )


def _stamp_storage(dataset: Any) -> Optional[InMemoryDataset]:
    """Return a data set with its positions as a collated attribute, which is
    faster than to stamp each graph, or `None` if the storage differs from the
    items.
    """
    storage = read_storage(dataset)
    if storage is None:
        return None
    positions = storage.positions
    if positions.unique().numel() < positions.numel():
        return None  # A repeated graph has several positions.
    graph_idx = torch.full((dataset.len(),), -1)
    graph_idx[positions] = torch.arange(positions.numel())
    return add_graph_attr(dataset, 'graph_idx', graph_idx)
