from typing import Any, Dict, Iterator, List, Optional, Sized, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from torch_geometric_ext.loader.check import check_arguments, require
from torch_geometric_ext.ops.check_state_dict import (
    check_state_dict,
    is_integer,
)

CHUNK_SIZE = 1 << 16  # Python integers that an iterator holds, a choice.


class EpochSampler(Sampler[int]):
    r"""Base class of samplers with an exact number of graphs in each epoch,
    split over ranks.

    A sub-class implements :meth:`_plan`, which draws the graphs of an epoch
    and passes them to :meth:`_set_order`. See
    :class:`~torch_geometric_ext.loader.DynamicSampler` for the arguments.

    Attributes:
        whole_length (bool): If set to :obj:`True`, the length counts the whole
            epoch instead of its rest, for trainers that count the mini-batches
            of an interrupted epoch themselves. (default: :obj:`False`)
    """

    whole_length = False

    def __init__(
        self,
        dataset: Union[Sized, int],
        keep_ratio: float,
        num_epochs: int,
        *,
        warmup_epochs: int = 0,
        anneal_epochs: int = 0,
        num_replicas: Optional[int] = None,
        rank: Optional[int] = None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if distributed else 1
        if rank is None:
            rank = dist.get_rank() if distributed else 0
        size = dataset if isinstance(dataset, int) else len(dataset)

        self.size = size
        self.keep_ratio = keep_ratio
        self.num_epochs = num_epochs
        self.warmup_epochs = warmup_epochs
        self.anneal_epochs = anneal_epochs
        self.num_replicas = num_replicas
        self.rank = rank
        check_arguments(self)
        self.budget = max(round(keep_ratio * size), 1)
        self.epoch = -1  # The last planned epoch.

        self._order = torch.empty(0, dtype=torch.long)  # Graphs of the epoch.
        self._drawn = torch.zeros(size, dtype=torch.bool)  # As a mask.
        self._started = True  # The next iterator plans the next epoch.
        self._running = False  # An iterator has started the planned epoch.
        self._finished = False  # An iterator has finished the epoch.
        self._ended = False  # A loaded state is of the end of its epoch.
        # The first graph of the next iterator in the order of all ranks, if a
        # state was loaded that is of the middle of the epoch:
        self._position = 0
        self._batch_size = 0  # Of the largest mini-batch with feedback.

    def __len__(self) -> int:
        r"""Return the number of graphs of the next iterator on this rank:
        those of its epoch, or of the rest of an interrupted epoch.
        """
        if self._started:
            return self._length(self.next_epoch)
        return self._num_left(0 if self.whole_length else self._position)

    def __iter__(self) -> Iterator[int]:
        return EpochIterator(self)

    @property
    def next_epoch(self) -> int:
        """The epoch of the next iterator."""
        return self.epoch + self._started

    @property
    def num_planned(self) -> int:
        """The number of graphs of the planned epoch on all ranks."""
        return len(self._order)

    def peek(self) -> List[int]:
        r"""Return the graphs of the next iterator on this rank, if
        :meth:`set_epoch` has planned its epoch.

        Raises:
            ValueError: If the epoch is not planned.
        """
        planned = "be planned by 'set_epoch'"
        require(self, not self._started, 'epoch', planned, self.epoch)
        return self._rest(self._position).tolist()

    def set_epoch(self, epoch: int) -> None:
        r"""Set the epoch of the next iterator.

        By default, each iterator is the next epoch. The last planned epoch is
        repeated in the same order. If :meth:`load_state_dict` has loaded it in
        its middle, the next iterator yields its rest instead. Any other epoch
        is planned in this call.

        Args:
            epoch (int): The epoch, counted from zero.

        Raises:
            ValueError: If :obj:`epoch` is negative.
        """
        require(self, epoch >= 0, 'epoch', 'be at least zero', epoch)
        if epoch != self.epoch:
            self._plan(epoch)
        elif self._position in (0, len(self._order)):
            self._position = 0
            if self._ended:  # Otherwise, an iterator may run already.
                self._restart()
        self._started = self._ended = False

    def steps_per_epoch(self, batch_size: int, drop_last: bool = False) -> int:
        r"""Return the number of mini-batches on this rank in the epoch of the
        next iterator.

        Args:
            batch_size (int): Number of graphs per mini-batch.
            drop_last (bool, optional): If set to :obj:`True`, the loader drops
                the last, incomplete mini-batch. (default: :obj:`False`)

        Raises:
            ValueError: If :obj:`batch_size` is not positive.
        """
        return self._num_steps(len(self), batch_size, drop_last)

    def total_steps(self, batch_size: int, drop_last: bool = False) -> int:
        r"""Return the number of mini-batches on this rank in all epochs, which
        learning rate schedulers need.

        Args:
            batch_size (int): Number of graphs per mini-batch.
            drop_last (bool, optional): If set to :obj:`True`, the loader drops
                the last, incomplete mini-batch. (default: :obj:`False`)

        Raises:
            ValueError: If :obj:`batch_size` is not positive.
        """
        return sum(
            self._num_steps(self._length(epoch), batch_size, drop_last)
            for epoch in range(self.num_epochs)
        )

    def _plan(self, epoch: int) -> None:
        """Draw the graphs of an epoch."""
        raise NotImplementedError

    def _restart(self) -> None:
        """Prepare to start the current epoch from its first graph."""

    def _load_iterator(self, position: int) -> None:
        """Prepare for an iterator that loads its own position."""
        self._started, self._ended, self._position = True, True, 0

    def _is_full(self, epoch: int) -> bool:
        anneal = self.anneal_epochs > 0
        last = epoch >= self.num_epochs - self.anneal_epochs
        return epoch < self.warmup_epochs or (anneal and last)

    def _length(self, epoch: int) -> int:
        num_graphs = self.size if self._is_full(epoch) else self.budget
        return -(-num_graphs // self.num_replicas)

    def _num_steps(self, length: int, batch_size: int, drop_last: bool) -> int:
        require(
            self, batch_size >= 1, 'batch_size', 'be at least one', batch_size
        )
        return length // batch_size if drop_last else -(-length // batch_size)

    def _set_order(self, order: Tensor) -> None:
        self._drawn[self._order] = False
        self._drawn[order] = True
        self._order = order
        self._running, self._ended = False, False
        self._position, self._batch_size = 0, 0

    def _start(self, position: Optional[int]) -> Tuple[int, Iterator[int]]:
        """Start an epoch, or its rest from a position.

        Returns:
            The first position, and the graphs of this rank.
        """
        if position is None:
            if self._started:
                self._plan(self.next_epoch)
            position = self._position
            if position == 0 and self._running:
                self._restart()
        self._started, self._running = True, True
        self._finished, self._ended = False, False
        return position, self._yield(position)

    def _yield(self, position: int) -> Iterator[int]:
        for chunk in self._rest(position).split(CHUNK_SIZE):
            yield from chunk.tolist()
        self._finished, self._position = True, 0

    def _rest(self, position: int) -> Tensor:
        """Return the graphs of the epoch on this rank from a position on."""
        step = torch.arange(self._num_left(position))
        index = position + self.rank + step * self.num_replicas
        return self._order[index % len(self._order)]

    def _num_left(self, position: int) -> int:
        num_graphs = max(len(self._order) - position, 0)
        return -(-num_graphs // self.num_replicas)

    def _progress(
        self, consumed: Optional[int], graph_idx: Tensor
    ) -> Tuple[bool, int]:
        """Return whether the next iterator plans the next epoch, and the
        number of graphs of the current one that were trained on.

        Args:
            consumed (int, optional): The number, if the caller knows it.
            graph_idx (torch.Tensor): The graphs with feedback, of all ranks.
        """
        num_graphs = len(self._order)
        if consumed is not None:
            last = num_graphs + self.num_replicas - 1
            in_range = is_integer(consumed, 0, last)
            options = f'be in [0, {last}], the graphs of the epoch'
            require(self, in_range, 'consumed', options, consumed)
            return consumed >= num_graphs, min(consumed, num_graphs)
        if not self._started or self._ended:
            return self._started, self._position
        consumed = self._count_first(graph_idx)
        # A loader with `drop_last` drops an incomplete mini-batch:
        is_partial = self._num_left(consumed) < self._batch_size
        is_last = consumed == num_graphs or (self._finished and is_partial)
        return consumed == 0 or is_last, consumed

    def _count_first(self, graph_idx: Tensor) -> int:
        """Return the number of given graphs, or zero if they are not the
        first ones of the epoch.
        """
        num_graphs = len(self._order)
        if not 0 < graph_idx.numel() < num_graphs + self.num_replicas:
            return 0
        first = self._order[torch.arange(graph_idx.numel()) % num_graphs]
        is_first = torch.equal(first.sort().values, graph_idx.sort().values)
        return min(graph_idx.numel(), num_graphs) if is_first else 0

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.size}, '
            f'keep_ratio={self.keep_ratio}, num_epochs={self.num_epochs})'
        )


class EpochIterator(Iterator[int]):
    """Iterator over the graphs of an epoch on one rank.

    The first graph starts the epoch. The state is the one that
    :class:`torchdata.stateful_dataloader.StatefulDataLoader` asks for.

    Args:
        sampler (EpochSampler): The sampler.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler
        self._graphs: Optional[Iterator[int]] = None
        # Of the next graph in the order of all ranks, if there was any:
        self._position: Optional[int] = None

    def __next__(self) -> int:
        if self._graphs is None:
            self._position, self._graphs = self._sampler._start(self._position)
        graph = next(self._graphs)
        assert self._position is not None
        self._position += self._sampler.num_replicas
        return graph

    def state_dict(self) -> Dict[str, Any]:
        """Return the position in the epoch."""
        position, last = self._position, len(self._sampler._order)
        if position is not None:
            position = min(position, last)  # Ranks repeat graphs at the end.
        return {'epoch': self._sampler.epoch, 'position': position}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Continue at the position of a state. Load the state of the sampler
        first.

        Raises:
            ValueError: If the state is damaged, or of another epoch than that
                of the sampler.
            TypeError: If the state is not a dictionary.
        """
        sampler = self._sampler
        last = len(sampler._order)
        check_state_dict(
            self,
            state_dict,
            {'epoch': sampler.epoch},
            {'position': lambda x: x is None or is_integer(x, 0, last)},
        )
        self._position = state_dict['position']
        if self._position is not None:
            sampler._load_iterator(self._position)
