import itertools
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Iterator, Literal, Optional, Union

import torch
from torch import Tensor


class SharedContext:
    """What layers need to know about the mini-batch of shared trees that they
    work on. Rows of trees of `level`, of which `count` tells how often they
    occur, come first in every tensor.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.num_layers = len(batch.num_sampled_nodes) - 1
        self.level = self.num_layers
        self.num_convs = 0  # Level-wise ones, so far.
        self._count: Optional[Tensor] = None

    @property
    def count(self) -> Tensor:
        """How often each tree of the level occurs in the mini-batch."""
        if self._count is None:
            start = self.start(self.level)
            stop = start + self.size(self.level)
            self._count = self._all_counts()[start:stop]
        return self._count

    def size(self, level: int) -> int:
        """The number of trees of a level."""
        return self.batch.num_sampled_nodes[self.num_layers - level]

    def start(self, level: int) -> int:
        """The first row of a level in the mini-batch."""
        return sum(self.batch.num_sampled_nodes[: self.num_layers - level])

    def is_nodes(self, num_rows: int) -> bool:
        """Whether a tensor may hold the trees of the level and, behind them,
        those of levels below.
        """
        sizes = self.batch.num_sampled_nodes[self.num_layers - self.level :]
        return num_rows in itertools.accumulate(sizes)

    def edges(self, level: int) -> slice:
        """The edges that end at a level."""
        sizes = self.batch.num_sampled_edges
        start = sum(sizes[: self.num_layers - level])
        return slice(start, start + sizes[self.num_layers - level])

    def enter(self, level: int) -> None:
        """From here on, tensors hold the trees of a level and below."""
        if level != self.level:
            self.level, self._count = level, None

    def _all_counts(self) -> Tensor:
        batch = self.batch
        count = torch.zeros_like(batch.own)
        count.index_add_(0, batch.root, batch.root_count)
        for level in range(self.num_layers, self.level, -1):
            start = self.start(level)
            stop = start + self.size(level)
            own, above = batch.own[start:stop], count[start:stop].clone()
            count.index_add_(0, own, above)
        return count


# The innermost mini-batch of shared trees, False for one of plain graphs, None
# outside of `shared_batch`.
_current: ContextVar[Union[SharedContext, Literal[False], None]] = ContextVar(
    'shared_batch', default=None
)


@contextmanager
def shared_batch(batch: Any) -> Iterator[None]:
    r"""Tells layers that what they work on are shared computation trees.

    Needed by :class:`~torch_geometric_ext.nn.TreeBatchNorm` in training, and
    by :class:`~torch_geometric_ext.nn.LevelwiseConv`, which is the plain
    layer outside of it.

    .. code-block:: python

        with shared_batch(batch):
            h = gnn(batch.x, batch.edge_index)

    .. note::
        Activation checkpointing computes layers again during
        :obj:`backward()`, which then has to be called inside of it, too.

    Args:
        batch (SharedTreeBatch): A mini-batch of
            :class:`~torch_geometric_ext.loader.SharedTreeLoader`. Mini-batches
            of plain graphs are let through, so that one model serves both.

    Raises:
        ValueError: If there are layers of
            :class:`~torch_geometric_ext.nn.LevelwiseConv`, but fewer than
            trees are deep: their output is not that of the nodes.
    """
    context = SharedContext(batch) if 'root_ptr' in batch else None
    token = _current.set(context or False)
    try:
        yield
    finally:
        _current.reset(token)
    if context is not None and 0 < context.num_convs < context.num_layers:
        raise ValueError(
            f"'LevelwiseConv' needs as many layers as trees are deep (got "
            f'{context.num_convs} layers on trees of depth '
            f'{context.num_layers})'
        )


def current_context() -> Optional[SharedContext]:
    """The innermost mini-batch of shared trees, if any."""
    return _current.get() or None


def is_inside() -> bool:
    """Whether layers have been told what they work on."""
    return _current.get() is not None
