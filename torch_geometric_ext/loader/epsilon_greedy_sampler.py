from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_ext.loader.check import require
from torch_geometric_ext.loader.draw import (
    balance_weight,
    expected_copies,
    round_to_sum,
)
from torch_geometric_ext.loader.loss_based_sampler import LossBasedSampler


class EpsilonGreedySampler(LossBasedSampler):
    r"""Sampler that draws the graphs with the largest losses, and a fraction
    of the budget at random, from the `"Accelerating Deep Learning with Dynamic
    Data Pruning" <https://arxiv.org/abs/2111.12621>`_ paper.

    Of a budget of :math:`B` graphs, the :math:`(1 - \epsilon) B` graphs with
    the largest moving average of the loss are drawn, and :math:`\epsilon B`
    of the others uniformly. Graphs without a loss come first. With
    :obj:`balance`, the budget is divided among classes first, and the graphs
    with the largest losses of each class are drawn. Planning takes a sort of
    the data set, :math:`O(N \log N)`.

    .. code-block:: python

        >>> import torch
        >>> sampler = EpsilonGreedySampler(10, 0.5, num_epochs=3, epsilon=0)
        >>> graph_idx = torch.tensor(list(sampler))
        >>> _ = sampler.update(torch.rand(5), graph_idx)
        >>> len(set(graph_idx.tolist()) | set(sampler))
        10

    .. note::
        Deviation from the paper: the subset changes in each epoch instead of
        every few epochs.

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        epsilon (float, optional): The random fraction :math:`\epsilon` of the
            budget, in :math:`[0, 1]`. (default: :obj:`0.1`)
        smoothing (float, optional): The weight of the previous average loss,
            in :math:`[0, 1)`. (default: :obj:`0.8`)
        **kwargs (optional): Arguments of
            :class:`~torch_geometric_ext.loader.LossBasedSampler`.

    Raises:
        ValueError: If an argument is out of its range, or :obj:`reweight` is
            set and :math:`\epsilon B` rounds to zero, as graphs that are
            never drawn have no weight.
    """

    def __init__(
        self,
        dataset: Any,
        keep_ratio: float,
        num_epochs: int,
        *,
        epsilon: float = 0.1,
        smoothing: float = 0.8,
        **kwargs: Any,
    ) -> None:
        in_range = 0 <= epsilon <= 1
        require(self, in_range, 'epsilon', 'be in [0, 1]', epsilon)
        super().__init__(
            dataset, keep_ratio, num_epochs, smoothing=smoothing, **kwargs
        )
        self.epsilon = epsilon
        require(
            self,
            not self.reweight or self._num_random > 0,
            'epsilon',
            "draw at least one random graph with 'reweight'",
            epsilon,
        )

    @property
    def _num_random(self) -> int:
        return round(self.epsilon * self.budget)

    def _weights(self, epoch: int) -> Optional[Tensor]:
        num_random = self._num_random
        num_top = self.budget - num_random
        # Random ties, also among graphs without a loss:
        perm = torch.randperm(self.size, generator=self._generator)
        order = perm[
            self._scores()[perm].argsort(descending=True, stable=True)
        ]
        if self.balance > 0 and self._group is not None:
            return self._balanced_weights(order, self._group)
        num_others = max(self.size - num_top, 1)
        # In double precision, so that the first graphs are drawn for certain:
        weight = torch.ones(self.size, dtype=torch.double)
        weight *= num_random / num_others
        weight[order[:num_top]] = 1.0
        return weight

    def _balance(self) -> float:
        return 0.0  # The weights are balanced already.

    def _balanced_weights(self, order: Tensor, group: Tensor) -> Tensor:
        """Return weights of one for the first graphs of each class.

        Args:
            order (torch.Tensor): All graphs, the largest scores first.
            group (torch.Tensor): The class of each graph.
        """
        weight = torch.ones(self.size, dtype=torch.double)
        weight = balance_weight(weight, group, self.balance)
        quota = group.bincount(expected_copies(weight, self.budget))
        size, num_random = group.bincount(), self._num_random
        top = round_to_sum(
            quota * (1 - num_random / self.budget), self.budget - num_random
        )
        others = (quota - top).clamp(min=0.0)
        others *= num_random / others.sum().clamp(min=1e-12)
        others /= (size - top).clamp(min=1)

        order = order[group[order].argsort(stable=True)]
        first = (size.cumsum(0) - size).repeat_interleave(size)
        rank = torch.arange(self.size) - first
        label = group[order]
        weight[order] = torch.where(rank < top[label], 1.0, others[label])
        return weight

    def _scores(self) -> Tensor:
        """Return the score of each graph, infinite for unknown graphs."""
        return self.losses.nan_to_num(nan=float('inf'))
