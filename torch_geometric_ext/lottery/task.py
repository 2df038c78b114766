import copy
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Callable, Collection, Iterator, List, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DistributedSampler
from torch_geometric.data import Data

from torch_geometric_ext.lottery.edges.prune_edges import prune_edges
from torch_geometric_ext.lottery.ranks import gather

# `loss_fn(model, batch)` and `evaluate(model, data)`:
LossFunction = Callable[[Module, Any], Tensor]
Evaluate = Callable[[Module, Any], float]


class Task(ABC):
    """The loss that trains a ticket, and its validation metric."""

    is_distilled: bool = False  # Whether the loss holds a distillation loss.
    by_shapes: bool = False  # Whether the loss runs on shapes of tensors.

    @abstractmethod
    def batches(self) -> Collection[Any]:
        """Return the mini-batches of an epoch."""

    @property
    def num_batches(self) -> int:
        """Return the number of steps of an epoch, the largest number of
        mini-batches of a rank.
        """
        return max(gather(len(self.batches())))

    def start_epoch(self, epoch: int) -> None:  # noqa: B027
        """Prepare the mini-batches of an epoch, counted from zero."""

    def first_batch(self) -> Any:
        """Return a mini-batch. Iterate over all of them, since loaders may
        cache the mini-batches of their first iteration.
        """
        batches = iter(self.batches())
        batch = next(batches)
        deque(batches, maxlen=0)
        return batch

    @abstractmethod
    def loss(self, model: Module, batch: Any) -> Tensor:
        """Return the loss of a mini-batch."""

    @abstractmethod
    def evaluate(self, model: Module) -> float:
        """Return the validation metric, the higher the better."""

    @abstractmethod
    def pruned(self, edge_mask: Tensor) -> 'Task':
        """Return the same task on a graph without pruned edges."""

    @abstractmethod
    def check(self, model: Module) -> None:
        """Raise if a model, which is not changed, does not fit the task."""

    def initialize(self, model: Module) -> None:
        """Initialize the lazy layers of a model, in evaluation mode."""
        self.loss(model.eval(), self.first_batch())

    def fallback(self) -> Optional[str]:
        """Return why training is slower than it could be, in one line."""
        return None

    @abstractmethod
    def identity(self) -> List[Tensor]:
        """Return tensors that tell the data apart, as far as known."""

    def accelerate(
        self,
        model: Module,
        *,
        cache_aggregation: bool = True,
        all_nodes: bool = False,
    ) -> 'Task':
        """Return the same task, bound to a faster way to run a model.

        Args:
            model (torch.nn.Module): The model.
            cache_aggregation (bool, optional): Whether to cache the first
                aggregation of features, whose messages need to be constant.
                (default: :obj:`True`)
            all_nodes (bool, optional): Whether the loss needs to depend on
                the outputs of all nodes. (default: :obj:`False`)
        """
        return self

    def labeled_batch(self) -> Any:
        """Return a small mini-batch that :meth:`loss` has labels of."""
        return self.first_batch()

    def distilled(
        self,
        teacher: Module,
        fraction: float,
        generator: Optional[torch.Generator] = None,
    ) -> 'Task':
        """Return the same task with a distillation loss, if it has
        predictions to distill.

        Args:
            teacher (torch.nn.Module): The model to distill.
            fraction (float): The weight of the distillation loss.
            generator (torch.Generator, optional): Samples the distillation
                targets; all are used without. (default: :obj:`None`)
        """
        return self


class CustomTask(Task):
    """A loss and a metric of the user on a graph or a loader.

    Args:
        data (Any): The graph or the loader.
        loss_fn (Callable): Returns the loss of a model on a mini-batch.
        evaluate_fn (Callable): Returns the metric of a model on the graph, or
            on all mini-batches.
        edge_mask (torch.Tensor, optional): The edges of a loader that remain.
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
        return _PrunedLoader(self.data, self.edge_mask)

    def start_epoch(self, epoch: int) -> None:  # noqa: D102
        for holder in [self.data, getattr(self.data, 'batch_sampler', None)]:
            sampler = getattr(holder, 'sampler', None)
            # Samplers of this package count epochs on their own:
            if isinstance(sampler, DistributedSampler):
                sampler.set_epoch(epoch)
        node_sampler = getattr(self.data, 'node_sampler', None)
        if node_sampler is not None and hasattr(node_sampler, 'set_epoch'):
            node_sampler.set_epoch(epoch)

    def loss(self, model: Module, batch: Any) -> Tensor:  # noqa: D102
        return self.loss_fn(model, batch)

    @torch.no_grad()
    def evaluate(self, model: Module) -> float:  # noqa: D102
        data = self.data if isinstance(self.data, Data) else self.batches()
        metric = self.evaluate_fn(model.eval(), data)
        try:
            return float(metric)
        except (RuntimeError, TypeError, ValueError) as error:
            raise TypeError(
                f"'evaluate' needs to return a number (got {metric!r})"
            ) from error

    def check(self, model: Module) -> None:  # noqa: D102
        self.first_batch()  # Edges that cannot be pruned raise an error.
        self.evaluate(copy.deepcopy(model))

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


class _PrunedLoader(Collection[Any]):
    """The mini-batches of a loader without pruned edges."""

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
