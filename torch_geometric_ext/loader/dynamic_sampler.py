from abc import abstractmethod
from typing import Any, Dict, Iterator, List, Optional, Sized, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

CHUNK_SIZE = 1 << 16  # Python integers that an iterator holds, a choice.

STATE_KEYS = (
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


class DynamicSampler(Sampler[int]):
    r"""Base class of samplers that draw a different subset of a data set in
    each epoch (dynamic data pruning).

    The base class manages the budget of :obj:`round(keep_ratio * N)` graphs
    (at least one), epochs, random numbers, feedback, distributed training and
    checkpoints. A sub-class implements :meth:`_draw`. A sub-class that learns
    from feedback also implements :meth:`_observe` and a public :obj:`update`
    that calls :meth:`_record`.

    * **Planning.** The subset of an epoch is drawn when its iterator yields
      the first graph, or in :meth:`set_epoch`. All feedback of the previous
      epoch is available by then, including the last mini-batch.
    * **Feedback.** Feedback is keyed by :obj:`graph_idx`, the position of a
      graph in the data set. Shuffling, workers and ranks do not change the
      next subset.
    * **Distributed training.** If :mod:`torch.distributed` is initialized,
      all ranks draw the same subset. Each rank yields every
      :obj:`num_replicas`-th graph of the subset, padded with its first graphs.
      Planning and :meth:`state_dict` gather feedback and need to be called on
      all ranks.

    The sampler takes one byte per graph of the data set, and eight bytes and
    the feedback per graph of the budget.

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        seed (int, optional): Seed of the sampler's generator, equal on all
            ranks. (default: :obj:`0`)
        num_replicas (int, optional): Number of ranks.
            (default: the world size, or one)
        rank (int, optional): Rank of this process.
            (default: the rank of this process, or zero)

    Raises:
        ValueError: If an argument is out of its range.
    """

    _state_keys: Tuple[str, ...] = STATE_KEYS

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
                f"'dataset' of '{name}' needs to have at least one graph "
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
                f"set by 'num_replicas' (got {rank})"
            )
        self.size = size
        self.keep_ratio = keep_ratio
        self.num_epochs = num_epochs
        self.num_replicas = num_replicas
        self.rank = rank
        self.budget = max(round(keep_ratio * size), 1)
        self.epoch = -1  # The last planned epoch.

        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)  # Graphs of the epoch.
        self._drawn = torch.zeros(size, dtype=torch.bool)  # As a mask.
        self._started = True  # An iterator has started the epoch.
        self._finished = False  # An iterator has finished the epoch.
        self._feedback: List[Tuple[Tensor, Tensor]] = []
        self._unchecked = False  # Feedback on other devices is not validated.

    def __len__(self) -> int:
        r"""Return the number of graphs per epoch on this rank."""
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
        r"""Set the epoch of the next iterator.

        By default, each iterator is the next epoch. The last planned epoch is
        repeated in the same order. Any other epoch is planned in this call.

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
        r"""Return the number of mini-batches per epoch on this rank, which
        learning rate schedulers need.

        Args:
            batch_size (int): Number of graphs per mini-batch.
            drop_last (bool, optional): If set to :obj:`True`, the loader drops
                the last, incomplete mini-batch. (default: :obj:`False`)

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
        r"""Return the state of the sampler.

        A sampler that loads the state yields the same graphs in the same
        order. It starts with the current epoch if no iterator has started it,
        and with the next epoch otherwise. :meth:`set_epoch` repeats the
        current epoch.
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
        r"""Load the state of a sampler.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete, or is that of another
                class, number of graphs or budget. The sampler is not changed
                in these cases.
        """
        expected = {
            'policy': self.__class__.__name__,
            'size': self.size,
            'budget': self.budget,
        }
        for key, value in expected.items():
            if state_dict.get(key) != value:
                raise ValueError(
                    f"'state_dict' of '{self.__class__.__name__}' needs to "
                    f"have the same '{key}' (expected {value}, got "
                    f'{state_dict.get(key)})'
                )
        missing = [key for key in self._state_keys if key not in state_dict]
        if missing:
            raise ValueError(
                f"'state_dict' of '{self.__class__.__name__}' needs to have "
                f'the keys {list(self._state_keys)} (got none of {missing})'
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
        # The feedback of all ranks. Only one rank holds it, as ranks gather:
        if self.rank == 0 and graph_idx.numel() > 0:
            self._feedback.append((graph_idx, feedback))

    @abstractmethod
    def _draw(self, epoch: int) -> Tensor:
        r"""Draw the subset of an epoch.

        Args:
            epoch (int): The epoch, counted from zero.

        Returns:
            The positions of :obj:`budget` graphs in any order (int64).
        """

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        r"""Process the feedback of the previous epoch, before :meth:`_draw`.

        Args:
            graph_idx (torch.Tensor): The ascending positions of the graphs
                with feedback (int64).
            feedback (torch.Tensor): The last feedback of each of these graphs,
                one row per graph.
        """

    def _record(self, graph_idx: Tensor, feedback: Tensor) -> None:
        r"""Record the feedback of a mini-batch for :meth:`_observe`.

        Tensors on other devices are validated in the planning of the next
        epoch, to avoid a synchronization.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs, of shape
                :math:`(B)` (int64).
            feedback (torch.Tensor): The feedback, of shape :math:`(B, F)`.
        """
        if graph_idx.device.type == 'cpu':
            self._check_drawn(graph_idx)
        else:
            self._unchecked = True
        # Copy, as the caller may reuse the tensor. A tensor from a worker also
        # occupies a file descriptor.
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
        r"""Return the last feedback of each graph, from all ranks."""
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
                f'(got {graph_idx.tolist()[:10]}). Pass this sampler to the '
                f"loader, and wrap the loader's data set (or 'Subset') in an "
                f"'IndexedDataset'"
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.size}, '
            f'keep_ratio={self.keep_ratio}, num_epochs={self.num_epochs})'
        )


def _cat(tensors: List[Tensor]) -> Tensor:
    # Feedback of a loaded state is on the CPU, new feedback may not be:
    if len({x.device for x in tensors}) > 1:
        tensors = [x.cpu() for x in tensors]
    return torch.cat(tensors).cpu()
