import torch
from torch import Tensor

from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler


class SoftRandomSampler(DynamicSampler):
    r"""Draws a new uniformly random part of the data set in each epoch.

    The honest baseline of any dynamic pruning: it needs no feedback, costs
    nothing, and over the epochs sees every graph. See
    :class:`~torch_geometric_ext.loader.DynamicSampler` for arguments, ranks
    and resuming. Planning takes :math:`O(N)` time.

    .. code-block:: python

        >>> sampler = SoftRandomSampler(6, keep_ratio=0.5, num_epochs=2)
        >>> list(sampler)
        [2, 3, 5]
        >>> list(sampler)
        [1, 5, 3]
    """

    def _draw(self, epoch: int) -> Tensor:
        perm = torch.randperm(self.size, generator=self._generator)
        return perm[: self.budget]
