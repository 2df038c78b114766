from abc import abstractmethod
from typing import Any, Dict, Iterator, List, Optional, Sized, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

CHUNK_SIZE = 1 << 16  # Graphs held as Python integers at a time.


class DynamicSampler(Sampler[int]):
    r"""Base class of samplers that draw a different part of a data set in
    each epoch.

    It holds what all policies share: a fixed budget of
    :obj:`round(keep_ratio * N)` graphs (at least one), epochs, randomness,
    feedback by graph, ranks, and resuming. A policy implements :meth:`_draw`
    and, if it learns, :meth:`_observe` and a public :obj:`update` that hands
    its feedback to :meth:`_record`.

    * **Planning is lazy.** The graphs of an epoch are drawn at the first
      :obj:`next()` of the next iterator (or in :meth:`set_epoch`), when all
      feedback of the previous epoch has arrived, and never when an iterator
      ends: loaders exhaust it before the last mini-batch has been trained on.
    * **Feedback belongs to a graph.** It is keyed by :obj:`graph_idx` and
      taken in by position in the data set, so that neither shuffling nor
      workers nor ranks change what is drawn next.
    * **Ranks share one plan.** If :mod:`torch.distributed` is initialized,
      all ranks draw the same graphs, each yields every :obj:`num_replicas`-th
      of them (the first ones are repeated to fill up), and feedback is
      gathered before an epoch is planned. Planning and :meth:`state_dict`
      are then collective: call them on every rank.

    The sampler keeps one byte for each graph of the data set, and for each
    graph of the budget eight bytes and its feedback.

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Share of the graphs in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        seed (int, optional): Seed of the sampler's own generator; the same on
            all ranks. (default: :obj:`0`)
        num_replicas (int, optional): Number of ranks.
            (default: the world size, or one)
        rank (int, optional): Rank of this process.
            (default: the rank of this process, or zero)

    Raises:
        ValueError: If an argument is out of its range.
    """

    _state_keys: Tuple[str, ...] = (
        'policy',
        'size',
        'budget',
        'epoch',
        'started',
        'order',
        'generator',
        'graph_idx',
        'feedback',
    )

    def __init__(
        self,
        dataset: Union[Sized, int],
        keep_ratio: float,
        num_epochs: int,
        *,
        seed: int = 0,
        num_replicas: Optional[int] = None,
        rank: Optional[int] = None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if distributed else 1
        if rank is None:
            rank = dist.get_rank() if distributed else 0
        size = dataset if isinstance(dataset, int) else len(dataset)

        name = self.__class__.__name__
        if size < 1:
            raise ValueError(
                f"'dataset' of '{name}' needs to hold at least one graph "
                f'(got {size})'
            )
        if not 0 < keep_ratio <= 1:
            raise ValueError(
                f"'keep_ratio' of '{name}' needs to be in (0, 1] "
                f'(got {keep_ratio})'
            )
        if num_epochs < 1:
            raise ValueError(
                f"'num_epochs' of '{name}' needs to be at least one "
                f'(got {num_epochs})'
            )
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"'rank' of '{name}' needs to be in [0, {num_replicas}), as "
                f"given by 'num_replicas' (got {rank})"
            )
        self.size = size
        self.keep_ratio = keep_ratio
        self.num_epochs = num_epochs
        self.num_replicas = num_replicas
        self.rank = rank
        self.budget = max(round(keep_ratio * size), 1)
        self.epoch = -1  # The epoch drawn last.

        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)  # Graphs of the epoch.
        self._drawn = torch.zeros(size, dtype=torch.bool)  # The same as mask.
        self._started = True  # An iterator has started on the epoch,
        self._finished = False  # and has come to its end.
        self._feedback: List[Tuple[Tensor, Tensor]] = []
        self._unchecked = False  # Some feedback came from another device.

    def __len__(self) -> int:
        r"""The number of graphs this rank sees in an epoch."""
        return -(-self.budget // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        if self._started:
            self._plan(self.epoch + 1)
        self._started, self._finished = True, False
        total = len(self) * self.num_replicas
        position = torch.arange(self.rank, total, self.num_replicas)
        for chunk in self._order[position % self.budget].split(CHUNK_SIZE):
            yield from chunk.tolist()
        self._finished = True

    def set_epoch(self, epoch: int) -> None:
        r"""Makes the next iterator yield the graphs of the given epoch.

        Optional: without it, every iterator is the next epoch. The epoch
        drawn last is repeated in the same order, any other one is drawn now.

        Args:
            epoch (int): The epoch, counted from zero.

        Raises:
            ValueError: If :obj:`epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(
                f"'epoch' of '{self.__class__.__name__}' needs to be at least "
                f'zero (got {epoch})'
            )
        if epoch != self.epoch:
            self._plan(epoch)
        self._started = False

    def steps_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        r"""The number of mini-batches of an epoch on this rank, as needed by
        learning rate schedulers.

        Args:
            batch_size (int): Number of graphs in a mini-batch.
            drop_last (bool, optional): Whether the loader drops the last,
                incomplete mini-batch. (default: :obj:`False`)

        Raises:
            ValueError: If :obj:`batch_size` is not positive.
        """
        if batch_size < 1:
            raise ValueError(
                f"'batch_size' of '{self.__class__.__name__}' needs to be at "
                f'least one (got {batch_size})'
            )
        length = len(self)
        return length // batch_size if drop_last else -(-length // batch_size)

    def state_dict(self) -> Dict[str, Any]:
        r"""Returns the state of the sampler.

        A sampler that loads it goes on with the same graphs in the same
        order: with the next epoch, if the current one has been started, and
        with the current one otherwise or after a :meth:`set_epoch` to it.
        """
        graph_idx, feedback = self._gather()
        return {
            'policy': self.__class__.__name__,
            'size': self.size,
            'budget': self.budget,
            'epoch': self.epoch,
            'started': self._started,
            'order': self._order.clone(),
            'generator': self._generator.get_state(),
            'graph_idx': graph_idx,
            'feedback': feedback,
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Loads the state of a sampler over the same number of graphs.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete, or belongs to another class
                of samplers, number of graphs or budget. The sampler is
                unchanged then.
        """
        expected = {
            'policy': self.__class__.__name__,
            'size': self.size,
            'budget': self.budget,
        }
        for key, value in expected.items():
            if state_dict.get(key) != value:
                raise ValueError(
                    f"'state_dict' of '{self.__class__.__name__}' needs to be "
                    f"of the same '{key}' (expected {value}, got "
                    f'{state_dict.get(key)})'
                )
        missing = [key for key in self._state_keys if key not in state_dict]
        if missing:
            raise ValueError(
                f"'state_dict' of '{self.__class__.__name__}' needs to hold "
                f'{list(self._state_keys)} (got none of {missing})'
            )
        order, generator, graph_idx, feedback = (
            state_dict[key].cpu()
            for key in ['order', 'generator', 'graph_idx', 'feedback']
        )
        epoch, started = state_dict['epoch'], state_dict['started']

        self.epoch, self._started = epoch, started
        self._set_order(order.clone())
        self._generator.set_state(generator)
        self._feedback, self._unchecked = [], False
        # It is that of all ranks, which gather it again:
        if self.rank == 0 and graph_idx.numel() > 0:
            self._feedback.append((graph_idx, feedback))

    @abstractmethod
    def _draw(self, epoch: int) -> Tensor:
        r"""Draws the positions of the graphs of :obj:`epoch`, in any order,
        :obj:`[budget]`.
        """

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        r"""Takes in the feedback of the epoch that has ended: one row for each
        graph that got any (the last one given), ordered by :obj:`graph_idx`.
        """

    def _record(self, graph_idx: Tensor, feedback: Tensor) -> None:
        r"""Keeps the feedback :obj:`[B, F]` of a mini-batch for
        :meth:`_observe`. Waits for no device: what lies on another device is
        checked when the next epoch is planned.
        """
        if graph_idx.device.type == 'cpu':
            self._check_drawn(graph_idx)
        else:
            self._unchecked = True
        # The caller may reuse its tensor, and one that comes from a worker
        # holds a file descriptor as long as it lives:
        self._feedback.append((graph_idx.clone(), feedback))

    def _plan(self, epoch: int) -> None:
        if self.epoch >= 0:
            graph_idx, feedback = self._gather()
            if self._unchecked:
                self._check_drawn(graph_idx)
            self._observe(graph_idx, feedback)
            self._feedback, self._unchecked = [], False
        graphs = self._draw(epoch)
        perm = torch.randperm(graphs.numel(), generator=self._generator)
        self._set_order(graphs[perm])
        self.epoch = epoch

    def _set_order(self, order: Tensor) -> None:
        self._drawn[self._order] = False
        self._drawn[order] = True
        self._order = order

    def _gather(self) -> Tuple[Tensor, Tensor]:
        r"""The feedback of all ranks so far, the last one for each graph."""
        pairs = self._feedback
        if not pairs:
            pairs = [(torch.empty(0, dtype=torch.long), torch.empty(0, 0))]
        graph_idx = _cat([pair[0] for pair in pairs])
        feedback = _cat([pair[1] for pair in pairs])

        if self.num_replicas > 1 and dist.is_initialized():
            gathered: List[Any] = [None] * self.num_replicas
            dist.all_gather_object(gathered, (graph_idx, feedback))
            gathered = [pair for pair in gathered if pair[0].numel() > 0]
            if gathered:
                graph_idx = torch.cat([pair[0] for pair in gathered])
                feedback = torch.cat([pair[1] for pair in gathered])

        graph_idx, perm = graph_idx.sort(stable=True)
        feedback = feedback[perm]
        replaced = graph_idx[:-1] == graph_idx[1:]
        if replaced.any():
            last = torch.cat([~replaced, replaced.new_ones(1)])
            graph_idx, feedback = graph_idx[last], feedback[last]
        return graph_idx, feedback

    def _check_drawn(self, graph_idx: Tensor) -> None:
        try:
            valid = bool(self._drawn.index_select(0, graph_idx).all())
        except IndexError:
            valid = False
        if not valid:
            raise ValueError(
                f"'graph_idx' of '{self.__class__.__name__}' needs to hold "
                f'graphs drawn in the current epoch {self.epoch} '
                f'(got {graph_idx.tolist()[:10]}). Iterate over a loader with '
                f'this sampler, and wrap the very data set it loads from '
                f"(a 'Subset', too) in an 'IndexedDataset'"
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.size}, '
            f'keep_ratio={self.keep_ratio}, num_epochs={self.num_epochs})'
        )


def _cat(tensors: List[Tensor]) -> Tensor:
    if len({x.device for x in tensors}) > 1:  # Some were loaded from a state.
        tensors = [x.cpu() for x in tensors]
    return torch.cat(tensors).cpu()
