import math
from typing import Any, Dict, Optional

import torch
from torch import Tensor

from torch_geometric_ext.ops.weighted_sample import weighted_sample

EPS = 1e-6  # The constant of Eq. (11), a choice.


class PaperDraw:
    r"""The scores and the draw of the GDeR paper (Eq. (10), (11) and (14)).

    Args:
        size (int): The number of graphs :math:`N`.
        num_epochs (int): The number of epochs :math:`T`.
        retention (float): Initial fraction :math:`\varsigma` of the budget to
            draw from the previous subset.
        retention_decay (float): The decay exponent :math:`\kappa`.
        standardize (bool): If set to :obj:`False`, the terms of the score are
            not standardized.
    """

    num_feedback = 3

    def __init__(
        self,
        size: int,
        num_epochs: int,
        retention: float,
        retention_decay: float,
        standardize: bool,
    ) -> None:
        self.num_epochs = num_epochs
        self.retention = retention
        self.retention_decay = retention_decay
        self.standardize = standardize
        self.scores = torch.full((size,), math.nan)

    def state(self) -> Dict[str, Any]:
        """Return the state that draws depend on."""
        return {'scores': self.scores.clone()}

    def load(self, state: Dict[str, Any]) -> None:
        """Load the result of :meth:`state`."""
        self.scores = state['scores'].cpu().clone()

    def observe(
        self,
        graph_idx: Tensor,
        feedback: Tensor,
        group: Optional[Tensor] = None,
    ) -> None:
        """Update the scores of graphs by their outlier risk, unfamiliarity and
        nearest prototype.
        """
        finite = feedback.isfinite().all(dim=-1)
        graph_idx, feedback = graph_idx[finite], feedback[finite]
        if graph_idx.numel() == 0:
            return
        risk, unfamiliarity, nearest = feedback.float().unbind(dim=-1)

        # Eq. (10):
        nearest = nearest.long()
        crowd = nearest.bincount()[nearest] / nearest.numel()
        if self.standardize:
            risk, crowd = _standardize(risk), _standardize(crowd)
            unfamiliarity = _standardize(unfamiliarity)

        # Eq. (11):
        cost = (risk.sigmoid() + EPS) * (crowd.sigmoid() + EPS)
        self.scores[graph_idx] = unfamiliarity.sigmoid() / cost

    def draw(
        self,
        epoch: int,
        budget: int,
        drawn: Tensor,
        generator: Optional[torch.Generator],
    ) -> Tensor:
        """Draw a subset.

        Args:
            epoch (int): The epoch.
            budget (int): The number of graphs to draw.
            drawn (torch.Tensor): The mask of the previous subset.
            generator (torch.Generator, optional): The generator.
        """
        mean = self.scores.nanmean().nan_to_num(nan=1.0)
        weight = self.scores.nan_to_num(nan=float(mean))

        previous = drawn.nonzero().view(-1)
        others = (~drawn).nonzero().view(-1)
        num_retained = self._num_retained(epoch - 1, budget)
        num_retained = max(num_retained, budget - others.numel())
        num_retained = min(num_retained, previous.numel())
        num_others = budget - num_retained
        out = []
        for pool, size in [(previous, num_retained), (others, num_others)]:
            out.append(pool[weighted_sample(weight[pool], size, generator)])
        return torch.cat(out)

    def _num_retained(self, epoch: int, budget: int) -> int:
        # Eq. (14):
        remaining = 1 - min(max(epoch, 0) / self.num_epochs, 1)
        fraction = self.retention * remaining**self.retention_decay
        return round(budget * fraction)


def _standardize(x: Tensor) -> Tensor:
    std, mean = torch.std_mean(x, correction=0)
    return (x - mean) / std.clamp(min=EPS)
