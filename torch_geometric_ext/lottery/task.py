from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Callable, Collection, Iterator, List, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data, HeteroData

from torch_geometric_ext.lottery.edges.prune_edges import prune_edges

# `loss_fn(model, batch)` and `evaluate(model, data)`:
LossFunction = Callable[[Module, Any], Tensor]
Evaluate = Callable[[Module, Any], float]


class Task(ABC):
    """What a ticket is to be good at: a loss to train by, and a metric."""

    is_distilled: bool = False  # Whether predictions are compared.

    @abstractmethod
    def batches(self) -> Collection[Any]:
        """What one epoch trains on."""

    @property
    def num_batches(self) -> int:
        """Number of mini-batches of an epoch."""
        return len(self.batches())

    def first_batch(self) -> Any:
        """A mini-batch to look at. Runs through all of them, since loaders
        may cache what passes.
        """
        batches = iter(self.batches())
        batch = next(batches)
        deque(batches, maxlen=0)
        return batch

    @abstractmethod
    def loss(self, model: Module, batch: Any) -> Tensor:
        """The loss of a mini-batch."""

    @abstractmethod
    def evaluate(self, model: Module) -> float:
        """The validation metric, the higher the better."""

    @abstractmethod
    def pruned(self, edge_mask: Tensor) -> 'Task':
        """The same task on the graph that some edges are left of."""

    @abstractmethod
    def identity(self) -> List[Tensor]:
        """What tells whether it is of the same data, as far as is known."""

    def accelerate(
        self, model: Module, cache_aggregation: bool = True
    ) -> 'Task':
        """Return the same task, bound to a faster way to run a model.

        Args:
            model (torch.nn.Module): The model.
            cache_aggregation (bool, optional): Whether the aggregation of
                features may be cached: not if messages have factors that
                change. (default: :obj:`True`)
        """
        return self

    def distilled(
        self,
        teacher: Module,
        share: float,
        generator: Optional[torch.Generator] = None,
    ) -> 'Task':
        """The same task, with a share of the loss against the predictions of
        a model, if there are any to compare, or against a sample of them
        where that is faster.
        """
        return self


class CustomTask(Task):
    """A loss and a metric of the user, on a graph or the mini-batches of a
    loader.

    Args:
        data (Any): The graph or the loader.
        loss_fn (Callable): Gives the loss, from a model and a mini-batch.
        evaluate_fn (Callable): Gives the metric, from a model and the graph
            (or all mini-batches).
        edge_mask (torch.Tensor, optional): The edges that are left.
            (default: :obj:`None`)
    """

    def __init__(
        self,
        data: Any,
        loss_fn: LossFunction,
        evaluate_fn: Evaluate,
        edge_mask: Optional[Tensor] = None,
    ) -> None:
        self.data = data
        self.loss_fn = loss_fn
        self.evaluate_fn = evaluate_fn
        self.edge_mask = edge_mask

    def batches(self) -> Collection[Any]:  # noqa: D102
        if isinstance(self.data, Data):
            return [self.data]
        return _Pruned(self.data, self.edge_mask)

    def loss(self, model: Module, batch: Any) -> Tensor:  # noqa: D102
        return self.loss_fn(model, batch)

    @torch.no_grad()
    def evaluate(self, model: Module) -> float:  # noqa: D102
        data = self.data if isinstance(self.data, Data) else self.batches()
        return float(self.evaluate_fn(model.eval(), data))

    def identity(self) -> List[Tensor]:  # noqa: D102
        graph = getattr(self.data, 'data', self.data)
        if not isinstance(graph, Data):
            return [torch.tensor(len(self.data))]
        return [x for _, x in sorted(graph) if isinstance(x, Tensor)]

    def pruned(self, edge_mask: Tensor) -> 'CustomTask':  # noqa: D102
        data = self.data
        if isinstance(data, Data):
            data = prune_edges(data, edge_mask)
        return CustomTask(data, self.loss_fn, self.evaluate_fn, edge_mask)


class _Pruned(Collection[Any]):
    """The mini-batches of a loader, without the edges that left."""

    def __init__(
        self, loader: Collection[Any], mask: Optional[Tensor]
    ) -> None:
        self.loader = loader
        self.mask = mask

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if self.mask is not None:
                batch = prune_edges(batch, self.mask)
            yield batch

    def __len__(self) -> int:
        return len(self.loader)

    def __contains__(self, batch: object) -> bool:
        return False


def check_data(data: Any) -> None:
    """Raises if there is neither a graph nor a loader."""
    if isinstance(getattr(data, 'data', data), HeteroData):
        raise NotImplementedError(
            "'data' needs to be homogeneous; 'to_homogeneous' makes it so "
            "(got 'HeteroData')"
        )
    if not isinstance(data, Data) and not (
        hasattr(data, '__iter__') and hasattr(data, '__len__')
    ):
        raise TypeError(
            f"'data' needs to be a 'Data' or a loader with a length (got "
            f'{type(data)})'
        )
