from typing import Any, Dict

from torch import Tensor

from torch_geometric_ext.sparsity.lagrangian_pruner import (
    LagrangianPruner,
    Tensors,
    difference,
    norm,
)


class ADMM(LagrangianPruner):
    r"""Prune a trained model by the alternating direction method of
    multipliers, from the `"A Systematic DNN Weight Pruning Framework using
    Alternating Direction Method of Multipliers"
    <https://arxiv.org/abs/1804.03294>`_ paper.

    .. code-block:: python

        train(model)  # Dense.
        pruner = ADMM(model, optimizer, sparsity=0.95)
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
    used. The pruner takes three times the memory of the weights. An update
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
        >>> optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
        >>> pruner = ADMM(lin, optimizer, sparsity=0.9, update_every=1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = lin(torch.ones(1, 100)).square().sum()
        ...     pruner.regularize(loss).backward()
        ...     optimizer.step()
        ...     pruner.step()
        >>> pruner.finalize()
        SparseLinear(100, 100, bias=True, sparsity=0.9...)

    .. rubric:: Details

    The loss is minimized over weights :math:`\mathbf{W}` that equal sparse
    weights :math:`\mathbf{Z}`. Training adds :math:`\frac{\rho}{2} \|
    \mathbf{W} - \mathbf{Z} + \mathbf{U} \|^2` to the loss (up to a constant).
    Every :obj:`update_every` steps,

    .. math::
        \mathbf{Z} \leftarrow \Pi(\mathbf{W} + \mathbf{U}), \qquad
        \mathbf{U} \leftarrow \mathbf{U} + \mathbf{W} - \mathbf{Z},

    where :math:`\Pi` keeps the weights of largest magnitude.

    .. note::
        Multipliers :math:`\Lambda = \rho \mathbf{U}` are stored, as in
        :class:`~torch_geometric_ext.sparsity.SLR`.
    """

    def _update_targets(
        self, weights: Tensors, loss: Tensor
    ) -> Dict[str, Any]:
        self.targets = self._nearest_targets(weights)
        residual = difference(weights, self.targets)
        for key, x in residual.items():
            self.multipliers[key].add_(x, alpha=self.rho)
        return {
            'residual': norm(residual),
            'multiplier': norm(self.multipliers),
            'step_size': self.rho,
        }
