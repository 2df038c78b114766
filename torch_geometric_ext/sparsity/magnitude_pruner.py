import math
import warnings
from typing import Dict, Mapping, Optional, Sequence, Union

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.nn.dense.masked_weight import MaskedWeight
from torch_geometric_ext.nn.linear_layers import (
    Ignored,
    find_layers,
    obstacles,
    swap_layers,
    swappable_linears,
)
from torch_geometric_ext.sparsity.optimizer_state import unwrap_optimizer
from torch_geometric_ext.sparsity.projection import Projection


class MagnitudePruner:
    r"""Prune the weights of smallest magnitude of a trained model at once, as
    in the `"Learning both Weights and Connections for Efficient Neural
    Networks" <https://arxiv.org/abs/1506.02626>`_ paper.

    .. code-block:: python

        train(model)  # Dense.
        pruner = MagnitudePruner(model, sparsity=0.95)
        model = pruner.finalize()
        optimizer = Adam(model.parameters())  # Parameters were replaced.
        train(model)  # Fine-tune the remaining weights.

    The pruner acts on the layers that :func:`~torch_geometric_ext.nn.sparsify`
    replaces: :class:`torch.nn.Linear` and :class:`torch_geometric.nn.Linear`,
    also inside convolutions. A shared layer is pruned once, and a frozen layer
    is pruned and stays frozen.

    :class:`~torch_geometric_ext.sparsity.ADMM` and
    :class:`~torch_geometric_ext.sparsity.SLR` also implement
    :meth:`regularize`, :meth:`step` and :meth:`finalize`. They train the model
    towards sparse weights before they prune it, and have a state to save.

    Args:
        model (torch.nn.Module): The dense model, without uninitialized layers
            and not wrapped in
            :class:`~torch.nn.parallel.DistributedDataParallel`. Wrap the
            result of :meth:`finalize` anew.
        optimizer (torch.optim.Optimizer, optional): The optimizer that trains
            it. This pruner needs none. (default: :obj:`None`)
        sparsity (float or Mapping[str, float], optional): Fraction of weights
            to prune among the weights of all layers, in :math:`[0, 1)`. A
            mapping gives the sparsity of each layer by its name or a pattern
            such as :obj:`"convs.*"`; the first match counts, and a layer
            without a match is not pruned. (default: :obj:`0.9`)
        distribution (str, optional): The distribution of remaining weights
            over layers: :obj:`"uniform"`, :obj:`"er"` or :obj:`"erk"` (see
            :func:`~torch_geometric_ext.nn.sparsify`), or :obj:`"global"` to
            compare magnitudes across layers. (default: :obj:`"erk"`)
        granularity (str, optional): What is pruned as a whole:
            :obj:`"element"`, :obj:`"row"` (all weights of an output),
            :obj:`"column"` (all weights of an input) or :obj:`"block"`.
            Groups are ranked by their Euclidean norm. Their number is rounded
            to the nearest integer, and to at least one unless a layer keeps
            no weight. (default: :obj:`"element"`)
        block_size (int, optional): Number of rows and columns of a block. A
            layer that is not larger than a block stays dense.
            (default: :obj:`16`)
        min_fan_in (int, optional): Minimum number of remaining weights per
            output, averaged over the outputs of a layer, as far as the
            sparsity permits. Used by :obj:`"er"` and :obj:`"erk"`.
            (default: :obj:`16`)
        ignored (Sequence[str, torch.nn.Module or type], optional): Names,
            modules or classes of layers that stay dense, or of modules that
            contain them. (default: :obj:`()`)

    Raises:
        ValueError: If an argument is out of its range, a pattern matches no
            layer, the model is wrapped, has a
            :class:`~torch_geometric_ext.nn.SparseLinear` or no layer that can
            be pruned, or a layer is not initialized.
        TypeError: If :obj:`optimizer` is not an optimizer, or
            :obj:`sparsity` is not a number.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(1433, 64, num_layers=2, out_channels=7)
        >>> model = MagnitudePruner(model, sparsity=0.9).finalize()
        >>> sum(conv.lin.values.numel() for conv in model.convs)
        9216
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optional[Optimizer] = None,
        sparsity: Union[float, Mapping[str, float]] = 0.9,
        distribution: str = 'erk',
        *,
        granularity: str = 'element',
        block_size: int = 16,
        min_fan_in: int = 16,
        ignored: Sequence[Ignored] = (),
    ) -> None:
        owner = self.__class__.__name__
        if isinstance(optimizer, (int, float, Mapping)):
            raise TypeError(
                f"'optimizer' of '{owner}' needs to be a "
                f"'torch.optim.Optimizer' or None (got {type(optimizer)}). "
                f"Pass 'sparsity' by its name"
            )
        if optimizer is not None:
            optimizer = unwrap_optimizer(optimizer, owner)
        if find_layers(model, (DistributedDataParallel,)):
            raise ValueError(
                f"'model' of '{owner}' needs to be the module in "
                f"'DistributedDataParallel' (pass 'model.module')"
            )
        sparse = list(find_layers(model, (SparseLinear,)).values())
        if len(sparse) > 0:
            raise ValueError(
                f"'model' of '{owner}' needs to be dense (got the sparse "
                f"layers {sparse}). Prune those with 'GradualMagnitude'"
            )
        layers = swappable_linears(model, ignored)
        shapes = {name: x.weight.shape for x, name in layers.items()}
        self._projection = Projection(
            {name: (shape[0], shape[1]) for name, shape in shapes.items()},
            sparsity,
            distribution,
            granularity,
            block_size,
            min_fan_in,
            owner,
        )
        budgets = self._projection.budgets
        self.layers = {k: x for x, k in layers.items() if k in budgets}
        self._sizes = [list(x.weight.shape) for x in self.layers.values()]
        self.model = model
        self.optimizer = optimizer
        self.last_step = 0  # Number of completed steps.
        self._finalized = False

    @property
    def num_weights(self) -> int:
        """The number of weights that remain, if single weights are pruned."""
        projection = self._projection
        if projection.global_budget is not None:
            return projection.global_budget
        return sum(projection.budgets.values())

    def regularize(self, loss: Tensor) -> Tensor:
        r"""Return the loss to minimize, here :obj:`loss` itself.

        Args:
            loss (torch.Tensor): The loss of the task, a scalar.
        """
        return loss

    def step(self) -> None:
        r"""Count a step of the optimizer. Call it after each
        :obj:`optimizer.step()`.

        Raises:
            RuntimeError: If :meth:`finalize` was called before.
        """
        self._check_active('step')
        self.last_step += 1

    @torch.inference_mode(False)  # Parameters need to be trainable.
    def finalize(self, sparse: bool = True) -> Module:
        r"""Prune all but the weights of largest magnitude, in-place.

        The pruner then holds no layers, no optimizer and no weights.
        :func:`~torch_geometric_ext.nn.sparsity_summary` lists the sparsity of
        each layer, and the layers that stay dense.

        Args:
            sparse (bool, optional): If set to :obj:`True`, layers become
                :class:`~torch_geometric_ext.nn.SparseLinear` layers, so that
                further training costs less. Create a new optimizer, as
                parameters are replaced. If set to :obj:`False`, layers and
                parameters stay, and a parametrization of
                :mod:`torch.nn.utils.parametrize` holds pruned weights at
                zero. Save the :obj:`state_dict()` of such a model, as PyTorch
                cannot pickle it. (default: :obj:`True`)

        Returns:
            The model, or the sparse layer if the model is a linear layer.

        Raises:
            RuntimeError: If the method was called before.
            ValueError: If a layer was replaced since the construction, or
                has to be but has hooks, a parametrized weight or a parameter
                of another module since then. The model is not changed in
                these cases.
        """
        self._check_active('finalize')
        self._check_layers(sparse)
        masks = self._projection.masks(self._weights())
        empty = [name for name, mask in masks.items() if not mask.any()]
        if empty:
            warnings.warn(
                f"'{self.__class__.__name__}' leaves no weight in {empty}. "
                f"Lower 'sparsity', or add them to 'ignored'",
                stacklevel=3,  # Skips the wrapper of `inference_mode`.
            )
        if sparse:
            swaps = {
                layer: SparseLinear.from_dense(layer, mask=masks[name])
                for name, layer in self.layers.items()
            }
            self.model = swap_layers(self.model, swaps)
        else:
            for name, layer in self.layers.items():
                MaskedWeight.apply_to(layer, masks[name])
        self._finalized = True
        self._release()
        return self.model

    def _check_layers(self, sparse: bool) -> None:
        """Check that layers can still be replaced."""
        owner, modules = self.__class__.__name__, set(self.model.modules())
        gone = [name for name, x in self.layers.items() if x not in modules]
        if gone:
            raise ValueError(
                f"'model' of '{owner}' needs to keep its layers until it is "
                f'pruned (got the replaced layers {gone})'
            )
        if not sparse:  # Layers stay, with their hooks.
            return
        names = {layer: name for name, layer in self.layers.items()}
        reasons = obstacles(self.model, list(names))
        if reasons:
            wrong = ', '.join(
                f"'{names[x]}' ({y})" for x, y in reasons.items()
            )
            raise ValueError(
                f"'model' of '{owner}' needs layers that can be replaced (got "
                f"{wrong}). Remove this first, or call 'finalize(False)'"
            )

    def _release(self) -> None:
        # Users keep the pruner while they fine-tune the sparse model:
        self.layers, self.optimizer = {}, None

    def _weights(self) -> Dict[str, Tensor]:
        return {k: x.weight.detach() for k, x in self.layers.items()}

    def _check_active(self, method: str) -> None:
        if self._finalized:
            raise RuntimeError(
                f"'{method}()' of '{self.__class__.__name__}' must not be "
                f"called after 'finalize()'"
            )

    def __repr__(self) -> str:
        total = sum(math.prod(size) for size in self._sizes)
        return (
            f'{self.__class__.__name__}(num_layers={len(self._sizes)}, '
            f'sparsity={1 - self.num_weights / max(total, 1):.4g})'
        )
