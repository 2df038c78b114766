from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_ext.loader.loss_based_sampler import LossBasedSampler

MIN_LOW = 0.1  # Fraction of the budget for graphs below the mean, a choice.


class InfoBatchSampler(LossBasedSampler):
    r"""Sampler that prunes graphs with a loss below the mean, from the
    `"InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning"
    <https://arxiv.org/abs/2303.04947>`_ paper.

    Graphs with a loss of at least the mean of all known losses are kept. The
    rest of the budget is drawn from the other graphs, whose losses are scaled
    up by the inverse of their inclusion probability. The last epochs are on
    all graphs. Graphs without a loss count as above the mean. Planning takes
    :math:`O(N)` time.

    .. code-block:: python

        sampler = InfoBatchSampler(dataset, 0.7, num_epochs=100)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler)

        for epoch in range(100):
            for batch in loader:
                out = model(batch)
                losses = F.cross_entropy(out, batch.y, reduction='none')
                loss = sampler.update(losses, batch.graph_idx)
                ...

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        reweight (bool, optional): If set to :obj:`False`, losses are not
            scaled up. (default: :obj:`True`)
        anneal_epochs (int, optional): Number of last epochs on all graphs.
            (default: an eighth of :obj:`num_epochs`)
        **kwargs (optional): Arguments of
            :class:`~torch_geometric_ext.loader.LossBasedSampler`.

    Raises:
        ValueError: If an argument is out of its range.

    .. rubric:: Details

    .. note::
        Deviations from the paper: the budget is exact, while the paper keeps
        a fixed ratio of the graphs below the mean. A tenth of the budget is
        reserved for them. If the graphs above the mean do not fit into the
        rest, they are drawn with equal probability and scaled up, too. The
        weighted mean estimates the mean loss of the data set. It is smaller
        than the mean of the paper, whose graphs above the mean of the losses
        have a weight of one, by a factor of about :obj:`keep_ratio`. Raise the
        learning rate by its inverse to compensate for the fewer steps, unless
        the optimizer ignores the scale of gradients, as Adam does.
    """

    def __init__(
        self,
        dataset: Any,
        keep_ratio: float,
        num_epochs: int,
        *,
        reweight: bool = True,
        anneal_epochs: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        if anneal_epochs is None:
            anneal_epochs = round(num_epochs / 8)
        super().__init__(
            dataset,
            keep_ratio,
            num_epochs,
            reweight=reweight,
            anneal_epochs=anneal_epochs,
            **kwargs,
        )

    def _weights(self, epoch: int) -> Optional[Tensor]:
        known = self.losses.isfinite()
        low = known & (self.losses < self.losses[known].mean())
        num_low = int(low.sum())
        num_high = self.size - num_low
        # Rounding may lift the mean of equal losses above all of them:
        if num_low == 0 or num_high == 0:
            return None
        draws = max(self.budget - num_high, MIN_LOW * self.budget)
        draws = min(draws, num_low)
        rest = min(self.budget - draws, num_high)
        # In double precision, so that a probability of one is exact:
        weight = torch.full_like(low, rest / num_high, dtype=torch.double)
        weight[low] = draws / num_low
        return weight
