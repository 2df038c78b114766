from typing import Iterator, Optional, Sized, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from torch_geometric_ext.loader.check import check_arguments, require

CHUNK_SIZE = 1 << 16  # Python integers that an iterator holds, a choice.


class EpochSampler(Sampler[int]):
    r"""Base class of samplers with an exact number of graphs in each epoch,
    split over ranks.

    A sub-class implements :meth:`_plan`, which draws the graphs of an epoch
    and passes them to :meth:`_set_order`. See
    :class:`~torch_geometric_ext.loader.DynamicSampler` for the arguments.
    """

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
        self._started = True  # An iterator has started the epoch.
        self._finished = False  # An iterator has finished the epoch.

    def __len__(self) -> int:
        r"""Return the number of graphs on this rank in the epoch of the next
        iterator.
        """
        return self._length(self.epoch + self._started)

    def __iter__(self) -> Iterator[int]:
        if self._started:
            self._plan(self.epoch + 1)
        self._started, self._finished = True, False
        total = self._length(self.epoch) * self.num_replicas
        position = torch.arange(self.rank, total, self.num_replicas)
        for chunk in self._order[position % len(self._order)].split(
            CHUNK_SIZE
        ):
            yield from chunk.tolist()
        self._finished = True

    def set_epoch(self, epoch: int) -> None:
        r"""Set the epoch of the next iterator.

        By default, each iterator is the next epoch. The last planned epoch is
        repeated in the same order. Any other epoch is planned in this call.

        Args:
            epoch (int): The epoch, counted from zero.

        Raises:
            ValueError: If :obj:`epoch` is negative.
        """
        require(self, epoch >= 0, 'epoch', 'be at least zero', epoch)
        if epoch != self.epoch:
            self._plan(epoch)
        else:
            self._restart()
        self._started = False

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
        """Prepare to repeat the current epoch."""

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

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.size}, '
            f'keep_ratio={self.keep_ratio}, num_epochs={self.num_epochs})'
        )
