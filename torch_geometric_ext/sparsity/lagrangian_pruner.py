import math
from abc import ABC, abstractmethod
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_geometric_ext.nn.linear_layers import Ignored
from torch_geometric_ext.ops.check_state_dict import (
    Check,
    check_state_dict,
    is_finite,
    is_integer,
    is_records,
    is_scalar,
)
from torch_geometric_ext.sparsity.magnitude_pruner import MagnitudePruner
from torch_geometric_ext.sparsity.optimizer_state import (
    check_optimizer,
    check_trained,
)
from torch_geometric_ext.sparsity.weight_scheduler import is_distributed

Tensors = Dict[str, Tensor]


class LagrangianPruner(MagnitudePruner, ABC):
    r"""Base class of pruners that train a model towards sparse weights by an
    augmented Lagrangian.

    Each weight :math:`\mathbf{W}` has a sparse copy :math:`\mathbf{Z}` and
    multipliers :math:`\Lambda`. Training minimizes

    .. math::
        L = f(\mathbf{W}) + \langle \Lambda, \mathbf{W} - \mathbf{Z} \rangle
        + \frac{\rho}{2} {\| \mathbf{W} - \mathbf{Z} \|}^2

    with the loss :math:`f` of the task. A sub-class implements
    :meth:`_update_targets`, which changes :math:`\mathbf{Z}` and
    :math:`\Lambda` every :obj:`update_every` steps.

    Args:
        model (torch.nn.Module): The dense model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        sparsity (float or Mapping[str, float], optional): See
            :class:`~torch_geometric_ext.sparsity.MagnitudePruner`, as for
            all arguments below :obj:`update_every`. (default: :obj:`0.9`)
        distribution (str, optional): (default: :obj:`"erk"`)
        rho (float, optional): The penalty :math:`\rho`. (default: :obj:`1e-2`)
        update_every (int, optional): Number of steps from one update to the
            next. (default: :obj:`20`)
        **kwargs (optional): :obj:`granularity`, :obj:`block_size`,
            :obj:`min_fan_in` and :obj:`ignored`.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        sparsity: Union[float, Mapping[str, float]] = 0.9,
        distribution: str = 'erk',
        *,
        rho: float = 1e-2,
        update_every: int = 20,
        granularity: str = 'element',
        block_size: int = 16,
        min_fan_in: int = 16,
        ignored: Sequence[Ignored] = (),
    ) -> None:
        owner = self.__class__.__name__
        optimizer = check_optimizer(optimizer, owner)
        for key, value in [('rho', rho), ('update_every', update_every)]:
            if not 0 < value < math.inf:
                raise ValueError(
                    f"'{key}' of '{owner}' needs to be positive and finite "
                    f'(got {value})'
                )
        if update_every % 1 != 0:
            raise ValueError(
                f"'update_every' of '{owner}' needs to be an integer (got "
                f'{update_every})'
            )
        super().__init__(
            model,
            optimizer,
            sparsity,
            distribution,
            granularity=granularity,
            block_size=block_size,
            min_fan_in=min_fan_in,
            ignored=ignored,
        )
        self.rho = rho
        self.update_every = update_every
        self._trained = {
            k: x for k, x in self.layers.items() if x.weight.requires_grad
        }
        self._check_trained()
        weights = self._trained_weights()
        self.multipliers = {k: torch.zeros_like(x) for k, x in weights.items()}
        self.targets = self._project(weights)
        self._shift_targets()
        self._loss_sum: Optional[Tensor] = None  # Since the last update.
        self._num_losses = 0
        self._records: List[Dict[str, Any]] = []

    def regularize(self, loss: Tensor) -> Tensor:
        r"""Return the augmented Lagrangian :math:`L`, to minimize it instead
        of the loss.

        Pass the loss before a gradient scaler multiplies it. If gradients are
        accumulated, divide the result by the number of mini-batches, instead
        of the loss. Within :class:`torch.no_grad`, the loss has no influence
        on updates.

        Args:
            loss (torch.Tensor): The loss of the task, a scalar.

        Raises:
            ValueError: If :obj:`loss` is not a scalar.
            RuntimeError: If :meth:`finalize` was called before.
        """
        self._check_active('regularize')
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(
                f"'loss' of '{self.__class__.__name__}' needs to be a scalar "
                f'tensor (got {list(getattr(loss, "shape", [])) or loss})'
            )
        if torch.is_grad_enabled():  # Losses of validation do not count.
            value = loss.detach().reshape(())
            self._add_loss(value.float() if value.itemsize < 4 else value)
        penalty = sum(
            total((x.weight - self._shifted[name]).square()).to(loss.device)
            for name, x in self._trained.items()
        )
        return loss + self.rho / 2 * penalty - self._offset.to(loss.device)

    def step(self) -> None:
        r"""Count a step of the optimizer, and update :math:`\mathbf{Z}` and
        :math:`\Lambda` every :obj:`update_every` steps.

        Call it after each :obj:`optimizer.step()`, on all ranks.

        Raises:
            RuntimeError: If :meth:`regularize` was not called since the last
                update, or :meth:`finalize` was called before.
            ValueError: If the optimizer no longer trains a layer. The pruner
                is not changed in these cases.
        """
        self._check_active('step')
        if (self.last_step + 1) % self.update_every > 0:
            return super().step()
        if self._loss_sum is None:
            raise RuntimeError(
                f"'step()' of '{self.__class__.__name__}' needs the loss. "
                f"Call 'loss = pruner.regularize(loss)' in each step"
            )
        self._check_trained()
        super().step()
        loss = mean_over_ranks(self._loss_sum / self._num_losses)
        record = self._update_targets(self._trained_weights(), loss)
        self._shift_targets()
        self._records.append({'step': self.last_step, 'loss': loss, **record})
        self._loss_sum, self._num_losses = None, 0

    def history(self) -> Dict[str, List[Any]]:
        r"""Return statistics of the updates, one list per statistic.

        * :obj:`step`: the step of the update
        * :obj:`loss`: the mean loss of the task since the previous update
        * :obj:`residual`: :math:`\| \mathbf{W} - \mathbf{Z} \|` over all
          layers
        * :obj:`multiplier`: :math:`\| \Lambda \|` over all layers
        * :obj:`step_size`: the step size of the multipliers
        """
        return {
            key: [_to_number(record[key]) for record in self._records]
            for key in (self._records[0] if self._records else ())
        }

    def plot(self) -> Any:
        r"""Plot :meth:`history` and return the figure. Needs
        :obj:`matplotlib`.
        """
        import matplotlib.pyplot as plt

        history = self.history()
        step = history.pop('step', [])
        keys = history or dict.fromkeys(['loss', 'residual', 'multiplier'])
        figure, axes = plt.subplots(1, len(keys), figsize=(3 * len(keys), 3))
        for ax, key in zip(axes, keys):
            ax.plot(step, [float(x) for x in history.get(key, [])], '.-')
            ax.set(xlabel='Step', ylabel=key.replace('_', ' ').capitalize())
        figure.tight_layout()
        return figure

    def state_dict(self) -> Dict[str, Any]:
        r"""Return the state of the pruner.

        Save it with the states of the model and the optimizer. Training
        resumes bit for bit from these.
        """
        return {
            **self._settings(),
            'last_step': self.last_step,
            'loss_sum': self._loss_sum,
            'num_losses': self._num_losses,
            'records': [dict(record) for record in self._records],
            'targets': _clone(self.targets),
            'multipliers': _clone(self.multipliers),
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Load the state of a pruner.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete or damaged, or is that of
                another class, of layers of other sizes or of another
                :obj:`rho`, :obj:`update_every`, :obj:`granularity`,
                :obj:`block_size` or number of weights. The pruner is not
                changed in these cases.
            TypeError: If the state is not a dictionary.
            RuntimeError: If :meth:`finalize` was called before.
        """
        self._check_active('load_state_dict')
        settings = self._settings()
        optional = [x for x in settings if x not in ('policy', 'sizes')]
        checks = self._state_checks(state_dict)
        check_state_dict(self, state_dict, settings, checks, optional)
        self._load_state(state_dict)
        self._shift_targets()

    def _settings(self) -> Dict[str, Any]:
        """Return the arguments without which a state has no meaning."""
        return {
            'policy': self.__class__.__name__,
            'sizes': self._sizes,
            'rho': self.rho,
            'update_every': self.update_every,
            **self._projection.settings(),
        }

    def _state_checks(self, state: Dict[str, Any]) -> Dict[str, Check]:
        """Return checks of the values of a state, by their keys."""
        return {
            'last_step': is_integer,
            'loss_sum': lambda x: x is None or is_scalar(x),
            'num_losses': lambda x: (
                is_integer(x) and (x == 0) == (state['loss_sum'] is None)
            ),
            'records': _are_records,
            'targets': self._are_like_weights,
            'multipliers': self._are_like_weights,
        }

    def _load_state(self, state: Dict[str, Any]) -> None:
        """Load a checked state."""
        self.last_step = state['last_step']
        self._loss_sum = state['loss_sum']
        self._num_losses = state['num_losses']
        self._records = [dict(record) for record in state['records']]
        self.targets = self._like_weights(state['targets'])
        self.multipliers = self._like_weights(state['multipliers'])

    @abstractmethod
    def _update_targets(
        self, weights: Tensors, loss: Tensor
    ) -> Dict[str, Any]:
        r"""Update :obj:`targets` and :obj:`multipliers`.

        Args:
            weights (Dict[str, torch.Tensor]): The current weights.
            loss (torch.Tensor): The mean loss since the last update.

        Returns:
            The record for :meth:`history`.
        """

    def _project(self, weights: Tensors) -> Tensors:
        """Return the sparse weights that are closest to given ones."""
        # Frozen layers have a part in a global ranking only:
        masks = self._projection.masks({**self._weights(), **weights})
        return {k: x.masked_fill(~masks[k], 0.0) for k, x in weights.items()}

    def _nearest_targets(self, weights: Tensors) -> Tensors:
        """Return the sparse weights that minimize the Lagrangian."""
        sums = {
            key: torch.add(x, self.multipliers[key], alpha=1 / self.rho)
            for key, x in weights.items()
        }
        return self._project(sums)

    def _shift_targets(self) -> None:
        # The Lagrangian is rho / 2 |W - (Z - L / rho)|^2 - |L|^2 / (2 rho):
        self._shifted = {
            key: torch.sub(target, self.multipliers[key], alpha=1 / self.rho)
            for key, target in self.targets.items()
        }
        self._offset = norm(self.multipliers).square() / (2 * self.rho)

    def _add_loss(self, loss: Tensor) -> None:
        previous = self._loss_sum
        self._loss_sum = loss.clone() if previous is None else previous + loss
        self._num_losses += 1

    def _release(self) -> None:
        super()._release()
        self._trained, self._shifted = {}, {}
        self.targets, self.multipliers = {}, {}

    def _trained_weights(self) -> Tensors:
        return {k: x.weight.detach() for k, x in self._trained.items()}

    def _like_weights(self, tensors: Tensors) -> Tensors:
        weights = self._trained_weights()
        return {k: tensors[k].to(x, copy=True) for k, x in weights.items()}

    def _are_like_weights(self, value: Any) -> bool:
        weights = self._trained_weights()
        if not isinstance(value, dict) or value.keys() != weights.keys():
            return False
        return all(is_finite(value[k], x.shape) for k, x in weights.items())

    def _check_trained(self) -> None:
        assert self.optimizer is not None
        if len(self._trained) == 0:
            raise ValueError(
                f"'model' of '{self.__class__.__name__}' needs a layer whose "
                f'weight requires a gradient (got the frozen layers '
                f'{list(self.layers)})'
            )
        weights = {name: x.weight for name, x in self._trained.items()}
        check_trained(self.optimizer, weights, self.__class__.__name__)

    def __repr__(self) -> str:
        return (
            f'{super().__repr__()[:-1]}, rho={self.rho}, '
            f'update_every={self.update_every})'
        )


def mean_over_ranks(loss: Tensor) -> Tensor:
    """Return the mean of a loss over all ranks."""
    if not is_distributed():
        return loss
    loss = loss.clone()
    dist.all_reduce(loss)
    return loss / dist.get_world_size()


def total(x: Tensor) -> Tensor:
    """Return the sum of all elements, in single precision or better."""
    return x.sum(dtype=_wide(x))


def norm(tensors: Tensors) -> Tensor:
    """Return the Euclidean norm of all tensors together."""
    parts = [x.norm(dtype=_wide(x)) for x in tensors.values()]
    return torch.stack([x.to(parts[0]) for x in parts]).norm()


def difference(a: Tensors, b: Tensors) -> Tensors:
    """Subtract the tensors of each layer."""
    return {key: x - b[key] for key, x in a.items()}


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float)


def _clone(tensors: Tensors) -> Tensors:
    return {key: x.clone() for key, x in tensors.items()}


def _to_number(x: Any) -> Any:
    return x.item() if isinstance(x, Tensor) else x


def _are_records(value: Any) -> bool:
    return is_records(value, ('step', 'loss')) and all(
        record.keys() == value[0].keys() for record in value
    )
