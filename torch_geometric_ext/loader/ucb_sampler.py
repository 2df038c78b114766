from typing import Any, Dict

import torch
from torch import Tensor

from torch_geometric_ext.loader.check import require
from torch_geometric_ext.loader.epsilon_greedy_sampler import (
    EpsilonGreedySampler,
)
from torch_geometric_ext.ops.check_state_dict import Check


class UCBSampler(EpsilonGreedySampler):
    r"""Sampler that draws the graphs with the largest upper confidence bound
    of the loss, from the `"Accelerating Deep Learning with Dynamic Data
    Pruning" <https://arxiv.org/abs/2111.12621>`_ paper.

    The score of a graph is :math:`\mu_i + c \, \sigma_i`, with the moving
    average :math:`\mu_i` of its loss and the moving standard deviation
    :math:`\sigma_i`,

    .. math::
        \mu_i \leftarrow \mu_i + (1 - s) \, \delta, \qquad
        \sigma^2_i \leftarrow s \left( \sigma^2_i + (1 - s) \, \delta^2
        \right), \qquad \delta = \ell_i - \mu_i.

    The :math:`B` graphs with the largest scores are drawn. Graphs without a
    loss come first. Planning takes a sort of the data set,
    :math:`O(N \log N)`.

    .. note::
        Deviation from the paper: the subset changes in each epoch instead of
        every few epochs. Draws are deterministic, hence losses cannot be
        reweighted, and :meth:`loss_weight` does not make them unbiased.

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        confidence (float, optional): The weight :math:`c` of the deviation,
            at least zero. (default: :obj:`1.0`)
        smoothing (float, optional): The weight :math:`s` of the previous
            average, in :math:`[0, 1)`. (default: :obj:`0.8`)
        **kwargs (optional): Arguments of
            :class:`~torch_geometric_ext.loader.DynamicSampler`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: Any,
        keep_ratio: float,
        num_epochs: int,
        *,
        confidence: float = 1.0,
        smoothing: float = 0.8,
        **kwargs: Any,
    ) -> None:
        require(
            self,
            confidence >= 0,
            'confidence',
            'be at least zero',
            confidence,
        )
        reweight = kwargs.get('reweight', False)
        options = 'be False, as graphs that are never drawn have no weight'
        require(self, not reweight, 'reweight', options, reweight)
        super().__init__(
            dataset,
            keep_ratio,
            num_epochs,
            epsilon=0.0,
            smoothing=smoothing,
            **kwargs,
        )
        self.confidence = confidence
        self.variance = torch.zeros(self.size)

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        loss, old = feedback.view(-1), self.losses[graph_idx]
        difference = loss - old
        known = difference.isfinite()
        idx, difference = graph_idx[known], difference[known]
        increase = (1 - self.smoothing) * difference.square()
        self.variance[idx] = self.smoothing * (self.variance[idx] + increase)
        super()._observe(graph_idx, feedback)

    def _scores(self) -> Tensor:
        bound = self.losses + self.confidence * self.variance.sqrt()
        return bound.nan_to_num(nan=float('inf'))

    def _extra_state(self) -> Dict[str, Any]:
        return {**super()._extra_state(), 'variance': self.variance.clone()}

    def _state_checks(self) -> Dict[str, Check]:
        valid = {'variance': lambda x: bool((x >= 0).all())}
        return {**super()._state_checks(), **valid}

    def _load_extra_state(self, state: Dict[str, Any]) -> None:
        super()._load_extra_state(state)
        self.variance = state['variance'].cpu().clone()
