from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_CLASSES = 1000  # A bound: more distinct labels look like a regression.


class ClassLabels(NamedTuple):
    """The classes of the graphs of a data set."""

    value: Tensor  # The distinct labels, in ascending order.
    group: Tensor  # The class of each graph, as a position in `value`.
    first: Tensor  # The first graph of each class.

    @property
    def size(self) -> Tensor:
        """The number of graphs of each class."""
        return self.group.bincount(minlength=self.value.numel())

    def of(self, y: Tensor) -> Tensor:
        """Return the classes of labels, as positions in :obj:`value`."""
        return torch.searchsorted(self.value, y.reshape(-1).long())


def class_labels(y: Any) -> ClassLabels:
    """Return the classes of graphs.

    Args:
        y (torch.Tensor, optional): The labels, with one element for each
            graph, of any numeric type.

    Raises:
        ValueError: If labels are missing, are no integers, or there are
            several for each graph.
    """
    if y is None:
        raise ValueError(
            "'dataset' needs graphs with 'y', the class of each graph"
        )
    if not isinstance(y, Tensor):
        raise ValueError(
            f"'y' needs to be the number of a class for each graph (got "
            f"'{y[0]}': number the classes by a transform)"
        )
    num_graphs = y.size(0)
    if y.numel() != num_graphs:
        raise ValueError(
            f"'y' needs to be one class for each graph (got "
            f'{y.numel() // max(num_graphs, 1)} labels for each: choose one '
            f"by a transform that sets 'data.y = data.y[:, i]')"
        )
    y = y.reshape(-1)
    if y.is_floating_point():
        _check_integers(y)
    value, group = y.long().unique(return_inverse=True)
    if value.numel() > MAX_CLASSES:
        raise ValueError(
            f"'y' needs to be a class, but looks like the target of a "
            f'regression (got {value.numel()} distinct values in '
            f'{num_graphs} graphs: replace it by the number of a bin, for '
            f"example by 'torch.bucketize')"
        )
    position = torch.arange(num_graphs, device=y.device)
    first = group.new_empty(value.numel()).scatter_reduce_(
        0, group, position, 'amin', include_self=False
    )
    return ClassLabels(value, group, first)


def _check_integers(y: Tensor) -> None:
    if bool(y.isnan().any()):
        raise ValueError(
            f"'y' needs to be a class for each graph (got NaN for "
            f'{int(y.isnan().sum())} graphs: leave them out)'
        )
    other = y[y != y.long().to(y.dtype)]
    if other.numel() > 0:
        raise ValueError(
            f"'y' needs to be a class, but looks like the target of a "
            f'regression (got {float(other[0]):g}: replace it by the number '
            f"of a bin, for example by 'torch.bucketize')"
        )
