import math
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor


class History:
    """Statistics of the subsets of all epochs.

    Args:
        size (int): The number of graphs of the data set.
    """

    def __init__(self, size: int) -> None:
        self.records: List[Dict[str, Any]] = []
        self.seen = torch.zeros(size, dtype=torch.bool)

    def add(
        self,
        epoch: int,
        order: Tensor,
        drawn: Tensor,
        previous: Tensor,
        group: Optional[Tensor],
        **extra: Any,
    ) -> None:
        """Add an epoch.

        Args:
            epoch (int): The epoch.
            order (torch.Tensor): The drawn positions, with repeats.
            drawn (torch.Tensor): The mask of these graphs.
            previous (torch.Tensor): The mask of the graphs of the previous
                epoch.
            group (torch.Tensor, optional): The class of each graph, -1 if
                unknown.
            **extra (optional): Statistics of a sub-class.
        """
        num_distinct = int(drawn.sum())
        self.seen |= drawn
        record: Dict[str, Any] = {
            'epoch': epoch,
            'num_graphs': order.numel(),
            'num_distinct': num_distinct,
            'turnover': 1 - int((drawn & previous).sum()) / num_distinct,
            'coverage': int(self.seen.sum()) / self.seen.numel(),
        }
        label = None if group is None else group.index_select(0, order)
        if group is not None and label is not None and int(label.min()) >= 0:
            count = label.bincount(minlength=int(group.max()) + 1)
            record['per_class'] = count.tolist()
        self.records.append({**record, **extra})

    def as_dict(self) -> Dict[str, List[Any]]:
        """Return one list per statistic, with one entry per epoch."""
        keys = dict.fromkeys(key for row in self.records for key in row)
        return {key: [row.get(key) for row in self.records] for key in keys}


def plot_history(history: Dict[str, List[Any]]) -> Any:
    """Plot the result of
    :meth:`~torch_geometric_ext.loader.DynamicSampler.history`.
    """
    import matplotlib.pyplot as plt

    epoch = history.get('epoch', [])
    figure, axes = plt.subplots(1, 3, figsize=(12, 3))
    for key in ['num_graphs', 'num_distinct', 'num_suspects']:
        if key in history:
            axes[0].plot(epoch, history[key], label=key)
    for key in ['turnover', 'coverage']:
        if key in history:
            axes[1].plot(epoch, history[key], label=key)
    axes[1].set_ylim(-0.05, 1.05)
    # Epochs with a graph of unknown class have no count:
    rows = history.get('per_class', [])
    for label in range(max((len(row or []) for row in rows), default=0)):
        count = [
            math.nan if row is None else sum(row[label : label + 1])
            for row in rows
        ]
        axes[2].plot(epoch, count, label=f'class {label}')
    for ax, name in zip(axes, ['Graphs', 'Fraction', 'Graphs per class']):
        ax.set(xlabel='Epoch', ylabel=name)
        if ax.get_legend_handles_labels()[1]:
            ax.legend()
    figure.tight_layout()
    return figure
