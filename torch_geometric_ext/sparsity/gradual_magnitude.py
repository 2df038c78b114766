from typing import Any, Dict, List, Optional

import torch
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops.check_state_dict import Check, is_float
from torch_geometric_ext.sparsity.blocks import ActiveBlocks, largest_blocks
from torch_geometric_ext.sparsity.optimizer_state import move_weights
from torch_geometric_ext.sparsity.weight_scheduler import (
    WeightScheduler,
    is_distributed,
)


class GradualMagnitude(WeightScheduler):
    r"""Gradual magnitude pruning from the `"To Prune, or Not to Prune:
    Exploring the Efficacy of Pruning for Model Compression"
    <https://arxiv.org/abs/1710.01878>`_ paper.

    .. code-block:: python

        scheduler = GradualMagnitude(
            model, optimizer, num_steps=10_000, sparsity=0.9
        )
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            scheduler.step()

    Args:
        model (torch.nn.Module): The model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        num_steps (int): Number of optimizer steps of the whole training.
        sparsity (float): The final sparsity :math:`s_f`, in :math:`[0, 1)`.
        update_every (int, optional): Number of steps :math:`\Delta t` from
            one update to the next. (default: :obj:`100`)
        start (float, optional): Fraction of the training before the first
            update, in :math:`[0, 1)`. :math:`t_0` is
            :obj:`start * num_steps`. (default: :obj:`0.0`)
        stop (float, optional): Fraction of the training after which there are
            no more updates, in :math:`(0, 1]`. :math:`t_1` is
            :obj:`stop * num_steps`. (default: :obj:`0.75`)
        global_ranking (bool, optional): If set to :obj:`True`, magnitudes are
            compared across layers, and :math:`s_t` is the sparsity of all
            layers together. (default: :obj:`False`)

    Raises:
        ValueError: If an argument is out of its range, the model has no
            trainable sparse layer, all of them exceed :obj:`sparsity`, or the
            optimizer does not train one.
        TypeError: If :obj:`optimizer` is not an optimizer.
        NotImplementedError: If the state of the optimizer is not elementwise,
            or training is distributed
            (:class:`~torch.nn.parallel.DistributedDataParallel` does not
            support parameters that change their size).

    Example:
        >>> from torch_geometric_ext.nn import SparseLinear
        >>> lin = SparseLinear(100, 100, sparsity=0.5)
        >>> optimizer = torch.optim.Adam(lin.parameters(), lr=0.01)
        >>> scheduler = GradualMagnitude(
        ...     lin, optimizer, num_steps=4, sparsity=0.9, update_every=1
        ... )
        >>> for _ in range(4):
        ...     lin(torch.ones(1, 100)).sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        ...     print(lin.values.numel())
        2185
        1148
        1000
        1000

    .. rubric:: Details

    Every :obj:`update_every` steps and at step :math:`t_1`, the weights of
    smallest magnitude are pruned until the sparsity of each layer is (Eq. (1))

    .. math::
        s_t = s_f + (s_i - s_f) {\left( 1 - \frac{t - t_0}{t_1 - t_0}
        \right)}^3,

    where :math:`s_i` is the sparsity of the layer before the first update.
    Among weights of equal magnitude, the last ones are pruned first. A layer
    whose sparsity exceeds :math:`s_t` is not changed. A layer with a
    :obj:`block_size` loses the blocks of the smallest root mean square.

    An update re-allocates :obj:`values` (the parameter remains the same
    object) and the state of the optimizer, so that pruning reduces the memory
    and the time of later steps.

    .. note::
        To resume, load the states of the model, the optimizer and the
        scheduler, in any order.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        *,
        num_steps: int,
        sparsity: float,
        update_every: int = 100,
        start: float = 0.0,
        stop: float = 0.75,
        global_ranking: bool = False,
    ) -> None:
        name = self.__class__.__name__
        if not 0 <= sparsity < 1:
            raise ValueError(
                f"'sparsity' of '{name}' needs to be in [0, 1) "
                f'(got {sparsity})'
            )
        if not 0 <= start < stop:
            raise ValueError(
                f"'start' of '{name}' needs to be in [0, {stop}), as set by "
                f"'stop' (got {start})"
            )
        self._check_distributed()
        super().__init__(
            model,
            optimizer,
            num_steps=num_steps,
            update_every=update_every,
            stop=stop,
        )
        layers = self._trained_layers()
        if all(
            layer.values.numel() < _num_weights(layer, sparsity)
            for layer in layers.values()
        ):
            raise ValueError(
                f"'sparsity' of '{name}' needs to be at least the sparsity of "
                f'one layer (got {sparsity}, and layers of sparsity '
                f'{[round(x.sparsity, 4) for x in layers.values()]})'
            )
        self.sparsity = sparsity
        self.start = start
        self.global_ranking = global_ranking
        self._first = round(start * num_steps)
        self._last = max(round(stop * num_steps), self._first + 1)
        self._initial: Optional[Dict[str, float]] = None

    def state_dict(self) -> Dict[str, Any]:
        r"""Return the state of the scheduler, without its arguments.

        See :meth:`WeightScheduler.state_dict`.
        """
        initial = self._initial
        values = None if initial is None else list(initial.values())
        return {**super().state_dict(), 'initial': values}

    def _state_checks(self) -> Dict[str, Check]:
        return {
            **super()._state_checks(),
            'initial': lambda x: x is None or self._are_sparsities(x),
        }

    def _are_sparsities(self, value: Any) -> bool:
        if not isinstance(value, list) or len(value) != len(self.layers):
            return False
        return all(is_float(x, 0, 1) for x in value)

    def _load_state(self, state: Dict[str, Any]) -> None:
        super()._load_state(state)
        values = state['initial']
        self._initial = None
        if values is not None:
            self._initial = dict(zip(self.layers, values))

    def _is_due(self, step: int) -> bool:
        if not self._first <= step < self._last:
            return step == self._last
        return step % self.update_every == 0

    def _update(self, step: int, layers: Dict[str, SparseLinear]) -> None:
        self._check_distributed()
        if self._initial is None:
            self._initial = {k: x.sparsity for k, x in self.layers.items()}
        # Eq. (1):
        progress = (step - self._first) / (self._last - self._first)
        rest = (1 - progress) ** 3
        sizes = [
            _num_weights(
                layer,
                self.sparsity + (self._initial[key] - self.sparsity) * rest,
            )
            for key, layer in layers.items()
        ]
        if self.global_ranking:
            self._prune(list(layers.values()), sum(sizes))
        else:
            for layer, size in zip(layers.values(), sizes):
                self._prune([layer], size)

    def _prune(self, layers: List[SparseLinear], size: int) -> None:
        """Prune all but the :obj:`size` largest weights of given layers, or
        all but their largest blocks.
        """
        if sum(x.values.numel() for x in layers) <= size:
            return
        kept = largest_blocks([ActiveBlocks.of(x) for x in layers], size)
        for layer, index in zip(layers, kept):
            nothing = index.new_empty(0)
            move_weights(layer, self.optimizer, layer.index, index, nothing)

    def _check_distributed(self) -> None:
        if is_distributed():
            raise NotImplementedError(
                f"'{self.__class__.__name__}' changes the size of parameters, "
                f'which distributed training does not support'
            )


def _num_weights(layer: SparseLinear, sparsity: float) -> int:
    return round((1 - sparsity) * layer.out_channels * layer.in_channels)
