import heapq
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from torch_geometric_ext.data.graph_sizes import read_sizes
from torch_geometric_ext.loader.check import require
from torch_geometric_ext.ops.check_state_dict import (
    check_state_dict,
    is_integer,
)

MODES = ('node', 'edge')
POLICIES = ('single', 'skip', 'error')


class NodeBudgetBatchSampler(Sampler[List[int]]):
    r"""Batch sampler that fills each mini-batch with graphs up to a number of
    nodes or edges, on top of any sampler of graphs.

    Mini-batches hold consecutive graphs of the sampler, each graph exactly
    once and in the same order. The memory of a training step then depends on
    the budget instead of the largest graphs that happen to meet. In contrast
    to :class:`torch_geometric.loader.DynamicBatchSampler`, another sampler
    draws the graphs, and no graph is loaded to learn its size.

    .. code-block:: python

        sampler = SoftRandomSampler(dataset, keep_ratio=0.5, num_epochs=100)
        batch_sampler = NodeBudgetBatchSampler(sampler, dataset, max_num=4096)
        loader = DataLoader(dataset, batch_sampler=batch_sampler)

    Args:
        sampler (Sampler or Iterable): The sampler of graphs, for example a
            :class:`~torch_geometric_ext.loader.DynamicSampler`.
        dataset (Dataset or torch.Tensor): The data set of the loader, or the
            size of each graph, of shape :math:`(N)`. Sizes are read once.
            In-memory data sets without a :obj:`transform` need not load their
            graphs for that.
        max_num (int): The maximum number of nodes or edges in a mini-batch.
        mode (str, optional): The unit of sizes (:obj:`"node"` or
            :obj:`"edge"`). (default: :obj:`"node"`)
        too_big (str, optional): The treatment of graphs larger than
            :obj:`max_num`: :obj:`"single"` makes each one a mini-batch of its
            own, :obj:`"skip"` skips them, and :obj:`"error"` raises an error
            before training. (default: :obj:`"single"`)

    Raises:
        ValueError: If an argument is out of its range, or a graph is too
            large for :obj:`too_big="error"`.

    .. code-block:: python

        >>> sizes = torch.tensor([3, 1, 2, 5, 9])
        >>> list(NodeBudgetBatchSampler(range(5), sizes, max_num=6))
        [[0, 1, 2], [3], [4]]

    .. rubric:: Details

    In distributed training, all ranks take the same number of steps. A rank
    with fewer mini-batches splits its largest ones. If it has too few graphs
    for that, since others were skipped, it repeats mini-batches.

    .. note::
        Mini-batches differ in their number of graphs. A mean over the graphs
        of a mini-batch weights graphs of small mini-batches higher.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        dataset: Union[Any, Tensor],
        max_num: int,
        mode: str = 'node',
        too_big: str = 'single',
    ) -> None:
        require(self, max_num >= 1, 'max_num', 'be at least one', max_num)
        require(self, mode in MODES, 'mode', f'be one of {MODES}', mode)
        policies = f'be one of {POLICIES}'
        require(self, too_big in POLICIES, 'too_big', policies, too_big)
        if not isinstance(dataset, Tensor):
            sizes = read_sizes(dataset, mode)
        else:
            integral = not dataset.is_floating_point() and dataset.dim() == 1
            shape = f'{dataset.dtype} of shape {list(dataset.shape)}'
            hold = 'hold one integer per graph, its size'
            require(self, integral, 'dataset', hold, shape)
            sizes = dataset.cpu()
        largest = int(sizes.max()) if sizes.numel() > 0 else 0
        require(
            self,
            too_big != 'error' or largest <= max_num,
            'max_num',
            f'be at least the size of the largest graph, {largest}',
            max_num,
        )
        self.sampler = sampler
        self.max_num = max_num
        self.mode = mode
        self.too_big = too_big
        self._sizes = sizes
        self._batches: Optional[List[List[int]]] = None  # Of the last epoch.
        self._order: Optional[List[int]] = None  # The graphs in all of them.

    def __len__(self) -> int:
        r"""Return the number of mini-batches in the epoch that
        :meth:`set_epoch` has planned, or in the epoch of the last iterator.

        Raises:
            TypeError: If there is none of both, as the number depends on the
                graphs of the epoch.
        """
        if self._batches is None:
            raise TypeError(
                f"The length of '{self.__class__.__name__}' is not known "
                f"before the epoch is planned. Call 'set_epoch' first"
            )
        return len(self._batches)

    def __iter__(self) -> Iterator[List[int]]:
        return BatchIterator(self)

    def set_epoch(self, epoch: int) -> None:
        r"""Set the epoch of the sampler, and plan its mini-batches.

        Args:
            epoch (int): The epoch, counted from zero.

        Raises:
            AttributeError: If the sampler has no :meth:`set_epoch`.
        """
        sampler: Any = self.sampler
        sampler.set_epoch(epoch)
        if hasattr(sampler, 'peek'):
            self._split(sampler.peek())
        else:
            self._split(list(sampler))
            sampler.set_epoch(epoch)  # The next iterator repeats the order.

    def state_dict(self) -> Dict[str, Any]:
        r"""Return the mini-batches of the last epoch, and the state of the
        sampler if it has one. The state of the iterator has the position.

        :class:`torchdata.stateful_dataloader.StatefulDataLoader` calls this
        method. With other loaders, save the state of the sampler instead.
        """
        save = getattr(self.sampler, 'state_dict', None)
        return {
            'max_num': self.max_num,
            'mode': self.mode,
            'too_big': self.too_big,
            'batches': self._batches,
            'sampler': None if save is None else save(),
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        r"""Load the state of a batch sampler and of its sampler.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete or damaged, or is that of
                another budget. Nothing is changed in this case.
            TypeError: If the state is not a dictionary.
        """
        stateful = hasattr(self.sampler, 'load_state_dict')
        same = {'max_num': self.max_num, 'mode': self.mode}
        check_state_dict(
            self,
            state_dict,
            {**same, 'too_big': self.too_big},
            {
                'batches': lambda x: x is None or self._are_batches(x),
                'sampler': lambda x: stateful == (x is not None),
            },
        )
        if stateful:
            sampler: Any = self.sampler
            sampler.load_state_dict(state_dict['sampler'])
        self._batches, self._order = state_dict['batches'], None

    def _are_batches(self, value: Any) -> bool:
        last = self._sizes.numel() - 1
        return isinstance(value, list) and all(
            isinstance(batch, list)
            and len(batch) > 0
            and all(is_integer(x, 0, last) for x in batch)
            for batch in value
        )

    def _load_iterator(self) -> List[List[int]]:
        """Return the mini-batches for an iterator that loads its position."""
        iterator = iter(self.sampler)
        if hasattr(iterator, 'load_state_dict'):  # The sampler is at the end.
            sampler: Any = self.sampler
            end = {'epoch': sampler.epoch, 'position': sampler.num_planned}
            iterator.load_state_dict(end)
        return self._batches or []

    def _plan(self) -> List[List[int]]:
        """Return the mini-batches of the next epoch."""
        return self._split(list(self.sampler))

    def _split(self, order: List[int]) -> List[List[int]]:
        if order == self._order and self._batches is not None:
            return self._batches
        graphs, ends = self._fill(order)
        num_batches = len(ends)
        if getattr(self.sampler, 'num_replicas', 1) > 1:
            num_batches = self._count_steps(num_batches)
        ends = _split_largest(ends, num_batches)
        batches = [graphs[i:j] for i, j in zip([0, *ends], ends)]
        for i in range(num_batches - len(batches)):
            batches.append(batches[i])
        self._order, self._batches = order, batches
        return batches

    def _fill(self, order: List[int]) -> Tuple[List[int], List[int]]:
        """Return the graphs of all mini-batches, and the ends of these."""
        index = torch.tensor(order, dtype=torch.long)
        sizes = self._sizes[index]
        if self.too_big == 'skip':
            index = index[sizes <= self.max_num]
            sizes = self._sizes[index]
        ends, total, max_num = [], 0, self.max_num
        for i, size in enumerate(sizes.tolist()):
            total += size
            if total > max_num and i > 0:
                ends.append(i)
                total = size
        if index.numel() > 0:
            ends.append(index.numel())
        return index.tolist(), ends

    def _count_steps(self, num_batches: int) -> int:
        """Return the largest number of mini-batches of all ranks."""
        counts: List[int] = [num_batches]
        if dist.is_available() and dist.is_initialized():
            counts = [0] * dist.get_world_size()
            dist.all_gather_object(counts, num_batches)
        require(
            self,
            min(counts) > 0 or max(counts) == 0,
            'max_num',
            'leave graphs on each rank',
            self.max_num,
        )
        return max(counts)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.sampler}, '
            f"max_num={self.max_num}, mode='{self.mode}')"
        )


class BatchIterator(Iterator[List[int]]):
    """Iterator over the mini-batches of an epoch.

    The first mini-batch starts the epoch. The state is the one that
    :class:`torchdata.stateful_dataloader.StatefulDataLoader` asks for.

    Args:
        batch_sampler (NodeBudgetBatchSampler): The batch sampler.
    """

    def __init__(self, batch_sampler: NodeBudgetBatchSampler) -> None:
        self._batch_sampler = batch_sampler
        self._batches: Optional[List[List[int]]] = None
        self._position = 0

    def __next__(self) -> List[int]:
        if self._batches is None:
            self._batches = self._batch_sampler._plan()
        if self._position == len(self._batches):
            raise StopIteration
        self._position += 1
        return self._batches[self._position - 1]

    def state_dict(self) -> Dict[str, Any]:
        """Return the position in the epoch, if it has started."""
        started = self._batches is not None
        return {'position': self._position if started else None}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Continue at the position of a state. Load the state of the batch
        sampler first.

        Raises:
            ValueError: If the state is damaged, or of another epoch than that
                of the batch sampler.
            TypeError: If the state is not a dictionary.
        """
        last = len(self._batch_sampler._batches or [])
        checks = {'position': lambda x: x is None or is_integer(x, 0, last)}
        check_state_dict(self, state_dict, {}, checks)
        if state_dict['position'] is not None:
            self._position = state_dict['position']
            self._batches = self._batch_sampler._load_iterator()


def _split_largest(ends: List[int], num_batches: int) -> List[int]:
    """Split the mini-batches with most graphs in halves, until there are
    `num_batches` or each one is a single graph.
    """
    missing = num_batches - len(ends)
    if missing <= 0:
        return ends
    heap = [(i - j, i, j) for i, j in zip([0, *ends], ends)]
    heapq.heapify(heap)
    while missing > 0 and heap[0][0] < -1:
        _, begin, end = heap[0]
        middle = (begin + end) // 2
        heapq.heapreplace(heap, (begin - middle, begin, middle))
        heapq.heappush(heap, (middle - end, middle, end))
        missing -= 1
    return sorted(end for _, _, end in heap)
