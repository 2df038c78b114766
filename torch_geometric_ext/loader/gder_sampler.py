import math
import warnings
from typing import Any, Dict, List, Optional, Union

import torch
from torch import Tensor

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler
from torch_geometric_ext.ops import weighted_sample

EPS = 1e-6


class GDeRSampler(DynamicSampler):
    r"""Trains on a part of the graphs that changes with the model, from the
    `"GDeR: Safeguarding Efficiency, Balancing, and Robustness via Prototypical
    Graph Pruning" <https://arxiv.org/abs/2410.13761>`_ paper.

    Graphs that the model does not know yet are preferred, unless they look
    like outliers or lie in a crowded place. With the standardized scores of
    :class:`~torch_geometric_ext.nn.HypersphericalPrototypes` (outlier risk
    :math:`\omega^{\textrm{risk}}`, unfamiliarity
    :math:`\omega^{\textrm{unfam}}`) and the share
    :math:`\omega^{\textrm{crowd}}` of graphs with the same nearest prototype
    (Eq. (10)), a graph is worth (Eq. (11))

    .. math::
        \omega = \frac{\sigma(\omega^{\textrm{unfam}})}
        {(\sigma(\omega^{\textrm{risk}}) + \epsilon)
        (\sigma(\omega^{\textrm{crowd}}) + \epsilon)}.

    Out of a budget of :math:`|X|` graphs, the epoch :math:`t + 1` draws
    (Eq. (14))

    .. math::
        \Psi(t) = |X| \cdot \varsigma \left( 1 - \frac{t}{T} \right)^{\kappa}

    from the graphs of epoch :math:`t` and all others from those it left out,
    without replacement and with probabilities in proportion to the last known
    :math:`\omega` (the mean of the known ones where there is none).

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

    See :class:`~torch_geometric_ext.loader.DynamicSampler` for epochs, ranks
    and resuming. Planning takes :math:`O(N)` time (beside a sort of the graphs
    seen) and, at its peak, about 75 bytes for each graph of the data set.

    .. note::
        Deviations from the paper: every score is standardized over the epoch
        before the sigmoid :math:`\sigma`, because raw magnitudes saturate it:
        they draw nearly at random (:obj:`standardize=False`). Graphs whose
        scores are not finite keep their last :math:`\omega`. All graphs of an
        epoch count for :math:`\omega^{\textrm{crowd}}`.

    Args:
        dataset (IndexedDataset or int): The data set that the loader loads
            from, or its number of graphs :math:`N`.
        prototypes (torch.nn.Module): The
            :class:`~torch_geometric_ext.nn.HypersphericalPrototypes` (or its
            :class:`~torch.nn.parallel.DistributedDataParallel` wrapper), whose
            parameters the optimizer has to train, too.
        keep_ratio (float): Share of the graphs in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs :math:`T` of the whole training.
        retention (float, optional): The share :math:`\varsigma` of the budget
            drawn from the previous epoch at first. (default: :obj:`0.7`)
        retention_decay (float, optional): The exponent :math:`\kappa` with
            which it falls. (default: :obj:`2.0`)
        standardize (bool, optional): If set to :obj:`False`, scores are used
            in their raw form. (default: :obj:`True`)
        seed (int, optional): Seed of the sampler's own generator.
            (default: :obj:`0`)
        num_replicas (int, optional): Number of ranks.
            (default: the world size, or one)
        rank (int, optional): Rank of this process.
            (default: the rank of this process, or zero)

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If :obj:`dataset` does not carry :obj:`graph_idx`.
    """

    _state_keys = (*DynamicSampler._state_keys, 'scores')

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
                f'the number of its graphs (got {type(dataset)}). Wrap it, '
                f"'IndexedDataset(dataset)', and load from that"
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
        self._active = False  # Whether feedback has been seen at work.
        self._initial = self._parameters()

    def update(self, h: Tensor, y: Tensor, graph_idx: Tensor) -> Tensor:
        r"""Records the scores of a mini-batch and returns the loss of the
        prototypes, to be added to that of the task.

        Args:
            h (torch.Tensor): The graph embeddings, :obj:`[B, in_channels]`.
            y (torch.Tensor): The labels, :obj:`[B]`.
            graph_idx (torch.Tensor): The positions of the graphs in the data
                set, :obj:`batch.graph_idx`, :obj:`[B]`.

        Raises:
            ValueError: If :obj:`graph_idx` holds a graph that was not drawn
                in this epoch (for CUDA tensors, raised when the next epoch is
                planned), or an input does not fit the prototypes.
            TypeError: If :obj:`graph_idx` is missing, or an input is of the
                wrong type.
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
                f'one position for each graph (got {list(graph_idx.shape)})'
            )
        loss, scores = self.prototypes(h, y)
        self._record(graph_idx, scores)
        return loss

    def state_dict(self) -> Dict[str, Any]:
        r"""Returns the state of the sampler, without that of its prototypes.

        See :meth:`DynamicSampler.state_dict`.
        """
        return {**super().state_dict(), 'scores': self.scores.clone()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Loads the state of a sampler over the same number of graphs.

        See :meth:`DynamicSampler.load_state_dict`.
        """
        super().load_state_dict(state_dict)
        self.scores = state_dict['scores'].cpu().clone()
        self._active = self.epoch >= 0  # Training went on elsewhere.

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        if not self._active:
            self._warn_if_idle(graph_idx.numel())
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

        kept = self._drawn.nonzero().view(-1)
        rest = (~self._drawn).nonzero().view(-1)
        num_kept = self._num_retained(epoch - 1)
        num_kept = max(num_kept, self.budget - rest.numel())
        num_kept = min(num_kept, kept.numel())
        out = []
        for pool, size in [(kept, num_kept), (rest, self.budget - num_kept)]:
            drawn = weighted_sample(weight[pool], size, self._generator)
            out.append(pool[drawn])
        return torch.cat(out)

    def _num_retained(self, epoch: int) -> int:
        # Eq. (14):
        remaining = 1 - min(max(epoch, 0) / self.num_epochs, 1)
        share = self.retention * remaining**self.retention_decay
        return round(self.budget * share)

    def _warn_if_idle(self, num_graphs: int) -> None:
        """Looks once, after the first epoch, whether anything is trained."""
        problem = None
        if num_graphs > 0:
            self._active = True
            pairs = list(zip(self._initial, self._parameters()))
            if pairs and all(torch.equal(a, b) for a, b in pairs):
                problem = (
                    f'found its prototypes unchanged after epoch '
                    f"{self.epoch}. Hand 'prototypes.parameters()' to the "
                    f"optimizer, too, and add the result of 'update' to the "
                    f'loss'
                )
        elif self._finished:
            self._active = True
            problem = (
                f'got no feedback in epoch {self.epoch} and draws at random. '
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
