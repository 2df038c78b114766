import math
from typing import Any, Dict

import torch
from torch import Tensor

from torch_geometric_ext.loader.check import require
from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler
from torch_geometric_ext.ops.check_state_dict import Check


class LossBasedSampler(DynamicSampler):
    r"""Base class of samplers that draw graphs by their loss.

    A sub-class implements :meth:`_weights` by :obj:`self.losses`, the
    exponential moving average of the losses of each graph (:obj:`NaN` for
    graphs without a loss). A training loop passes one loss per graph:

    .. code-block:: python

        losses = F.cross_entropy(out, batch.y, reduction='none')
        loss = sampler.update(losses, batch.graph_idx)
        loss.backward()

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        smoothing (float, optional): The weight of the previous average, in
            :math:`[0, 1)`. (default: :obj:`0.0`)
        reweight (bool, optional): If set to :obj:`True`, :meth:`update`
            weights losses by :meth:`loss_weight`, which makes them an unbiased
            estimate of the mean loss of the data set. (default: :obj:`False`)
        **kwargs (optional): Arguments of
            :class:`~torch_geometric_ext.loader.DynamicSampler`.

    Attributes:
        losses (torch.Tensor): The average loss of each graph.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: Any,
        keep_ratio: float,
        num_epochs: int,
        *,
        smoothing: float = 0.0,
        reweight: bool = False,
        **kwargs: Any,
    ) -> None:
        in_range = 0 <= smoothing < 1
        require(self, in_range, 'smoothing', 'be in [0, 1)', smoothing)
        super().__init__(dataset, keep_ratio, num_epochs, **kwargs)
        self.smoothing = smoothing
        self.reweight = reweight
        self.losses = torch.full((self.size,), math.nan)

    def update(self, loss: Tensor, graph_idx: Tensor) -> Tensor:
        r"""Record the losses of a mini-batch and return their mean.

        Args:
            loss (torch.Tensor): The loss of each graph, of shape :math:`(B)`
                (:obj:`reduction="none"`).
            graph_idx (torch.Tensor): The positions of the graphs in the data
                set, :obj:`batch.graph_idx`, of shape :math:`(B)` (int64).

        Returns:
            The scalar mean, weighted by :meth:`loss_weight` if
            :obj:`reweight` is set.

        Raises:
            ValueError: If :obj:`graph_idx` holds a graph that was not drawn
                in the current epoch (for CUDA tensors, raised in the planning
                of the next epoch), or an input is of the wrong shape.
            TypeError: If :obj:`graph_idx` is not of type :obj:`torch.int64`,
                or :obj:`loss` is not a tensor.
        """
        name = self.__class__.__name__
        if not isinstance(graph_idx, Tensor) or graph_idx.dtype != torch.int64:
            raise TypeError(
                f"'graph_idx' of '{name}' needs to be a tensor of type "
                f'torch.int64 (got {getattr(graph_idx, "dtype", graph_idx)}). '
                f"Wrap the data set in an 'IndexedDataset' and pass "
                f"'batch.graph_idx'"
            )
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"'loss' of '{name}' needs to be a tensor, one loss per graph "
                f'(got {type(loss)})'
            )
        if loss.dim() != 1 or loss.shape != graph_idx.shape:
            raise ValueError(
                f"'loss' of '{name}' needs to be of shape "
                f'{list(graph_idx.shape)}, one loss per graph (got '
                f"{list(loss.shape)}). Compute it with reduction='none'"
            )
        self._record(graph_idx, loss.detach().float().view(-1, 1))
        if self.reweight:
            loss = loss * self.loss_weight(graph_idx).to(loss.dtype)
        return loss.mean()

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        loss = feedback.view(-1)
        finite = loss.isfinite()
        graph_idx, loss = graph_idx[finite], loss[finite]
        old = self.losses[graph_idx]
        new = self.smoothing * old + (1 - self.smoothing) * loss
        self.losses[graph_idx] = torch.where(old.isnan(), loss, new)

    def _extra_state(self) -> Dict[str, Any]:
        return {'losses': self.losses.clone()}

    def _state_checks(self) -> Dict[str, Check]:
        return {
            'feedback': lambda x: x.size(1) == 1 and x.dtype == torch.float,
            'losses': lambda x: not bool(x.isinf().any()),
        }

    def _load_extra_state(self, state: Dict[str, Any]) -> None:
        self.losses = state['losses'].cpu().clone()
