import copy
import math
from typing import Any, Dict, Optional, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader.check import require
from torch_geometric_ext.loader.check_gder import (
    check_draw,
    check_types,
    check_unset,
    copy_parameters,
    gder_state_checks,
    warn_first_epoch,
)
from torch_geometric_ext.loader.draw import UNKNOWN
from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler
from torch_geometric_ext.loader.feedback import Feedback, average, keep_last
from torch_geometric_ext.loader.paper_draw import PaperDraw
from torch_geometric_ext.loader.trusted_draw import (
    TrustedDraw,
    measure_embeddings,
)
from torch_geometric_ext.nn.prototypes import HypersphericalPrototypes
from torch_geometric_ext.ops.check_state_dict import Check

# Embeddings of this many graphs are compared at once. More would take memory,
# and the model would change in between:
MAX_EMBEDDINGS = 8192


class GDeRSampler(DynamicSampler):
    r"""Sampler that draws a subset of graphs in each epoch, balanced over
    classes and without corrupted graphs, in the spirit of the `"GDeR:
    Safeguarding Efficiency, Balancing, and Robustness via Prototypical Graph
    Pruning" <https://arxiv.org/abs/2410.13761>`_ paper.

    .. code-block:: python

        dataset = IndexedDataset(train_dataset)
        prototypes = HypersphericalPrototypes(64, dataset.num_classes)
        optimizer = Adam([
            *model.parameters(), *head.parameters(), *prototypes.parameters(),
        ])
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

    Without classes (regression, several labels per graph, pre-training), pass
    :obj:`None` instead of :obj:`batch.y`: each graph then belongs to the
    virtual class of its nearest prototype.

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
        balance (float or str, optional): The exponent :math:`\beta` of the
            class weights, or :obj:`"auto"` to balance as soon as a class is
            not learned. (default: :obj:`"auto"`)
        robust (bool, optional): If set to :obj:`False`, outliers are drawn
            like other graphs. (default: :obj:`True`)
        draw (str, optional): The draw (:obj:`"trusted"` or :obj:`"paper"`).
            (default: :obj:`"trusted"`)
        retention (float, optional): Initial fraction :math:`\varsigma` of the
            budget to draw from the previous subset, in :math:`[0, 1]`, for
            :obj:`draw="paper"`. (default: :obj:`0.7`)
        retention_decay (float, optional): The decay exponent :math:`\kappa`
            of that fraction. (default: :obj:`2.0`)
        standardize (bool, optional): If set to :obj:`False`, the terms of the
            score are not standardized. (default: :obj:`True`)
        **kwargs (optional): Arguments of
            :class:`~torch_geometric_ext.loader.DynamicSampler`. Without
            :obj:`replacement`, graphs are drawn several times if classes are
            balanced or trusted graphs are fewer than the budget.

    Raises:
        ValueError: If an argument is out of its range or has no effect.
        TypeError: If :obj:`dataset` is not an
            :class:`~torch_geometric_ext.data.IndexedDataset` or a number, or
            :obj:`prototypes` is not a module.

    .. rubric:: Details

    * **Robustness.** The sampler compares the directions and norms of graph
      embeddings by a robust Mahalanobis distance. If the distances of an
      epoch have a gap, the graphs beyond it are *suspects* and are rarely
      drawn. :meth:`suspects` returns them, and :meth:`history` counts them
      (:obj:`num_suspects`).
    * **Balance.** Draws follow the data set, until the nearest prototype is
      wrong for more than 92 % of the graphs of a class after four epochs.
      From then on, all classes are drawn equally often, and graphs of small
      classes several times. Wrong labels in a class do not trigger
      balancing. If you know that classes are imbalanced, pass
      :obj:`balance=1.0`, or use
      :class:`~torch_geometric_ext.loader.BalancedSampler`, which needs no
      prototypes. The default can decide not to balance.
    * **Efficiency.** An epoch has :obj:`keep_ratio * N` graphs.

    See :class:`~torch_geometric_ext.loader.DynamicSampler` for epochs, shared
    arguments, distributed training and checkpoints. Planning takes
    :math:`O(N)` time (measured by :obj:`benchmark/loader/planning.py`).

    .. note::
        A balanced draw raises balanced accuracy and AUC. It raises the
        F1-score on a balanced test set, and can lower it on a test set with
        the imbalance of the training set. :meth:`loss_weight` returns the
        weights of a loss that serves the distribution of the data set. The
        weight of a suspect is at most that of other graphs.

    .. note::
        Deviations from the paper: scores on the sphere of prototypes neither
        balance classes nor recognize corrupted graphs
        (:obj:`benchmark/loader/pruning.py`). Hence the default draw replaces
        Eq. (8) to (14). The Mahalanobis distance of Eq. (8) is taken between
        embeddings instead of prototypes. :obj:`draw='paper'` scores graphs by
        (Eq. (11))

        .. math::
            \omega = \frac{\sigma(\omega^{\textrm{unfam}})}
            {(\sigma(\omega^{\textrm{risk}}) + \epsilon)
            (\sigma(\omega^{\textrm{crowd}}) + \epsilon)}

        and draws (Eq. (14)) :math:`\Psi(t) = |X| \cdot \varsigma (1 - t /
        T)^{\kappa}` of :math:`|X|` graphs from the previous subset, and the
        others from the rest, without replacement and in proportion to
        :math:`\omega`. Its terms are standardized over the epoch, as their raw
        magnitudes saturate the sigmoid.
    """

    _num_feedback = 3

    def __init__(
        self,
        dataset: Union[IndexedDataset, int],
        prototypes: torch.nn.Module,
        keep_ratio: float,
        num_epochs: int,
        *,
        balance: Union[float, str] = 'auto',
        robust: bool = True,
        draw: str = 'trusted',
        retention: float = 0.7,
        retention_decay: float = 2.0,
        standardize: bool = True,
        **kwargs: Any,
    ) -> None:
        check_types(self, dataset, prototypes)
        fixed: Any = None if balance == 'auto' else balance
        valid = fixed is None or (
            isinstance(fixed, (int, float)) and 0 <= fixed <= 1
        )
        require(self, valid, 'balance', "be 'auto' or in [0, 1]", balance)
        check_draw(self, draw, retention, retention_decay)
        if draw == 'paper':
            check_unset(self, "draw='paper'", balance=fixed, **kwargs)
        super().__init__(dataset, keep_ratio, num_epochs, **kwargs)
        self._auto_replacement = 'replacement' not in kwargs
        self.prototypes = prototypes
        self.draw = draw
        self._policy: Union[PaperDraw, TrustedDraw]
        if draw == 'paper':
            self._policy = PaperDraw(
                self.size, num_epochs, retention, retention_decay, standardize
            )
        else:
            self._policy = TrustedDraw(self.size, num_epochs, fixed, robust)
        # Embeddings, the nearest prototype and the label of each graph:
        self._embeddings = Feedback(self.__class__.__name__, 0)
        self._learn_groups = self._group is None
        self._active = False  # The check of the first epoch has been done.
        self._initial = copy_parameters(prototypes)
        # The trusted draw needs the nearest prototype only:
        optional = isinstance(self._module, HypersphericalPrototypes)
        self._options = {'nearest_only': True} if optional else {}

    def update(
        self, h: Tensor, y: Optional[Tensor], graph_idx: Tensor
    ) -> Tensor:
        r"""Record the embeddings of a mini-batch and return the loss of the
        prototypes.

        Add the result to the loss of the task.

        Args:
            h (torch.Tensor): The graph embeddings of shape :math:`(B, E)`.
            y (torch.Tensor, optional): The labels of shape :math:`(B)`
                (int64). If :obj:`None`, graphs belong to virtual classes.
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
        if isinstance(self._policy, PaperDraw):
            loss, scores = self.prototypes(h, y)
            self._record(graph_idx, scores)
            return loss
        loss, scores = self.prototypes(h, y, **self._options)
        if y is None:
            label = scores[:, 2:].floor_divide(self._num_prototypes)
        else:
            label = y.clone().view(-1, 1)
        # The planning concatenates them, as an operator takes 20 us here:
        columns = (h.detach().clone(), scores, label)
        self._record(graph_idx, *columns, feedback=self._embeddings)
        if self._embeddings.num_rows >= MAX_EMBEDDINGS:
            self._measure(*self._embeddings.pop())
        return loss

    def suspects(self, k: Optional[int] = None) -> Tensor:
        r"""Return the positions of the graphs that the sampler distrusts, or
        of the :obj:`k` graphs with the most unusual embeddings (int64).

        Positions are sorted by :attr:`scores`, in descending order. The
        default list may be empty although graphs are corrupted: it needs a
        clear gap of the scores in this epoch. Rank with :obj:`k` to inspect a
        data set, in early epochs: later, the model learns corrupted graphs.
        Unusual but correct graphs rank high, too; wrong labels do not.

        Args:
            k (int, optional): The number of graphs. Graphs without a score are
                excluded. (default: all distrusted graphs)

        Raises:
            ValueError: If :obj:`k` is no non-negative integer.
            NotImplementedError: For :obj:`draw="paper"`.
        """
        policy = self._current_policy()
        if isinstance(policy, PaperDraw):
            raise NotImplementedError(
                f"'suspects' of '{self.__class__.__name__}' needs "
                f"draw='trusted' (got 'paper')"
            )
        valid = k is None or (isinstance(k, int) and k >= 0)
        require(self, valid, 'k', 'be a non-negative integer', k)
        chosen = policy.suspects if k is None else ~policy.distance.isnan()
        graph_idx = chosen.nonzero().view(-1)
        order = policy.distance[graph_idx].argsort(descending=True)
        return graph_idx[order[:k]]

    @property
    def scores(self) -> Tensor:
        r"""Return the last score of each graph, NaN for graphs without one.

        The score is the logarithmic distance of the embedding of a graph from
        those of other graphs, or :math:`\omega` for :obj:`draw="paper"`. With
        several ranks, feedback counts once the next epoch is planned.
        """
        policy = self._current_policy()
        paper = isinstance(policy, PaperDraw)
        return policy.scores if paper else policy.distance  # type: ignore

    def _current_policy(self) -> Union[PaperDraw, TrustedDraw]:
        """Return the policy after the feedback of the current epoch."""
        pending = self._feedback.num_rows + self._embeddings.num_rows > 0
        if not pending or self.num_replicas > 1:  # Other ranks may not call.
            return self._policy
        other = copy.copy(self)  # Planning needs the feedback, too.
        for name in ['_policy', '_feedback', '_embeddings', '_group']:
            setattr(other, name, copy.deepcopy(getattr(self, name)))
        other._active = True  # Only planning warns.
        other._observe(*other._collect())
        return other._policy

    def _restart(self) -> None:
        super()._restart()
        self._embeddings.clear()

    def _extra_state(self) -> Dict[str, Any]:
        graph_idx, embedding = self._embeddings.gather(self.num_replicas)
        state = {'embedding_idx': graph_idx, 'embedding': embedding}
        if self._learn_groups:
            unknown = torch.full((self.size,), UNKNOWN)
            group = unknown if self._group is None else self._group.clone()
            state['group'] = group
        return {**state, **self._policy.state()}

    def _state_checks(self) -> Dict[str, Check]:
        checks = gder_state_checks(self._module, self.draw)
        return {**super()._state_checks(), **checks}

    def _load_extra_state(self, state: Dict[str, Any]) -> None:
        keys = self._policy.state()
        self._policy.load({key: state[key] for key in keys})
        self._embeddings.clear()
        if self.rank == 0 and state['embedding_idx'].numel() > 0:
            self._embeddings.add(state['embedding_idx'], state['embedding'])
        if self._learn_groups:
            group = state['group'].cpu().clone()
            self._group = group if bool((group != UNKNOWN).any()) else None
        self._active = self.epoch >= 0

    def _weights(self, epoch: int) -> Optional[Tensor]:
        assert isinstance(self._policy, TrustedDraw)
        return self._policy.weights(epoch)

    def _balance(self) -> float:
        assert isinstance(self._policy, TrustedDraw)
        return self._policy.balance

    def _draw(self, epoch: int) -> Tensor:
        if isinstance(self._policy, PaperDraw):
            return self._policy.draw(
                epoch, self.budget, self._drawn, self._generator
            )
        if self._auto_replacement:
            self.replacement = self._policy.needs_replacement(self.budget)
        out, suspects = super()._draw(epoch), self._policy.suspects
        if self._expected is not None and not bool(suspects.all()):
            # A loss weight must not undo the distrust in a graph:
            least = self._expected.masked_fill(suspects, math.inf).min()
            self._expected = torch.where(
                suspects, self._expected.clamp(least), self._expected
            )
        return out

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        if isinstance(self._policy, TrustedDraw):
            if self._learn_groups and graph_idx.numel() > 0:
                if self._group is None:
                    self._group = torch.full((self.size,), UNKNOWN)
                label = feedback[:, 2].nan_to_num(nan=UNKNOWN)
                self._group[graph_idx] = label.round().long()
        if not self._active and (graph_idx.numel() > 0 or self._finished):
            self._active = True
            warn_first_epoch(self, graph_idx.numel(), self._initial)
        self._policy.observe(graph_idx, feedback, self._group)

    def _collect(self) -> Tuple[Tensor, Tensor]:
        if isinstance(self._policy, PaperDraw):
            return keep_last(*self._gather(self._feedback))
        graph_idx, rows = self._gather(self._embeddings)
        gathered = self.num_replicas > 1 and dist.is_initialized()
        if graph_idx.numel() > 0 and not (gathered and self.rank > 0):
            self._measure(graph_idx, rows)  # Once for all ranks.
        graph_idx, feedback = self._gather(self._feedback)
        drawn, mean = average(graph_idx, feedback)
        if drawn.numel() < graph_idx.numel():
            # Virtual classes have no mean:
            mean[:, 2] = keep_last(graph_idx, feedback[:, 2])[1]
        return drawn, mean

    def _measure(self, graph_idx: Tensor, rows: Tensor) -> None:
        """Turn embeddings into feedback."""
        feedback = measure_embeddings(rows, self._num_prototypes)
        self._feedback.add(graph_idx, feedback)
        self._feedback.unchecked |= self._embeddings.unchecked

    def _statistics(self) -> Dict[str, Any]:
        if isinstance(self._policy, PaperDraw):
            return {}
        return {
            'num_suspects': int(self._policy.suspects.sum()),
            'balance': self._policy.balance,
        }

    @property
    def _module(self) -> torch.nn.Module:
        return getattr(self.prototypes, 'module', self.prototypes)

    @property
    def _num_prototypes(self) -> int:
        return getattr(self._module, 'num_prototypes', 1)
