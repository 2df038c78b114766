from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_ext.loader.check import require
from torch_geometric_ext.loader.loss_based_sampler import LossBasedSampler

MAX_DEVIATIONS = 3.0  # Of a loss from the mean, which bounds the weights.


class LossSampler(LossBasedSampler):
    r"""Sampler that prefers graphs with large or small losses.

    The weight of a graph is :math:`\exp(\pm z_i / T)` with the standardized
    loss :math:`z_i`, which is zero for graphs without a loss and at most three
    in magnitude. Large losses are hard graphs, as in the `"Online Batch
    Selection for Faster Training of Neural Networks"
    <https://arxiv.org/abs/1511.06343>`_ paper. Small losses are graphs with
    likely correct labels, as in the `"Co-teaching"
    <https://arxiv.org/abs/1804.06872>`_ paper, which ranks losses instead.
    Planning takes :math:`O(N)` time.

    .. note::
        The probabilities of two graphs differ by a factor of up to
        :math:`\exp(6 / T)`, and so do the weights of :meth:`loss_weight`.
        With :math:`T < 1`, few graphs dominate a weighted loss.

    .. code-block:: python

        >>> import torch
        >>> sampler = LossSampler(100, 0.5, num_epochs=3, warmup_epochs=1)
        >>> graph_idx = torch.tensor(list(sampler))
        >>> _ = sampler.update(graph_idx.float(), graph_idx)
        >>> bool(torch.tensor(list(sampler)).float().mean() > 55)
        True

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        largest (bool, optional): If set to :obj:`False`, graphs with small
            losses are preferred. (default: :obj:`True`)
        temperature (float, optional): The temperature :math:`T`. Draws are
            uniform for large values. (default: :obj:`1.0`)
        **kwargs (optional): Arguments of
            :class:`~torch_geometric_ext.loader.LossBasedSampler`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: Any,
        keep_ratio: float,
        num_epochs: int,
        *,
        largest: bool = True,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        positive = temperature > 0
        require(self, positive, 'temperature', 'be positive', temperature)
        super().__init__(dataset, keep_ratio, num_epochs, **kwargs)
        self.largest = largest
        self.temperature = temperature

    def _weights(self, epoch: int) -> Optional[Tensor]:
        known = self.losses.isfinite()
        if not bool(known.any()):
            return None
        losses = self.losses.double()
        std, mean = torch.std_mean(losses[known], correction=0)
        score = (losses - mean) / std.clamp(min=1e-12)
        score = score.nan_to_num(nan=0.0)
        score = score.clamp(min=-MAX_DEVIATIONS, max=MAX_DEVIATIONS)
        sign = 1.0 if self.largest else -1.0
        score *= sign
        # The largest weight is one, as a low temperature would overflow:
        return ((score - score.max()) / self.temperature).exp()
