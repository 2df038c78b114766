from typing import Any, Dict, Iterator, List, Optional, Sized, Tuple, Union

import torch
from torch import Tensor

from torch_geometric_ext.loader.check import check_class_arguments
from torch_geometric_ext.loader.class_groups import find_groups
from torch_geometric_ext.loader.draw import (
    balance_weight,
    expected_copies,
    raise_classes,
    systematic_sample,
)
from torch_geometric_ext.loader.epoch_sampler import EpochSampler
from torch_geometric_ext.loader.feedback import Feedback, average
from torch_geometric_ext.loader.history import History, plot_history
from torch_geometric_ext.loader.sampler_state import check_sampler_state
from torch_geometric_ext.ops.check_state_dict import Check


class DynamicSampler(EpochSampler):
    r"""Base class of samplers that draw a different subset of a data set in
    each epoch (dynamic data pruning).

    The base class draws :obj:`round(keep_ratio * N)` graphs (at least one) in
    each epoch, by default uniformly and without replacement. A sub-class
    implements :meth:`_weights`, the relative probability of each graph. A
    sub-class that learns from feedback also implements :meth:`_observe` and a
    public :obj:`update` that calls :meth:`_record`.

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        y (torch.Tensor, optional): The class of each graph, of shape
            :math:`(N)`, for :obj:`balance`, :obj:`min_per_class` and
            :meth:`history`. (default: the labels :obj:`y` of the data set)
        balance (float, optional): The exponent :math:`\beta` that weights
            each graph by :math:`{(N / (C \, N_{y_i}))}^{\beta}`, with the
            size :math:`N_c` of each of :math:`C` classes. With :obj:`1.0`, all
            classes are drawn equally often. (default: :obj:`0.0`)
        replacement (bool, optional): If set to :obj:`True`, a graph can be
            drawn several times in an epoch. (default: :obj:`False`)
        min_per_class (int, optional): The minimum number of draws of each
            class in an epoch, as far as it has that many graphs.
            (default: :obj:`0`)
        warmup_epochs (int, optional): Number of first epochs on all graphs.
            (default: :obj:`0`)
        anneal_epochs (int, optional): Number of last epochs on all graphs.
            (default: :obj:`0`)
        seed (int, optional): Seed of the sampler's generator, equal on all
            ranks. (default: :obj:`0`)
        num_replicas (int, optional): Number of ranks.
            (default: the world size, or one)
        rank (int, optional): Rank of this process.
            (default: the rank of this process, or zero)

    Raises:
        ValueError: If an argument is out of its range, or :obj:`balance` or
            :obj:`min_per_class` is given for labels that are not classes.

    .. rubric:: Details

    * **Planning.** The subset of an epoch is drawn when its iterator yields
      the first graph, or in :meth:`set_epoch`. All feedback of the previous
      epoch is available by then, including the last mini-batch.
    * **Feedback.** Feedback is keyed by :obj:`graph_idx`, the position of a
      graph in the data set. Shuffling, workers and ranks do not change the
      next subset. Feedback on a graph that is drawn several times is averaged.
    * **Draws.** The number of draws of each graph is its expectation rounded
      up or down, hence the number of draws of each class is, too.
      :meth:`loss_weight` returns the weights of an unbiased loss.
    * **Distributed training.** If :mod:`torch.distributed` is initialized,
      all ranks draw the same subset. Each rank yields every
      :obj:`num_replicas`-th graph of the subset, padded with its first graphs.
      Planning and :meth:`state_dict` gather feedback and need to be called on
      all ranks.
    * **Memory.** The sampler takes two bytes per graph of the data set, and
      eight bytes and the feedback per graph of the budget.
    """

    _num_feedback = 1  # Number of columns of the feedback.

    def __init__(
        self,
        dataset: Union[Sized, int],
        keep_ratio: float,
        num_epochs: int,
        *,
        y: Optional[Tensor] = None,
        balance: float = 0.0,
        replacement: bool = False,
        min_per_class: int = 0,
        warmup_epochs: int = 0,
        anneal_epochs: int = 0,
        seed: int = 0,
        num_replicas: Optional[int] = None,
        rank: Optional[int] = None,
    ) -> None:
        super().__init__(
            dataset,
            keep_ratio,
            num_epochs,
            warmup_epochs=warmup_epochs,
            anneal_epochs=anneal_epochs,
            num_replicas=num_replicas,
            rank=rank,
        )
        self.balance = balance
        self.replacement = replacement
        self.min_per_class = min_per_class
        check_class_arguments(self)
        self._generator = torch.Generator().manual_seed(seed)
        self._group = find_groups(self, dataset, y)
        # The expected draws of each graph; none if they are all the same:
        self._expected: Optional[Tensor] = None
        self._feedback = Feedback(self.__class__.__name__, self._num_feedback)
        self._history = History(self.size)
        # The last two loaded states, until an iterator starts:
        self._loads: List[Dict[str, Any]] = []

    def loss_weight(self, graph_idx: Tensor) -> Tensor:
        r"""Return the weights that make the loss of the drawn graphs an
        unbiased estimate of the mean loss of the data set.

        The weight of graph :math:`i` is :math:`B / (N \pi_i)` for
        :math:`\pi_i` expected draws and a budget of :math:`B`. It is one if
        draws are uniform. With :obj:`loss = (weight * loss).mean()`, a
        balanced draw serves the distribution of the data set instead of a
        balanced one.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs, of shape
                :math:`(B)` (int64).

        Returns:
            The weights, of shape :math:`(B)` (float).
        """
        if self._expected is None:
            return torch.ones(graph_idx.shape, device=graph_idx.device)
        # Move it once, so that mini-batches do not wait for it. A copy to the
        # CPU that does not block could be read too early:
        self._expected = self._expected.to(
            graph_idx.device, non_blocking=not graph_idx.is_cpu
        )
        scale = len(self._order) / self.size
        return scale / self._expected[graph_idx]

    def history(self) -> Dict[str, List[Any]]:
        r"""Return statistics of the planned epochs, one list per statistic.

        * :obj:`epoch`, :obj:`num_graphs`: the epoch and its number of draws
        * :obj:`num_distinct`: the number of different graphs
        * :obj:`turnover`: the fraction of these graphs that were not drawn in
          the previous epoch
        * :obj:`coverage`: the fraction of the data set drawn so far
        * :obj:`per_class`: the number of draws of each class, if the class of
          each drawn graph is known. Pass :obj:`y` for data sets on disk or
          with a :obj:`transform`.
        * :obj:`num_suspects`, :obj:`balance`: the number of distrusted graphs
          and the exponent of the class weights, for
          :class:`~torch_geometric_ext.loader.GDeRSampler`

        .. code-block:: python

            >>> from torch_geometric_ext.loader import SoftRandomSampler
            >>> sampler = SoftRandomSampler(6, keep_ratio=0.5, num_epochs=2)
            >>> _ = list(sampler), list(sampler)
            >>> sampler.history()['num_graphs']
            [3, 3]
        """
        return self._history.as_dict()

    def plot(self) -> Any:
        r"""Plot :meth:`history` and return the :obj:`matplotlib` figure."""
        return plot_history(self.history())

    def state_dict(self, consumed: Optional[int] = None) -> Dict[str, Any]:
        r"""Return the state of the sampler.

        A sampler that loads the state yields the same graphs in the same
        order. It starts with the current epoch if no iterator has started it,
        with the rest of the current epoch within an epoch, and with the next
        epoch otherwise.

        Args:
            consumed (int, optional): Number of graphs of the current epoch
                that the model was trained on, over all ranks, for states
                within an epoch. Samplers with an :obj:`update` count them,
                if each mini-batch was passed to it. (default: :obj:`None`)

        Raises:
            ValueError: If :obj:`consumed` exceeds the epoch.
        """
        graph_idx, feedback = self._feedback.gather(self.num_replicas)
        extra = self._extra_state()
        index = [x for key, x in extra.items() if key.endswith('_idx')]
        started, consumed = self._progress(
            consumed, torch.cat([graph_idx, *index])
        )
        return {
            'policy': self.__class__.__name__,
            'size': self.size,
            'budget': self.budget,
            'epoch': self.epoch,
            'started': started,
            'consumed': consumed,
            'order': self._order.clone(),
            'generator': self._generator.get_state(),
            'expected': self._expected,
            'graph_idx': graph_idx,
            'feedback': feedback,
            'seen': self._history.seen.clone(),
            'history': [dict(record) for record in self._history.records],
            **extra,
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Load the state of a sampler.

        Within an epoch, the next iterator yields the rest of the epoch, also
        with another number of ranks, and :meth:`set_epoch` of this epoch does
        not change that. At the end of an epoch, it yields the next epoch.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete or damaged, or is that of
                another class, number of graphs or budget. The sampler is not
                changed in these cases.
            TypeError: If the state is not a dictionary.
        """
        checks = self._state_checks()
        state = check_sampler_state(
            self, state_dict, self._extra_state(), checks
        )
        self.epoch, self._started = state['epoch'], state['started']
        self._finished = False
        self._set_order(state['order'].cpu().clone())
        self._ended, self._position = self._started, state.get('consumed', 0)
        self._expected = state['expected']
        self._generator.set_state(state['generator'].cpu())
        self._history.records = [dict(row) for row in state['history']]
        self._history.seen = state['seen'].cpu().clone()
        self._feedback.clear()
        # The feedback of all ranks. Only one rank holds it, as ranks gather:
        if self.rank == 0 and state['graph_idx'].numel() > 0:
            self._feedback.add(state['graph_idx'], state['feedback'])
        self._load_extra_state(state)
        self._loads = [*self._loads[-1:], state]

    def _load_iterator(self, position: int) -> None:
        # With workers, a loader saves the sampler ahead of the feedback. Keep
        # the state with more feedback that was loaded before:
        if len(self._loads) == 2:
            first, last = self._loads
            same = first['epoch'] == last['epoch']
            count = first.get('consumed', 0)
            if same and last.get('consumed', 0) <= count <= position:
                self.load_state_dict(first)
        super()._load_iterator(position)

    def _start(self, position: Optional[int]) -> Tuple[int, Iterator[int]]:
        self._loads = []
        return super()._start(position)

    def _extra_state(self) -> Dict[str, Any]:
        """Return the state that a sub-class adds, under keys of its own."""
        return {}

    def _state_checks(self) -> Dict[str, Check]:
        """Return checks of the values of a state, after those of shapes."""
        num_columns = self._feedback.num_columns
        return {'feedback': lambda x: x.size(1) == num_columns}

    def _load_extra_state(self, state: Dict[str, Any]) -> None:
        """Load the state that a sub-class adds."""

    def _weights(self, epoch: int) -> Optional[Tensor]:
        r"""Return the relative probability of each graph in an epoch.

        Args:
            epoch (int): The epoch, counted from zero.

        Returns:
            Non-negative weights of any scale, of shape :math:`(N)`, or
            :obj:`None` for equal weights.
        """
        return None

    def _balance(self) -> float:
        r"""Return the exponent of the class weights, before :meth:`_draw`."""
        return self.balance

    def _draw(self, epoch: int) -> Tensor:
        r"""Draw the subset of an epoch.

        By default, draws by :meth:`_weights` and the arguments of the sampler.

        Args:
            epoch (int): The epoch, counted from zero.

        Returns:
            The positions of :obj:`budget` graphs in any order (int64).
        """
        weight, group = self._weights(epoch), self._group
        balance = 0.0 if group is None else self._balance()
        if weight is None and balance == 0 and self.min_per_class == 0:
            perm = torch.randperm(self.size, generator=self._generator)
            return perm[: self.budget]
        if weight is None:
            weight = torch.ones(self.size, dtype=torch.double)
        weight = weight.double()
        if group is not None and balance > 0:
            weight = balance_weight(weight, group, balance)
        expected = expected_copies(weight, self.budget, self.replacement)
        if self.min_per_class > 0 and group is not None:
            expected = raise_classes(
                expected, group, self.min_per_class, self.replacement
            )
        self._expected = expected.float()
        return systematic_sample(expected, self.budget, self._generator, group)

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        r"""Process the feedback of the previous epoch, before :meth:`_draw`.

        Args:
            graph_idx (torch.Tensor): The ascending positions of the graphs
                with feedback (int64).
            feedback (torch.Tensor): The mean feedback on each of these graphs,
                one row per graph.
        """

    def _record(
        self,
        graph_idx: Tensor,
        *values: Tensor,
        feedback: Optional[Feedback] = None,
    ) -> None:
        r"""Record the feedback of a mini-batch for :meth:`_observe`.

        Tensors on other devices are validated in the planning of the next
        epoch, to avoid a synchronization.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs, of shape
                :math:`(B)` (int64).
            *values (torch.Tensor): The columns of the feedback, of shapes
                :math:`(B, F_1)`, :math:`(B, F_2)`, ...
            feedback (Feedback, optional): The collection.
                (default: the one for :meth:`_observe`)
        """
        feedback = self._feedback if feedback is None else feedback
        if graph_idx.device.type == 'cpu':
            feedback.check(graph_idx, self._drawn, self.epoch)
        else:
            feedback.unchecked = True
        feedback.add(graph_idx, *values)
        self._started |= self._running  # If `set_epoch` followed the iterator.
        self._batch_size = max(self._batch_size, graph_idx.size(0))

    def _collect(self) -> Tuple[Tensor, Tensor]:
        """Return the mean feedback on each graph of the epoch."""
        return average(*self._gather(self._feedback))

    def _gather(self, feedback: Feedback) -> Tuple[Tensor, Tensor]:
        """Return the checked feedback of all ranks, and clear it."""
        graph_idx, values = feedback.gather(self.num_replicas)
        if feedback.unchecked:
            feedback.check(graph_idx, self._drawn, self.epoch)
        feedback.clear()
        return graph_idx, values

    def _statistics(self) -> Dict[str, Any]:
        """Return more statistics of the planned epoch for :meth:`history`."""
        return {}

    def _restart(self) -> None:
        self._feedback.clear()  # New feedback replaces it.

    def _plan(self, epoch: int) -> None:
        if self.epoch >= 0:
            self._observe(*self._collect())
        self._expected = None
        if self._is_full(epoch):
            graphs = torch.arange(self.size)
        else:
            graphs = self._draw(epoch)
        previous = self._drawn.clone()
        perm = torch.randperm(graphs.numel(), generator=self._generator)
        self._set_order(graphs.index_select(0, perm))
        self.epoch = epoch
        masks, more = (self._drawn, previous), self._statistics()
        self._history.add(epoch, graphs, *masks, self._group, **more)
