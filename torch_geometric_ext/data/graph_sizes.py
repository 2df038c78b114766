from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.data import Subset

from torch_geometric_ext.data.indexed_dataset import IndexedDataset
from torch_geometric_ext.data.storage import read_storage


def read_sizes(dataset: Any, mode: str) -> Tensor:
    """Return the number of nodes or edges of each graph.

    Loads each graph once, except from in-memory data sets without a
    :obj:`transform`, which could change sizes, and from subsets of them.

    Args:
        dataset (Dataset): The data set.
        mode (str): The unit of sizes (:obj:`"node"` or :obj:`"edge"`).

    Returns:
        The sizes of shape :math:`(N)` (int64).
    """
    sizes = _read_stored_sizes(dataset, mode)
    if sizes is None:
        key = f'num_{mode}s'
        rows = [int(getattr(dataset[i], key)) for i in range(len(dataset))]
        sizes = torch.tensor(rows, dtype=torch.long)
    return sizes


def _read_stored_sizes(dataset: Any, mode: str) -> Optional[Tensor]:
    if isinstance(dataset, IndexedDataset):
        return _read_stored_sizes(dataset.dataset, mode)
    if isinstance(dataset, Subset):
        sizes = _read_stored_sizes(dataset.dataset, mode)
        index = torch.as_tensor(dataset.indices, dtype=torch.long)
        return None if sizes is None else sizes[index]
    storage = read_storage(dataset)
    if storage is None or getattr(dataset, 'transform', None) is not None:
        return None
    if mode == 'node':
        sizes = storage.num_nodes
    else:
        ptr = storage.slices.get('edge_index')
        sizes = ptr.diff() if isinstance(ptr, Tensor) else None
    return None if sizes is None else sizes.cpu()[storage.positions]
