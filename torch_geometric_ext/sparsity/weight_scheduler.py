from abc import ABC, abstractmethod
from typing import Any, Dict, List

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.nn.dense.sparse_parameters import is_lazy
from torch_geometric_ext.sparsity.optimizer_state import (
    check_optimizer,
    check_state,
)


class WeightScheduler(ABC):
    r"""Base class of schedulers that decide, while a model is trained, which
    weights of its :class:`~torch_geometric_ext.nn.SparseLinear` layers exist.

    .. code-block:: python

        loss.backward()
        optimizer.step()
        scheduler.step()

    It holds what all policies share: when to act, the layers, the optimizer
    and resuming. A policy implements :meth:`_update`.

    * **Nothing is patched.** Neither model nor optimizer know the scheduler.
    * **All layers take part** that are trained, shared ones once. A layer
      whose :obj:`values` do not require a gradient is left as it is.
    * **The optimizer follows.** A weight that stays keeps its share of the
      optimizer's state (momenta and so forth) and its gradient, which are
      zero for a new one. Other tensors that stand for single weights do not
      follow: copy the model anew after an update where a moving average
      (:class:`torch.optim.swa_utils.AveragedModel`) is kept.
    * **Several schedulers** may act on one model, one after the other.

    Args:
        model (torch.nn.Module): The model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        num_steps (int): Number of optimizer steps of the whole training.
        update_every (int, optional): Number of steps from one update to the
            next. (default: :obj:`100`)
        stop (float, optional): Share of the training after which the weights
            stay where they are, in :math:`(0, 1]`. (default: :obj:`0.75`)

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
        stop: float = 0.75,
    ) -> None:
        name = self.__class__.__name__
        for key, value in [
            ('num_steps', num_steps),
            ('update_every', update_every),
        ]:
            if value < 1:
                raise ValueError(
                    f"'{key}' of '{name}' needs to be at least one "
                    f'(got {value})'
                )
        if not 0 < stop <= 1:
            raise ValueError(
                f"'stop' of '{name}' needs to be in (0, 1] (got {stop})"
            )
        check_optimizer(optimizer, name)
        self.num_steps = num_steps
        self.update_every = update_every
        self.stop = stop
        self.optimizer = optimizer
        self.layers: Dict[str, SparseLinear] = {
            key: module
            for key, module in model.named_modules()
            if isinstance(module, SparseLinear)
        }
        self._check_layers()
        if not self._trained_layers():
            raise ValueError(
                f"'model' of '{name}' needs to hold a 'SparseLinear' whose "
                f"'values' require a gradient (got {len(self.layers)} "
                f"'SparseLinear' without). 'SparseLinear.from_dense' makes "
                f'one of a dense layer'
            )
        self.last_step = 0  # Steps done so far.
        self._removed = False

    @property
    def pending(self) -> bool:
        """Whether the next :meth:`step` will change which weights exist."""
        return not self._removed and self._is_due(self.last_step + 1)

    def step(self) -> None:
        r"""Counts a step of the optimizer, and changes which weights exist if
        it is time to. To be called after each :obj:`optimizer.step()`.

        Raises:
            ValueError: If the optimizer no longer trains a layer.
            RuntimeError: If the scheduler was removed.
        """
        if self._removed:
            raise RuntimeError(
                f"'{self.__class__.__name__}' cannot step any more after "
                f"'remove()'"
            )
        if self.pending:
            layers = self._trained_layers()
            for layer in layers.values():
                check_state(self.optimizer, layer, self.__class__.__name__)
            self._update(self.last_step + 1, layers)
        self.last_step += 1
        self._prepare()

    def remove(self) -> None:
        r"""Ends the scheduler for good: the model is left as it is, with
        neither hooks nor tensors of the scheduler.
        """
        self._removed = True
        self._release()

    def state_dict(self) -> Dict[str, Any]:
        r"""Returns the state of the scheduler, to be saved after a
        :meth:`step` beside those of the model and the optimizer.

        A scheduler that loads it goes on bit for bit. The arguments of the
        scheduler are not part of it.
        """
        return {
            'policy': self.__class__.__name__,
            'sizes': self._sizes(),
            'last_step': self.last_step,
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Loads the state of a scheduler of layers of the same sizes.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete, or belongs to another
                class of schedulers or to layers of other sizes. The scheduler
                is unchanged then.
        """
        name, own = self.__class__.__name__, self.state_dict()
        for key in ['policy', 'sizes']:
            if state_dict.get(key) != own[key]:
                raise ValueError(
                    f"'state_dict' of '{name}' needs to be of the same "
                    f"'{key}' (expected {own[key]}, got "
                    f'{state_dict.get(key)})'
                )
        missing = [key for key in own if key not in state_dict]
        if missing:
            raise ValueError(
                f"'state_dict' of '{name}' needs to hold {list(own)} (got "
                f'none of {missing})'
            )
        self.last_step = state_dict['last_step']
        self._prepare()

    @abstractmethod
    def _update(self, step: int, layers: Dict[str, SparseLinear]) -> None:
        """Changes which weights of the layers exist."""

    def _is_due(self, step: int) -> bool:
        if step >= self.stop * self.num_steps:
            return False
        return step % self.update_every == 0

    def _prepare(self) -> None:
        """Called when it is known whether the next step is an update."""
        self._release()

    def _release(self) -> None:  # noqa: B027
        """Frees whatever :meth:`_prepare` holds."""

    def _sizes(self) -> List[List[int]]:
        return [[x.out_channels, x.in_channels] for x in self.layers.values()]

    def _check_layers(self) -> None:
        name = self.__class__.__name__
        seen: Dict[int, str] = {}
        for key, layer in self.layers.items():
            if is_lazy(layer):
                raise ValueError(
                    f"'model' of '{name}' needs to be initialized; run one "
                    f"forward pass first (got '{key}' with unknown "
                    f"'in_channels')"
                )
            other = seen.setdefault(id(layer.values), key)
            if other != key:
                raise ValueError(
                    f"'model' of '{name}' must not share 'values' between "
                    f"layers (got '{other}' and '{key}'); share the layer"
                )

    def _trained_layers(self) -> Dict[str, SparseLinear]:
        groups = self.optimizer.param_groups
        trained = {id(x) for group in groups for x in group['params']}
        layers = {
            key: layer
            for key, layer in self.layers.items()
            if layer.values.requires_grad
        }
        for key, layer in layers.items():
            if id(layer.values) not in trained:
                raise ValueError(
                    f"'optimizer' of '{self.__class__.__name__}' needs to "
                    f"train all layers (got none of the values of '{key}')"
                )
        return layers

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_layers={len(self.layers)}, '
            f'num_steps={self.num_steps}, update_every={self.update_every})'
        )


def is_distributed() -> bool:
    """Whether several ranks train together."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    return dist.get_world_size() > 1
