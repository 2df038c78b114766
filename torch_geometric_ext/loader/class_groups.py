from typing import Any, Optional

from torch import Tensor

from torch_geometric_ext.data.graph_labels import (
    read_labels,
    read_stored_labels,
    to_classes,
)
from torch_geometric_ext.loader.check import require


def find_groups(
    sampler: Any, dataset: Any, y: Optional[Tensor]
) -> Optional[Tensor]:
    """Return the class of each graph, in :math:`[0, C)`, or `None` if labels
    are not classes.

    Args:
        sampler (DynamicSampler): The sampler, for its size and errors.
        dataset (Dataset or int): The data set, or its number of graphs.
        y (torch.Tensor, optional): The labels.
            (default: the labels of the data set)

    Raises:
        ValueError: If :obj:`y` is of the wrong shape, the sampler counts
            classes and there are none, or its minimum per class exceeds its
            budget.
    """
    # Load graphs only if the sampler needs their classes:
    needed = sampler.balance > 0 or sampler.min_per_class > 0
    if y is not None:
        require(
            sampler,
            isinstance(y, Tensor) and y.dim() > 0 and len(y) == sampler.size,
            'y',
            f'be a tensor of {sampler.size} classes, one per graph',
            list(y.shape) if isinstance(y, Tensor) else type(y),
        )
        needed, y = True, y.cpu()
    else:
        y = read_labels(dataset) if needed else read_stored_labels(dataset)
    group = to_classes(y)
    require(
        sampler,
        group is not None or not needed,
        'y',
        "hold one integer per graph, its class, for 'balance' and "
        "'min_per_class'",
        'none' if y is None else f'{y.dtype} of shape {list(y.shape)}',
    )
    if group is not None:
        num_classes = int(group.max()) + 1
        require(
            sampler,
            sampler.min_per_class * num_classes <= sampler.budget,
            'min_per_class',
            f'fit {num_classes} times into {sampler.budget} draws',
            sampler.min_per_class,
        )
    return group
