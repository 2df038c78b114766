import math
import warnings
from typing import Any, Dict, List, Optional, Union

import torch
from torch import Tensor

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader.dynamic_sampler import (
    STATE_KEYS,
    DynamicSampler,
)
from torch_geometric_ext.ops import weighted_sample

EPS = 1e-6  # The constant of Eq. (11), a choice.


class GDeRSampler(DynamicSampler):
    r"""Sampler that draws a subset of graphs in each epoch by the scores of
    prototypes, from the `"GDeR: Safeguarding Efficiency, Balancing, and
    Robustness via Prototypical Graph Pruning"
    <https://arxiv.org/abs/2410.13761>`_ paper.

    The sampler prefers unfamiliar graphs, unless they are likely outliers or
    share their nearest prototype with many graphs. The score of a graph is
    (Eq. (11))

    .. math::
        \omega = \frac{\sigma(\omega^{\textrm{unfam}})}
        {(\sigma(\omega^{\textrm{risk}}) + \epsilon)
        (\sigma(\omega^{\textrm{crowd}}) + \epsilon)}.

    :class:`~torch_geometric_ext.nn.HypersphericalPrototypes` compute the
    unfamiliarity :math:`\omega^{\textrm{unfam}}` and the outlier risk
    :math:`\omega^{\textrm{risk}}`. :math:`\omega^{\textrm{crowd}}` is the
    fraction of graphs with the same nearest prototype (Eq. (10)).

    Of :math:`|X|` graphs, epoch :math:`t + 1` draws (Eq. (14))

    .. math::
        \Psi(t) = |X| \cdot \varsigma \left( 1 - \frac{t}{T} \right)^{\kappa}

    graphs from the subset of epoch :math:`t`, and the others from the graphs
    outside that subset. Graphs are drawn without replacement, with
    probabilities in proportion to their last score. A graph without a score
    has the mean score.

    .. code-block:: python

        dataset = IndexedDataset(train_dataset)
        prototypes = HypersphericalPrototypes(64, dataset.num_classes)
        optimizer = Adam([*model.parameters(), *prototypes.parameters()])
        sampler = GDeRSampler(dataset, prototypes, 0.5, num_epochs=100)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler)

        for epoch in range(100):
            for batch in loader:
                optimizer.zero_grad()
                h = model(batch)
                loss = F.cross_entropy(head(h), batch.y)
                loss = loss + sampler.update(h, batch.y, batch.graph_idx)
                loss.backward()
                optimizer.step()

    See :class:`~torch_geometric_ext.loader.DynamicSampler` for epochs,
    distributed training and checkpoints. Planning takes :math:`O(N)` time, a
    sort of the subset and a peak memory of about 75 bytes per graph of the
    data set (measured by :obj:`benchmark/loader/planning.py`).

    .. note::
        Deviations from the paper: the three terms of the score are
        standardized over the epoch before the sigmoid :math:`\sigma`, as their
        raw magnitudes saturate it. With :obj:`standardize=False`, draws are
        nearly uniform. A graph whose new score is not finite keeps its last
        score. :math:`\omega^{\textrm{crowd}}` counts all graphs of an epoch.

    Args:
        dataset (IndexedDataset or int): The data set of the loader, or its
            number of graphs :math:`N`.
        prototypes (torch.nn.Module): The
            :class:`~torch_geometric_ext.nn.HypersphericalPrototypes`, or a
            :class:`~torch.nn.parallel.DistributedDataParallel` wrapper of
            them. Pass their parameters to the optimizer, too.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs :math:`T` of the whole training.
        retention (float, optional): Initial fraction :math:`\varsigma` of the
            budget to draw from the previous subset, in :math:`[0, 1]`.
            (default: :obj:`0.7`)
        retention_decay (float, optional): The decay exponent :math:`\kappa`
            of that fraction. (default: :obj:`2.0`)
        standardize (bool, optional): If set to :obj:`False`, the terms of the
            score are not standardized. (default: :obj:`True`)
        seed (int, optional): Seed of the sampler's generator, equal on all
            ranks. (default: :obj:`0`)
        num_replicas (int, optional): Number of ranks.
            (default: the world size, or one)
        rank (int, optional): Rank of this process.
            (default: the rank of this process, or zero)

    Attributes:
        scores (torch.Tensor): The last score :math:`\omega` of each graph of
            the data set, NaN for graphs without a score.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If :obj:`dataset` is not an
            :class:`~torch_geometric_ext.data.IndexedDataset` or a number, or
            :obj:`prototypes` is not a module.
    """

    _state_keys = (*STATE_KEYS, 'scores')

    def __init__(
        self,
        dataset: Union[IndexedDataset, int],
        prototypes: torch.nn.Module,
        keep_ratio: float,
        num_epochs: int,
        *,
        retention: float = 0.7,
        retention_decay: float = 2.0,
        standardize: bool = True,
        seed: int = 0,
        num_replicas: Optional[int] = None,
        rank: Optional[int] = None,
    ) -> None:
        name = self.__class__.__name__
        if not isinstance(dataset, (IndexedDataset, int)):
            raise TypeError(
                f"'dataset' of '{name}' needs to be an 'IndexedDataset' or "
                f'its number of graphs (got {type(dataset)}). Pass '
                f"'IndexedDataset(dataset)' to the sampler and the loader"
            )
        if not isinstance(prototypes, torch.nn.Module):
            raise TypeError(
                f"'prototypes' of '{name}' needs to be a module such as "
                f"'HypersphericalPrototypes' (got {type(prototypes)})"
            )
        if not 0 <= retention <= 1:
            raise ValueError(
                f"'retention' of '{name}' needs to be in [0, 1] "
                f'(got {retention})'
            )
        if not retention_decay >= 0:
            raise ValueError(
                f"'retention_decay' of '{name}' needs to be at least zero "
                f'(got {retention_decay})'
            )
        super().__init__(
            dataset,
            keep_ratio,
            num_epochs,
            seed=seed,
            num_replicas=num_replicas,
            rank=rank,
        )
        self.prototypes = prototypes
        self.retention = retention
        self.retention_decay = retention_decay
        self.standardize = standardize
        self.scores = torch.full((self.size,), math.nan, dtype=torch.float)
        self._active = False  # The check of the first epoch has been done.
        self._initial = self._parameters()

    def update(self, h: Tensor, y: Tensor, graph_idx: Tensor) -> Tensor:
        r"""Record the scores of a mini-batch and return the loss of the
        prototypes.

        Add the result to the loss of the task.

        Args:
            h (torch.Tensor): The graph embeddings of shape :math:`(B, E)`.
            y (torch.Tensor): The labels of shape :math:`(B)` (int64).
            graph_idx (torch.Tensor): The positions of the graphs in the data
                set, :obj:`batch.graph_idx`, of shape :math:`(B)` (int64).

        Returns:
            The scalar loss of the prototypes.

        Raises:
            ValueError: If :obj:`graph_idx` holds a graph that was not drawn
                in the current epoch (for CUDA tensors, raised in the planning
                of the next epoch), or an input is of the wrong shape.
            TypeError: If an input is of the wrong type, or :obj:`graph_idx`
                is :obj:`None`.
        """
        name = self.__class__.__name__
        if not isinstance(graph_idx, Tensor) or graph_idx.dtype != torch.int64:
            raise TypeError(
                f"'graph_idx' of '{name}' needs to be a tensor of type "
                f'torch.int64 (got {getattr(graph_idx, "dtype", graph_idx)}). '
                f"Wrap the data set in an 'IndexedDataset' and pass "
                f"'batch.graph_idx'"
            )
        if graph_idx.dim() != 1 or graph_idx.size(0) != h.size(0):
            raise ValueError(
                f"'graph_idx' of '{name}' needs to be of shape [{h.size(0)}], "
                f'one position per graph (got {list(graph_idx.shape)})'
            )
        loss, scores = self.prototypes(h, y)
        self._record(graph_idx, scores)
        return loss

    def state_dict(self) -> Dict[str, Any]:
        r"""Return the state of the sampler, without its prototypes.

        See :meth:`DynamicSampler.state_dict`.
        """
        return {**super().state_dict(), 'scores': self.scores.clone()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Load the state of a sampler.

        See :meth:`DynamicSampler.load_state_dict`.
        """
        super().load_state_dict(state_dict)
        self.scores = state_dict['scores'].cpu().clone()
        self._active = self.epoch >= 0

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        if not self._active:
            self._check_first_epoch(graph_idx.numel())
        if not feedback.sum().isfinite():
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

    def _draw(self, epoch: int) -> Tensor:
        mean = self.scores.nanmean().nan_to_num(nan=1.0)
        weight = self.scores.nan_to_num(nan=float(mean))

        previous = self._drawn.nonzero().view(-1)
        others = (~self._drawn).nonzero().view(-1)
        num_retained = self._num_retained(epoch - 1)
        num_retained = max(num_retained, self.budget - others.numel())
        num_retained = min(num_retained, previous.numel())
        num_others = self.budget - num_retained
        out = []
        for pool, size in [(previous, num_retained), (others, num_others)]:
            drawn = weighted_sample(weight[pool], size, self._generator)
            out.append(pool[drawn])
        return torch.cat(out)

    def _num_retained(self, epoch: int) -> int:
        # Eq. (14):
        remaining = 1 - min(max(epoch, 0) / self.num_epochs, 1)
        fraction = self.retention * remaining**self.retention_decay
        return round(self.budget * fraction)

    def _check_first_epoch(self, num_graphs: int) -> None:
        """Warn after the first epoch if the prototypes were not trained, or
        there was no feedback.
        """
        problem = None
        if num_graphs > 0:
            self._active = True
            pairs = list(zip(self._initial, self._parameters()))
            if pairs and all(torch.equal(a, b) for a, b in pairs):
                problem = (
                    f'found its prototypes unchanged after epoch '
                    f"{self.epoch}. Pass 'prototypes.parameters()' to the "
                    f"optimizer, too, and add the result of 'update' to the "
                    f'loss'
                )
        elif self._finished:
            self._active = True
            problem = (
                f'got no feedback in epoch {self.epoch} and draws uniformly. '
                f"Call 'update' for each mini-batch"
            )
        if problem is not None:
            name = self.__class__.__name__
            warnings.warn(f"'{name}' {problem}", stacklevel=2)

    def _parameters(self) -> List[Tensor]:
        parameters = self.prototypes.parameters()
        return [x.detach().cpu().clone() for x in parameters]


def _standardize(x: Tensor) -> Tensor:
    std, mean = torch.std_mean(x, correction=0)
    return (x - mean) / std.clamp(min=EPS)
