import math
import warnings
from abc import abstractmethod
from typing import Any, Dict, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops.check_state_dict import (
    Check,
    is_generator,
    is_index,
)
from torch_geometric_ext.ops.merge_positions import merge_positions
from torch_geometric_ext.ops.top_positions import top_positions
from torch_geometric_ext.sparsity.blocks import move_blocks
from torch_geometric_ext.sparsity.explored import Explored
from torch_geometric_ext.sparsity.optimizer_state import move_weights
from torch_geometric_ext.sparsity.weight_scheduler import WeightScheduler


class TopologyScheduler(WeightScheduler):
    r"""Base class of schedulers that drop and grow weights (dynamic sparse
    training).

    At update step :math:`t`, each layer drops the fraction

    .. math::
        f(t) = \frac{\alpha}{2} \left( 1 + \cos \frac{\pi t}
        {T_{\textrm{end}}} \right)

    of its active weights, smallest magnitudes first, and grows as many
    weights at inactive positions (Eq. (1) of the `"Rigging the Lottery: Making
    All Tickets Winners" <https://arxiv.org/abs/1911.11134>`_ paper). A
    sub-class implements :meth:`_grow`, which selects the positions to grow.

    Args:
        model (torch.nn.Module): The model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        num_steps (int): Number of optimizer steps of the whole training.
        update_every (int, optional): Number of steps :math:`\Delta T` from
            one update to the next. (default: :obj:`100`)
        drop_fraction (float, optional): Initial fraction :math:`\alpha` of
            active weights to drop, in :math:`(0, 1]`. (default: :obj:`0.3`)
        stop (float, optional): Fraction of the training after which there are
            no more updates, in :math:`(0, 1]`. :math:`T_{\textrm{end}}` is
            :obj:`stop * num_steps`. (default: :obj:`0.75`)
        seed (int, optional): Seed of the scheduler's generator, equal on all
            ranks. (default: :obj:`0`)

    Raises:
        ValueError: If an argument is out of its range, the model has no
            trainable sparse layer, or the optimizer does not train one.
        TypeError: If :obj:`optimizer` is not an optimizer.
        NotImplementedError: If the state of the optimizer is not elementwise.

    .. rubric:: Details

    * **The number of active weights** of each layer is constant. Parameters
      are overwritten in-place.
    * **Blocks.** Layers with a :obj:`block_size` move whole blocks, and rank
      them by their norms. A block that is cut at the edge of a weight is
      replaced by a block with as many weights.
    * **New weights** are zero. An update changes outputs by the dropped
      weights only.
    * **Distributed training.** All ranks select the same positions if their
      models are equal, as with
      :class:`~torch.nn.parallel.DistributedDataParallel`.

    Among weights of equal magnitude, the last ones are dropped first. A weight
    that is NaN counts as infinite. An update selects weights in
    :math:`O(\textrm{nnz})` time and builds the new pattern in
    :math:`O(\textrm{nnz} + I + O)` time on CPU. Its result does not depend on
    the number of threads.

    The scheduler also records all positions that were ever active (see
    :attr:`explored`). They take at most 16 bytes per position, and eight bytes
    per active weight.
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
                f'step {update_every}, but updates stop at step '
                f'{stop * num_steps:g}',
                stacklevel=2,
            )
        self.drop_fraction = drop_fraction
        self._generator = torch.Generator().manual_seed(seed)
        empty = torch.empty(0, dtype=torch.long)
        self._explored = {key: Explored(empty) for key in self.layers}
        self._prepare()

    @property
    def explored(self) -> float:
        r"""Return the fraction of all positions that were ever active.

        This is the *in-time over-parameterization rate* of the `"Do We
        Actually Need Dense Over-Parameterization? In-Time
        Over-Parameterization in Sparse Training"
        <https://arxiv.org/abs/2102.02887>`_ paper. Takes linear time in the
        number of these positions.
        """
        sizes = [rows * cols for rows, cols in self._sizes()]
        return sum(self._num_explored().values()) / max(sum(sizes), 1)

    @property
    def explored_by_layer(self) -> Dict[str, float]:
        """Return the fraction :attr:`explored` of each layer, by its name."""
        return {
            key: num / max(rows * cols, 1)
            for (key, num), (rows, cols) in zip(
                self._num_explored().items(), self._sizes()
            )
        }

    def state_dict(self) -> Dict[str, Any]:
        r"""Return the state of the scheduler, without its arguments.

        See :meth:`WeightScheduler.state_dict`.
        """
        return {
            **super().state_dict(),
            'generator': self._generator.get_state(),
            'explored': [x.index() for x in self._explored.values()],
        }

    def _state_checks(self) -> Dict[str, Check]:
        return {
            **super()._state_checks(),
            'generator': is_generator,
            'explored': self._are_positions,
        }

    def _are_positions(self, value: Any) -> bool:
        sizes = self._sizes()
        if not isinstance(value, list) or len(value) != len(sizes):
            return False
        return all(
            is_index(x, rows * cols) and bool((x.diff() > 0).all())
            for x, (rows, cols) in zip(value, sizes)
        )

    def _load_state(self, state: Dict[str, Any]) -> None:
        super()._load_state(state)
        self._generator.set_state(state['generator'].cpu())
        explored = [Explored(x) for x in state['explored']]
        self._explored = dict(zip(self.layers, explored))

    @abstractmethod
    def _grow(
        self, name: str, index: Tensor, num_weights: int
    ) -> Optional[Tensor]:
        r"""Select the positions to grow in the flattened weight of a layer.

        Args:
            name (str): The name of the layer.
            index (torch.Tensor): The ascending active positions (int64).
            num_weights (int): Number of positions to grow.

        Returns:
            Ascending inactive positions of shape
            :math:`(\textrm{num\_weights})` (int64), or :obj:`None` to skip
            the update of the layer.
        """

    @abstractmethod
    def _score_blocks(self, name: str) -> Optional[Tensor]:
        """Return the score of each block of a layer, negative where none may
        grow, or :obj:`None` to skip the update of the layer.
        """

    def _num_positions(self, name: str) -> int:
        """Return the number of positions at which a layer may have weights."""
        layer = self.layers[name]
        return layer.out_channels * layer.in_channels

    def _update(self, step: int, layers: Dict[str, SparseLinear]) -> None:
        # Eq. (1):
        angle = math.pi * step / (self.stop * self.num_steps)
        fraction = self.drop_fraction / 2 * (1 + math.cos(angle))
        for key, layer in layers.items():
            if layer.block_size > 1:
                self._update_blocks(key, layer, fraction)
                continue
            index = layer.index
            num_dropped = round(fraction * index.numel())
            num_inactive = self._num_positions(key) - index.numel()
            num_dropped = min(num_dropped, num_inactive)
            if num_dropped == 0:
                continue
            grown = self._grow(key, index, num_dropped)
            if grown is None:
                continue
            magnitude = layer.values.detach().abs()
            kept = top_positions(magnitude, index.numel() - num_dropped)
            new = move_weights(layer, self.optimizer, index, kept, grown)
            self._explored[key].update(index, grown, new)

    def _update_blocks(
        self, name: str, layer: SparseLinear, fraction: float
    ) -> None:
        score = self._score_blocks(name)
        if score is not None:
            index = layer.index
            grown, new = move_blocks(layer, self.optimizer, score, fraction)
            self._explored[name].update(index, grown, new)

    def _num_explored(self) -> Dict[str, int]:
        out = {}
        for key, layer in self.layers.items():
            index = layer.index
            explored = self._explored[key].index().to(index.device)
            out[key] = merge_positions(explored, index)[0].numel()
        return out
