from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from torch_geometric_ext.data.indexed_dataset import IndexedDataset
from torch_geometric_ext.data.storage import read_storage, stack_labels


def read_stored_labels(dataset: Any) -> Optional[Tensor]:
    """Return the labels :obj:`y` of all graphs without loading a graph, or
    `None` if that is not possible.

    Reads lists of graphs, in-memory data sets without a :obj:`transform`,
    which could change labels, and subsets of both.

    Args:
        dataset (Dataset or int): The data set, or its number of graphs.

    Returns:
        The labels, with one row per graph.
    """
    if isinstance(dataset, IndexedDataset):
        return read_stored_labels(dataset.dataset)
    if isinstance(dataset, Subset):
        y = read_stored_labels(dataset.dataset)
        if y is None:
            return None
        indices = dataset.indices
        if not isinstance(indices, (Tensor, np.ndarray)):
            indices = list(indices)
        return y[torch.as_tensor(indices, dtype=torch.long)]
    if type(dataset) in (list, tuple):  # A sub-class can load graphs.
        return stack_labels(dataset)
    storage = read_storage(dataset)
    if storage is None or getattr(dataset, 'transform', None) is not None:
        return None
    y, ptr = storage.data.get('y'), storage.slices.get('y')
    if not isinstance(y, Tensor) or not isinstance(ptr, Tensor):
        return None
    if y.dim() == 0 or not bool((ptr.diff() == 1).all()):
        return None  # Labels of nodes, or no label.
    return y[storage.positions].cpu()


def read_labels(dataset: Any) -> Optional[Tensor]:
    """Return the labels :obj:`y` of all graphs, or `None` if a graph has
    none.

    Loads each graph once if labels are not stored in one tensor.

    Args:
        dataset (Dataset or int): The data set, or its number of graphs.

    Returns:
        The labels, with one row per graph.
    """
    y = read_stored_labels(dataset)
    if y is not None or isinstance(dataset, int):
        return y
    return stack_labels(dataset)


def to_classes(y: Optional[Tensor]) -> Optional[Tensor]:
    """Number the classes of graphs, or return `None` if labels are not
    classes.

    Args:
        y (torch.Tensor, optional): The labels, with one row per graph.

    Returns:
        The class of each graph, in :math:`[0, C)`, of type
        :obj:`torch.int64`, in the order of the labels.
    """
    if y is None or y.numel() == 0 or y.numel() != y.size(0):
        return None
    y = y.reshape(-1)
    # Neither NaN nor an infinite value minus its rounded value is zero:
    if y.is_floating_point() and not bool((y - y.round() == 0).all()):
        return None  # Targets of a regression, or missing labels.
    return y.unique(return_inverse=True)[1]
