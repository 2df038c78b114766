from typing import Optional

import torch
from torch import Tensor

from torch_geometric_ext.nn.dense.pattern import random_index
from torch_geometric_ext.ops.merge_positions import missing_positions
from torch_geometric_ext.sparsity.topology_scheduler import TopologyScheduler


class SET(TopologyScheduler):
    r"""Sparse evolutionary training from the `"Scalable Training of
    Artificial Neural Networks with Adaptive Sparse Connectivity Inspired by
    Network Science" <https://arxiv.org/abs/1707.04780>`_ paper.

    Every :obj:`update_every` steps, each layer drops the active weights of
    smallest magnitude and grows as many weights at inactive positions, drawn
    uniformly:

    .. code-block:: python

        scheduler = SET(model, optimizer, num_steps=10_000)
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            scheduler.step()

    Args:
        model (torch.nn.Module): The model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        num_steps (int): Number of optimizer steps of the whole training.
        update_every (int, optional): Number of steps from one update to the
            next. (default: :obj:`100`)
        drop_fraction (float, optional): Initial fraction :math:`\alpha` of
            active weights to drop, in :math:`(0, 1]`. (default: :obj:`0.3`)
        stop (float, optional): Fraction of the training after which there are
            no more updates, in :math:`(0, 1]`. (default: :obj:`0.75`)
        seed (int, optional): Seed of the scheduler's generator, equal on all
            ranks. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of its range, the model has no
            trainable sparse layer, or the optimizer does not train one.
        TypeError: If :obj:`optimizer` is not an optimizer.
        NotImplementedError: If the state of the optimizer is not elementwise.

    Example:
        >>> import torch
        >>> from torch_geometric_ext.nn import SparseLinear
        >>> lin = SparseLinear(100, 100, sparsity=0.9, seed=0)
        >>> optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
        >>> scheduler = SET(lin, optimizer, num_steps=100, update_every=10)
        >>> for _ in range(10):
        ...     lin(torch.ones(1, 100)).sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> lin.sparsity, scheduler.explored
        (0.9, 0.1287)

    .. rubric:: Details

    An update takes :math:`O(\textrm{nnz} + I + O)` time on CPU, besides a sort
    of the drawn positions, and :math:`O(\textrm{nnz} + I + O)` memory.

    .. note::
        Deviations from the paper: the paper drops a constant fraction
        :math:`\zeta` of the smallest positive and of the largest negative
        weights after each epoch, and draws the values of new weights. This
        scheduler drops weights by magnitude, decays the fraction as
        :class:`RigL` does (Eq. (1) of its paper), and sets new weights to
        zero.
    """

    def _grow(
        self, name: str, index: Tensor, num_weights: int
    ) -> Optional[Tensor]:
        layer = self.layers[name]
        numel = layer.out_channels * layer.in_channels
        # Draw ranks among the inactive positions:
        rank = random_index(
            numel - index.numel(), num_weights, self._generator
        )
        return missing_positions(index, rank.to(index.device))

    def _score_blocks(self, name: str) -> Tensor:
        layer = self.layers[name]
        size = layer.grid.num_blocks
        score = torch.rand(size, generator=self._generator, device='cpu')
        return score.to(layer.values.device)
