from typing import Any, Dict, Optional

import torch
from torch import Tensor

from torch_geometric_ext.ops.check_state_dict import (
    Check,
    is_finite,
    is_scalar,
)
from torch_geometric_ext.sparsity.lagrangian_pruner import (
    LagrangianPruner,
    Tensors,
    difference,
    mean_over_ranks,
    norm,
    total,
)

EPS = 1e-12  # A smaller residual, relative to the weights, is zero.


class SLR(LagrangianPruner):
    r"""Prune a trained model by surrogate Lagrangian relaxation, from the
    `"Enabling Retrain-free Deep Neural Network Pruning using Surrogate
    Lagrangian Relaxation" <https://arxiv.org/abs/2012.10079>`_ paper, as the
    `"Towards Sparsification of Graph Neural Networks"
    <https://arxiv.org/abs/2209.04766>`_ paper does.

    .. code-block:: python

        train(model)  # Dense.
        pruner = SLR(model, optimizer, sparsity=0.95)
        for x, y in loader:
            optimizer.zero_grad()
            loss = pruner.regularize(criterion(model(x), y))
            loss.backward()
            optimizer.step()
            pruner.step()
        model = pruner.finalize()
        optimizer = Adam(model.parameters())  # Parameters were replaced.
        train(model)  # Fine-tune the remaining weights.

    Reduce the learning rate to about a quarter while :meth:`regularize` is
    used. The pruner takes four times the memory of the weights. An update
    takes :math:`O(N)` time for :math:`N` weights.

    Args:
        model (torch.nn.Module): The trained dense model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        sparsity (float or Mapping[str, float], optional): The sparsity of the
            model, or of each layer by its name or pattern. See
            :class:`~torch_geometric_ext.sparsity.MagnitudePruner`.
            (default: :obj:`0.9`)
        distribution (str, optional): The distribution of remaining weights
            over layers. (default: :obj:`"erk"`)
        rho (float, optional): The penalty :math:`\rho`.
            (default: :obj:`1e-2`)
        update_every (int, optional): Number of steps from one update to the
            next. With Adam, updates in every step diverge.
            (default: :obj:`20`)
        step_size (float, optional): The initial step size :math:`s_0`, at
            most :math:`\rho`. (default: :obj:`rho`)
        m (float, optional): The parameter :math:`M > 1` of the decay of step
            sizes. (default: :obj:`300.0`)
        r (float, optional): The parameter :math:`r > 0` of the decay of step
            sizes. (default: :obj:`0.1`)
        **kwargs (optional): :obj:`granularity`, :obj:`block_size`,
            :obj:`min_fan_in` and :obj:`ignored` of
            :class:`~torch_geometric_ext.sparsity.MagnitudePruner`.

    Raises:
        ValueError: If an argument is out of its range, the model has a
            :class:`~torch_geometric_ext.nn.SparseLinear` or no layer that can
            be pruned, or the optimizer does not train a layer.
        TypeError: If :obj:`optimizer` is not an optimizer.

    Example:
        >>> import torch
        >>> lin = torch.nn.Linear(100, 100)
        >>> optimizer = torch.optim.SGD(lin.parameters(), lr=1e-3)
        >>> pruner = SLR(lin, optimizer, sparsity=0.9, update_every=1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = lin(torch.ones(1, 100)).square().sum()
        ...     pruner.regularize(loss).backward()
        ...     optimizer.step()
        ...     pruner.step()
        >>> pruner.history()['step']
        [1, 2, 3]
        >>> pruner.finalize()
        SparseLinear(100, 100, bias=True, sparsity=0.9...)

    .. rubric:: Details

    The loss :math:`f` is minimized over weights :math:`\mathbf{W}` that equal
    sparse weights :math:`\mathbf{Z}`. Training minimizes the augmented
    Lagrangian

    .. math::
        L(\mathbf{W}, \mathbf{Z}, \Lambda) = f(\mathbf{W}) + \langle \Lambda,
        \mathbf{W} - \mathbf{Z} \rangle + \frac{\rho}{2}
        {\| \mathbf{W} - \mathbf{Z} \|}^2.

    The :math:`k`-th update takes place every :obj:`update_every` steps:

    1. If :math:`L` fell since the last update (the surrogate optimality
       condition),
       :math:`\Lambda \leftarrow \Lambda + s (\mathbf{W} - \mathbf{Z})`.
    2. :math:`\mathbf{Z} \leftarrow \Pi(\mathbf{W} + \Lambda / \rho)`, where
       :math:`\Pi` keeps the weights of largest magnitude.
    3. If :math:`L` fell in the second step,
       :math:`\Lambda \leftarrow \Lambda + s (\mathbf{W} - \mathbf{Z})`.

    Before a step of the multipliers, the step size :math:`s` is multiplied by
    :math:`\alpha_k` and by the ratio of the previous to the current norm of
    :math:`\mathbf{W} - \mathbf{Z}`, with

    .. math::
        \alpha_k = 1 - \frac{1}{M k^p}, \qquad p = 1 - \frac{1}{k^r}.

    .. note::
        Deviations from the paper: :math:`f(\mathbf{W})` in the first condition
        is the mean loss of the mini-batches since the last update (over all
        ranks), and at the first update it is compared to the first loss.
        Norms and conditions are over all layers together.
    """

    def __init__(
        self,
        *args: Any,
        step_size: Optional[float] = None,
        m: float = 300.0,
        r: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        step_size = self.rho if step_size is None else step_size
        owner = self.__class__.__name__
        if not 0 < step_size <= self.rho:
            raise ValueError(
                f"'step_size' of '{owner}' needs to be in (0, {self.rho}], as "
                f"set by 'rho' (got {step_size})"
            )
        for key, value, minimum in [('m', m, 1), ('r', r, 0)]:
            if not value > minimum:
                raise ValueError(
                    f"'{key}' of '{owner}' needs to be greater than "
                    f'{minimum} (got {value})'
                )
        self.m = m
        self.r = r
        # Copies, as the optimizer changes weights in-place:
        self._previous = {
            k: x.clone() for k, x in self._trained_weights().items()
        }
        self._previous_loss: Optional[Tensor] = None
        self._step_size = self._norm_of_previous().new_tensor(step_size)

    def state_dict(self) -> Dict[str, Any]:
        r"""Return the state of the pruner.

        Save it with the states of the model and the optimizer. Training
        resumes bit for bit from these.
        """
        return {
            **super().state_dict(),
            'previous': {k: x.clone() for k, x in self._previous.items()},
            'previous_loss': self._previous_loss,
            'step_size': self._step_size,
        }

    def _state_checks(self, state: Dict[str, Any]) -> Dict[str, Check]:
        return {
            **super()._state_checks(state),
            'previous': self._are_like_weights,
            'previous_loss': lambda x: x is None or is_scalar(x),
            'step_size': lambda x: is_finite(x, ()) and bool(x > 0),
        }

    def _load_state(self, state: Dict[str, Any]) -> None:
        super()._load_state(state)
        self._previous = self._like_weights(state['previous'])
        self._previous_loss = state['previous_loss']
        self._step_size = state['step_size'].to(self._step_size)

    def history(self) -> Dict[str, Any]:
        r"""Return statistics of the updates, one list per statistic.

        * :obj:`step`: the step of the update
        * :obj:`loss`: the mean loss of the task since the previous update
        * :obj:`residual`: :math:`\| \mathbf{W} - \mathbf{Z} \|` over all
          layers
        * :obj:`multiplier`: :math:`\| \Lambda \|` over all layers
        * :obj:`step_size`: the step size :math:`s` of the multipliers
        * :obj:`fell_by_weights`, :obj:`fell_by_targets`: whether the
          Lagrangian fell by the update of :math:`\mathbf{W}` and of
          :math:`\mathbf{Z}`
        """
        return super().history()

    def _add_loss(self, loss: Tensor) -> None:
        super()._add_loss(loss)
        if self._previous_loss is None:
            self._previous_loss = loss.clone()

    def _update_targets(
        self, weights: Tensors, loss: Tensor
    ) -> Dict[str, Any]:
        assert self._previous_loss is not None
        k = self.last_step // self.update_every
        if k == 1:  # The first loss of this rank.
            self._previous_loss = mean_over_ranks(
                self._previous_loss.to(loss.device)
            )
        alpha = 1 - 1 / (self.m * k ** (1 - 1 / k**self.r))
        old = difference(self._previous, self.targets)
        new = difference(weights, self.targets)
        before = self._previous_loss + self._penalty(old).to(loss)
        fell_by_weights = loss + self._penalty(new).to(loss) < before
        self._step_multipliers(fell_by_weights, alpha, old, new)

        self.targets = self._nearest_targets(weights)
        old, new = new, difference(weights, self.targets)
        fell_by_targets = self._penalty(new) < self._penalty(old)
        self._step_multipliers(fell_by_targets, alpha, old, new)

        self._previous = {key: x.clone() for key, x in weights.items()}
        self._previous_loss = loss
        return {
            'residual': norm(new),
            'multiplier': norm(self.multipliers),
            'step_size': self._step_size,
            'fell_by_weights': fell_by_weights,
            'fell_by_targets': fell_by_targets,
        }

    def _penalty(self, residual: Tensors) -> Tensor:
        """Return the Lagrangian without the loss."""
        products = [
            total(x * self.multipliers[key]) for key, x in residual.items()
        ]
        product = sum(x.to(products[0]) for x in products)
        return product + self.rho / 2 * norm(residual).square()

    def _step_multipliers(
        self, condition: Tensor, alpha: float, old: Tensors, new: Tensors
    ) -> None:
        # Nothing here waits for a device:
        norm_old, norm_new = norm(old), norm(new)
        condition = condition.to(norm_new.device)
        # A ratio of norms with a zero would make the step size zero for good:
        smallest = torch.minimum(norm_old, norm_new)
        condition = condition & (smallest > EPS * self._norm_of_previous())
        step_size = alpha * self._step_size * norm_old / norm_new
        self._step_size = torch.where(condition, step_size, self._step_size)
        scale = torch.where(condition, self._step_size, 0.0)
        for key, x in new.items():
            self.multipliers[key].add_(x * scale.to(x))

    def _release(self) -> None:
        super()._release()
        self._previous = {}

    def _norm_of_previous(self) -> Tensor:
        return norm(self._previous)
