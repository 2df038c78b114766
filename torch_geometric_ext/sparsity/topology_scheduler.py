import math
import warnings
from abc import abstractmethod
from typing import Any, Dict, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity.optimizer_state import move_weights
from torch_geometric_ext.sparsity.ranking import top_mask
from torch_geometric_ext.sparsity.weight_scheduler import WeightScheduler


class TopologyScheduler(WeightScheduler):
    r"""Base class of schedulers that move weights to other positions.

    At each update and in each layer, they drop the share

    .. math::
        f(t) = \frac{\alpha}{2} \left( 1 + \cos \frac{\pi t}
        {T_{\textrm{end}}} \right)

    of the weights, those of smallest magnitude, and grow as many at positions
    that were inactive before (Eq. (1) of the `"Rigging the Lottery: Making
    All Tickets Winners" <https://arxiv.org/abs/1911.11134>`_ paper). A policy
    implements :meth:`_grow`, which chooses these positions.

    * **The number of weights stays**, exactly and in each layer. Tensors are
      overwritten in place; parameters and their addresses stay.
    * **New weights are zero**, so that the model computes the same right
      after an update, but for the weights that were dropped.
    * **Ranks agree.** Under :mod:`torch.distributed`, all ranks choose the
      same positions if their models are equal, as they are under
      :class:`~torch.nn.parallel.DistributedDataParallel`.

    It also counts which positions were ever active (see :attr:`explored`),
    for which it keeps eight bytes for each of them.

    Args:
        model (torch.nn.Module): The model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        num_steps (int): Number of optimizer steps of the whole training.
        update_every (int, optional): Number of steps :math:`\Delta T` from
            one update to the next. (default: :obj:`100`)
        drop_fraction (float, optional): The share :math:`\alpha` of weights
            that move at first, in :math:`(0, 1]`. (default: :obj:`0.3`)
        stop (float, optional): Share of the training after which the weights
            stay where they are, in :math:`(0, 1]`: :math:`T_{\textrm{end}}` is
            :obj:`stop * num_steps`. (default: :obj:`0.75`)
        seed (int, optional): Seed of the scheduler's own generator; the same
            on all ranks. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of its range, the model holds no
            layer to train, or the optimizer does not train one of them.
        TypeError: If :obj:`optimizer` is no optimizer.
        NotImplementedError: If the state of the optimizer cannot follow
            single weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        *,
        num_steps: int,
        update_every: int = 100,
        drop_fraction: float = 0.3,
        stop: float = 0.75,
        seed: int = 0,
    ) -> None:
        name = self.__class__.__name__
        if not 0 < drop_fraction <= 1:
            raise ValueError(
                f"'drop_fraction' of '{name}' needs to be in (0, 1] "
                f'(got {drop_fraction})'
            )
        super().__init__(
            model,
            optimizer,
            num_steps=num_steps,
            update_every=update_every,
            stop=stop,
        )
        if update_every >= stop * num_steps:
            warnings.warn(
                f"'{name}' will move no weights: the first update is due at "
                f'step {update_every}, but none is from step '
                f'{stop * num_steps:g} on',
                stacklevel=2,
            )
        self.drop_fraction = drop_fraction
        self._generator = torch.Generator().manual_seed(seed)
        # The positions that were ever active, up to the last update:
        empty = torch.empty(0, dtype=torch.long)
        self._explored = {key: empty for key in self.layers}
        self._prepare()

    @property
    def explored(self) -> float:
        r"""The share of all weights, existing or not, that were ever active:
        the *in-time over-parameterization rate* of the `"Do We Actually Need
        Dense Over-Parameterization?" <https://arxiv.org/abs/2102.02887>`_
        paper.
        """
        sizes = [rows * cols for rows, cols in self._sizes()]
        return sum(self._num_explored().values()) / max(sum(sizes), 1)

    @property
    def explored_by_layer(self) -> Dict[str, float]:
        """The share :attr:`explored` of each layer, by its name."""
        return {
            key: num / max(rows * cols, 1)
            for (key, num), (rows, cols) in zip(
                self._num_explored().items(), self._sizes()
            )
        }

    def state_dict(self) -> Dict[str, Any]:
        r"""Returns the state of the scheduler, to be saved after a
        :meth:`step` beside those of the model and the optimizer.

        A scheduler that loads it goes on bit for bit. The arguments of the
        scheduler are not part of it.
        """
        return {
            **super().state_dict(),
            'generator': self._generator.get_state(),
            'explored': list(self._explored.values()),
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Loads the state of a scheduler of layers of the same sizes.

        See :meth:`WeightScheduler.load_state_dict`.
        """
        super().load_state_dict(state_dict)
        self._generator.set_state(state_dict['generator'].cpu())
        self._explored = dict(zip(self.layers, state_dict['explored']))

    @abstractmethod
    def _grow(
        self, name: str, index: Tensor, num_weights: int
    ) -> Optional[Tensor]:
        r"""Chooses :obj:`num_weights` positions of a layer's flat, dense
        weight that are not in :obj:`index`, the active ones (ascending). The
        layer keeps its weights if there is no choice (:obj:`None`).
        """

    def _num_positions(self, name: str) -> int:
        """The number of positions that weights of a layer may have."""
        layer = self.layers[name]
        return layer.out_channels * layer.in_channels

    def _update(self, step: int, layers: Dict[str, SparseLinear]) -> None:
        # Eq. (1):
        angle = math.pi * step / (self.stop * self.num_steps)
        share = self.drop_fraction / 2 * (1 + math.cos(angle))
        for key, layer in layers.items():
            index = layer.index
            num_moved = round(share * index.numel())
            num_free = self._num_positions(key) - index.numel()
            num_moved = min(num_moved, num_free)
            if num_moved == 0:
                continue
            grown = self._grow(key, index, num_moved)
            if grown is None:
                continue
            magnitude = layer.values.detach().abs()
            magnitude.nan_to_num_(nan=math.inf, posinf=math.inf)
            kept = index[top_mask(magnitude, index.numel() - num_moved)]
            self._explored[key] = _union(self._explored[key], index)
            index = torch.cat([kept, grown]).sort().values
            move_weights(layer, self.optimizer, index)

    def _num_explored(self) -> Dict[str, int]:
        return {
            key: _union(self._explored[key], layer.index).numel()
            for key, layer in self.layers.items()
        }


def _union(index: Tensor, other: Tensor) -> Tensor:
    return torch.cat([index.to(other.device), other]).unique()
