import math
from copy import deepcopy
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from torch_geometric_ext.loader.draw import UNKNOWN
from torch_geometric_ext.loader.outliers import (
    embedding_features,
    find_gap,
    robust_distance,
)

# Constants were chosen on NCI1 and PROTEINS (`benchmark/loader/pruning.py`).
OPEN_GAP, CLOSE_GAP = 0.55, 0.3  # Gaps at which suspicion starts and ends.
MIN_DISTANCE = 1.5  # Of the gap from the median log distance.
SUSPECT_WEIGHT = 0.02  # Suspects are drawn rarely, so that they can recover.
MIN_RECALL = 0.08  # A class below is not learned, and is drawn more often.
UNSEEN_WEIGHT = 1e12  # Any weight that lets unseen graphs come first.
NUM_PROBES = 4  # Epochs before recalls count.
MAX_CLASS_FRACTION = 0.5  # A class of outliers is a class, not corrupted.
MAX_VALUES = 1 << 16  # A sample of this size determines the gap.
MAX_KNOWN = 4 * MAX_VALUES


class TrustedDraw:
    r"""The weights of a draw that distrusts outliers and balances classes that
    are not learned.

    Args:
        size (int): The number of graphs.
        num_epochs (int): The number of epochs.
        balance (float, optional): A fixed exponent of the class weights. If
            :obj:`None`, it changes from zero to one when a class is not
            learned.
        robust (bool): If set to :obj:`False`, outliers are not distrusted.
    """

    num_feedback = 3  # Distance, whether the class is right, and the class.

    def __init__(
        self,
        size: int,
        num_epochs: int,
        balance: Optional[float],
        robust: bool,
    ) -> None:
        self.num_epochs = num_epochs
        self.fixed_balance = balance
        self.robust = robust
        self.distance = torch.full((size,), math.nan)
        self.suspicion = torch.zeros(size)
        self.suspicious = False  # The distances have a gap.
        self.balanced = False  # A class was not learned.
        self.num_observed = 0
        self.recall: List[float] = []  # Of each class.

    @property
    def balance(self) -> float:
        """The exponent of the class weights in the next draw."""
        if self.fixed_balance is not None:
            return self.fixed_balance
        return float(self.balanced)

    @property
    def suspects(self) -> Tensor:
        """The mask of distrusted graphs."""
        return self.suspicion > 0.5

    def needs_replacement(self, num_draws: int) -> bool:
        """Return whether the next draw repeats graphs: a balanced draw repeats
        those of small classes, and others replace suspects if there are too
        few of them.
        """
        if self.balance > 0:
            return True
        num_suspects = int(self.suspects.sum())
        num_trusted = self.suspicion.numel() - num_suspects
        unseen = bool(self.distance.isnan().any())
        return num_suspects > 0 and num_trusted < num_draws and not unseen

    def state(self) -> Dict[str, Any]:
        """Return the state that draws depend on."""
        return {
            'distance': self.distance.clone(),
            'suspicion': self.suspicion.clone(),
            'suspicious': self.suspicious,
            'balanced': self.balanced,
            'num_observed': self.num_observed,
            'recall': list(self.recall),
        }

    def load(self, state: Dict[str, Any]) -> None:
        """Load the result of :meth:`state`."""
        for name, value in state.items():
            value = value.cpu() if isinstance(value, Tensor) else value
            setattr(self, name, deepcopy(value))

    def observe(
        self,
        graph_idx: Tensor,
        feedback: Tensor,
        group: Optional[Tensor] = None,
    ) -> None:
        """Update distances, suspicions and recalls.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs.
            feedback (torch.Tensor): The log distance of each graph, whether
                its nearest prototype is of its class, and its class.
            group (torch.Tensor, optional): The class of each graph of the data
                set.
        """
        finite = feedback.isfinite().all(dim=-1)
        if not bool(finite.all()):
            # Such a graph is ordinary. Unseen, it would be drawn each time:
            lost = graph_idx[~finite]
            self.distance[lost] = self.distance[lost].nan_to_num(nan=0.0)
            graph_idx, feedback = graph_idx[finite], feedback[finite]
        if graph_idx.numel() == 0:
            return
        distance, correct, label = feedback.float().unbind(dim=-1)
        if self.robust:
            self._update_distance(graph_idx, distance)
            self._update_suspicion(group)
        self._update_recall(correct, label.round().long())
        self.num_observed += 1

    def weights(self, epoch: int) -> Optional[Tensor]:
        """Return the weight of each graph before balancing, or `None` if all
        are the same.

        Until each graph has a distance, graphs without one are drawn first:
        an outlier is found more easily before the model has learned it. Not
        if classes are balanced, as copies of few graphs would fill an epoch.
        """
        unseen = self.distance.isnan() & (self.robust and self.balance == 0)
        suspects = self.suspects
        if not bool((unseen | suspects).any()):
            return None
        # No suspect remains in the last epochs, as one mini-batch with an
        # outlier shifts the running statistics of batch normalization:
        remaining = max(1 - epoch / self.num_epochs, 0)
        weight = torch.ones(suspects.numel(), dtype=torch.double)
        weight[suspects] = SUSPECT_WEIGHT * remaining
        weight[unseen] = UNSEEN_WEIGHT
        return weight

    def _update_distance(self, graph_idx: Tensor, distance: Tensor) -> None:
        old = self.distance[graph_idx]
        new = torch.where(old.isnan(), distance, (old + distance) / 2)
        # A suspect stays one until it is closer than the median. The model
        # does not learn it, but the model changes.
        keep = self.suspects[graph_idx] & (distance < old) & (distance > 0)
        self.distance[graph_idx] = torch.where(keep, old, new)

    def _update_suspicion(self, group: Optional[Tensor]) -> None:
        # Sample twice, as up to three of four graphs may be unknown:
        values = self.distance[:: -(-self.distance.numel() // MAX_KNOWN)]
        values = values[values.isfinite()]
        stride = -(-values.numel() // MAX_VALUES)
        gap, threshold, middle = find_gap(values[::stride])
        min_gap = CLOSE_GAP if self.suspicious else OPEN_GAP
        self.suspicious = gap > min_gap and middle > MIN_DISTANCE
        self.suspicion /= 2
        if self.suspicious:
            flagged = self.distance > threshold  # False if unknown.
            if group is not None:
                flagged &= ~_in_flagged_class(flagged, group)
            self.suspicion[flagged] = (self.suspicion[flagged] + 0.5).clamp(
                min=0.51
            )

    def _update_recall(self, correct: Tensor, label: Tensor) -> None:
        if self.num_observed == 0:
            return  # In the first epoch, prototypes are random.
        known = label != UNKNOWN
        if not bool(known.all()):
            correct, label = correct[known], label[known]
        if label.numel() == 0:
            return
        size = label.bincount(minlength=len(self.recall))
        right = torch.zeros(size.numel()).index_add_(0, label, correct)
        self.recall += [math.nan] * (size.numel() - len(self.recall))
        for i in size.nonzero().view(-1).tolist():
            new = float(right[i] / size[i])
            old = self.recall[i]
            self.recall[i] = new if math.isnan(old) else (old + new) / 2
        if self.num_observed >= NUM_PROBES - 1:
            self.balanced |= any(x < MIN_RECALL for x in self.recall)


def measure_embeddings(rows: Tensor, num_prototypes: int) -> Tensor:
    r"""Compute the feedback for :class:`TrustedDraw`.

    Args:
        rows (torch.Tensor): The embeddings, the three scores of prototypes and
            the classes, of shape :math:`(B, E + 4)`.
        num_prototypes (int): The number of prototypes per class.

    Returns:
        The log distance of each graph, whether its nearest prototype is of its
        class, and its class, of shape :math:`(B, 3)`.
    """
    h, nearest, label = rows[:, :-4], rows[:, -2], rows[:, -1]
    distance = robust_distance(embedding_features(h))
    correct = nearest.floor_divide(num_prototypes) == label
    columns = [distance, correct.to(distance.dtype), label]
    return torch.stack(columns, dim=-1)


def _in_flagged_class(flagged: Tensor, group: Tensor) -> Tensor:
    """Return the mask of graphs of classes that are mostly flagged."""
    label = group - UNKNOWN  # Unknown classes become class zero.
    size = label.bincount()
    count = label[flagged].bincount(minlength=size.numel())
    mostly = count > MAX_CLASS_FRACTION * size
    mostly[0] = False
    return mostly[label]
