from abc import ABC, abstractmethod
from typing import Any, Dict, List

import torch
import torch.distributed as dist
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops.check_state_dict import (
    Check,
    check_state_dict,
    is_integer,
)
from torch_geometric_ext.sparsity.optimizer_state import (
    check_optimizer,
    check_state,
    check_trained,
)


class WeightScheduler(ABC):
    r"""Base class of schedulers that change the active weights of
    :class:`~torch_geometric_ext.nn.SparseLinear` layers during training.

    .. code-block:: python

        loss.backward()
        optimizer.step()
        scheduler.step()

    The base class manages update steps, layers, optimizer and checkpoints. A
    sub-class implements :meth:`_update`.

    * **Layers.** A scheduler acts on all sparse layers of a model whose
      :obj:`values` require a gradient. It acts once on a shared layer.
    * **Optimizer.** A weight that remains active keeps its gradient and its
      state in the optimizer, such as momentum. Both are zero for a new
      weight. Weight averages, as in
      :class:`torch.optim.swa_utils.AveragedModel`, are not updated: copy the
      model anew after an update.
    * **No patches.** The scheduler does not modify methods of the model or
      the optimizer.
    * **Sequences.** Several schedulers can act on a model one after another.

    Args:
        model (torch.nn.Module): The model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it,
            created after :func:`~torch_geometric_ext.nn.sparsify`. Wrappers
            that hold it as :obj:`optimizer`, as in PyTorch Lightning, are
            supported.
        num_steps (int): Number of optimizer steps of the whole training.
        update_every (int, optional): Number of steps from one update to the
            next. (default: :obj:`100`)
        stop (float, optional): Fraction of the training after which there are
            no more updates, in :math:`(0, 1]`. (default: :obj:`0.75`)

    Raises:
        ValueError: If an argument is out of its range, the model has no
            trainable sparse layer, or the optimizer does not train one.
        TypeError: If :obj:`optimizer` is not an optimizer.
        NotImplementedError: If the state of the optimizer is not elementwise.
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
        optimizer = check_optimizer(optimizer, name)
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
                f"'model' of '{name}' needs to have a 'SparseLinear' whose "
                f"'values' require a gradient (got {len(self.layers)} "
                f"'SparseLinear' without). Call 'sparsify(model, ...)' first, "
                f'and create the optimizer afterwards'
            )
        self.last_step = 0  # Number of completed steps.
        self._removed = False

    @property
    def pending(self) -> bool:
        """Return :obj:`True` if the next :meth:`step` updates the layers."""
        return not self._removed and self._is_due(self.last_step + 1)

    def step(self) -> None:
        r"""Count a step of the optimizer, and update the layers if the step is
        :attr:`pending`.

        Call it after each :obj:`optimizer.step()`.

        Raises:
            ValueError: If the optimizer no longer trains a layer.
            NotImplementedError: If the state of the optimizer is not
                elementwise.
            RuntimeError: If :meth:`remove` was called before.
        """
        if self._removed:
            raise RuntimeError(
                f"'step()' of '{self.__class__.__name__}' must not be called "
                f"after 'remove()'"
            )
        if self.pending:
            layers = self._trained_layers()
            for layer in layers.values():
                check_state(self.optimizer, layer, self.__class__.__name__)
            self._update(self.last_step + 1, layers)
        self.last_step += 1
        self._prepare()

    def remove(self) -> None:
        r"""Remove the hooks of the scheduler and free its tensors.

        The model keeps its active weights. :meth:`step` fails afterwards.
        """
        self._removed = True
        self._release()

    def state_dict(self) -> Dict[str, Any]:
        r"""Return the state of the scheduler, without its arguments.

        Save it after a :meth:`step`, with the states of the model and the
        optimizer. Training resumes bit for bit from these.
        """
        return {
            'policy': self.__class__.__name__,
            'sizes': self._sizes(),
            'last_step': self.last_step,
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Load the state of a scheduler.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete or damaged, or is that of
                another class or of layers of other sizes. The scheduler is
                not changed in these cases.
            TypeError: If the state is not a dictionary.
        """
        same = {'policy': self.__class__.__name__, 'sizes': self._sizes()}
        check_state_dict(self, state_dict, same, self._state_checks())
        self._load_state(state_dict)
        self._prepare()

    def _state_checks(self) -> Dict[str, Check]:
        """Return checks of the values of a state, by their keys."""
        return {'last_step': is_integer}

    def _load_state(self, state: Dict[str, Any]) -> None:
        """Load a checked state."""
        self.last_step = state['last_step']

    @abstractmethod
    def _update(self, step: int, layers: Dict[str, SparseLinear]) -> None:
        """Change the active weights of the trained layers at a due step."""

    def _is_due(self, step: int) -> bool:
        if step >= self.stop * self.num_steps:
            return False
        return step % self.update_every == 0

    def _prepare(self) -> None:
        """Prepare for the next step, which may be :attr:`pending`."""
        self._release()

    def _release(self) -> None:  # noqa: B027
        """Free the hooks and tensors of :meth:`_prepare`."""

    def _sizes(self) -> List[List[int]]:
        return [[x.out_channels, x.in_channels] for x in self.layers.values()]

    def _check_layers(self) -> None:
        name = self.__class__.__name__
        seen: Dict[int, str] = {}
        for key, layer in self.layers.items():
            if is_lazy(layer.values):
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
        layers = {
            key: layer
            for key, layer in self.layers.items()
            if layer.values.requires_grad
        }
        values = {key: layer.values for key, layer in layers.items()}
        check_trained(self.optimizer, values, self.__class__.__name__)
        return layers

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_layers={len(self.layers)}, '
            f'num_steps={self.num_steps}, update_every={self.update_every})'
        )


def is_distributed() -> bool:
    """Return :obj:`True` if training is distributed over several ranks."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    return dist.get_world_size() > 1
