import copy
import inspect
from abc import ABC, abstractmethod
from collections import deque
from typing import (
    Any,
    Callable,
    Collection,
    Iterator,
    List,
    NamedTuple,
    Optional,
)

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Batch, Data, Dataset, HeteroData
from torch_geometric.utils import select

from torch_geometric_ext.utils.lottery.fast_convs import speed_up
from torch_geometric_ext.utils.lottery.known_graph import KnownGraph, call
from torch_geometric_ext.utils.lottery.locality import find_num_hops
from torch_geometric_ext.utils.lottery.sparse_input import swap_linears

# What mini-batches hold that is of no edge, even if there are as many:
OTHER_KEYS = [
    'dst_neg_index',
    'dst_pos_index',
    'input_id',
    'num_sampled_nodes',
    'ptr',
    'src_index',
]
MIN_TARGETS = 4096  # If there are as many nodes. More do not help PubMed.
TEMPERATURE = 0.5  # The best model is one of an early epoch, and not sure.

# `loss_fn(model, batch)` and `evaluate(model, data)`:
LossFunction = Callable[[Module, Any], Tensor]
Evaluate = Callable[[Module, Any], float]


def prune_edges(data: Any, edge_mask: Tensor) -> Any:
    """A copy of a graph or mini-batch with some of its edges, which are
    numbered by :obj:`e_id` if there is one. Labels of edges stay.
    """
    if data.get('edge_index') is None or 'adj_t' in data:
        raise ValueError(
            f"'data' needs to hold its edges as 'edge_index', and not as "
            f"'adj_t', to have them pruned (got {data})"
        )
    edge_mask = edge_mask.to(data.edge_index.device)
    if 'e_id' in data:
        edge_mask = edge_mask[data.e_id.to(edge_mask.device)]
        if edge_mask.numel() != data.num_edges:
            raise ValueError(
                f"'data' needs to hold one number 'e_id' for each edge; "
                f'transform it before it is sampled (got '
                f'{edge_mask.numel()} numbers of {data.num_edges} edges)'
            )
    elif data.num_edges != edge_mask.numel():
        raise ValueError(
            f"'data' needs to have the {edge_mask.numel()} edges of the "
            f"graph that was searched, or their numbers 'e_id', as of "
            f"'number_edges' (got {data.num_edges} edges)"
        )
    out = copy.copy(data)
    for key, value in data:
        # PyG takes 'e_id' for a feature of nodes if there are as many:
        if key == 'e_id':
            out[key] = value[edge_mask]
        elif key == 'num_sampled_edges':  # In each hop, one after another.
            hops = edge_mask.split(value)
            out[key] = [int(hop.sum()) for hop in hops]
        elif key in OTHER_KEYS or key.startswith('edge_label'):
            continue
        elif data.is_edge_attr(key):
            dim = data.__cat_dim__(key, value)
            out[key] = select(value, edge_mask, dim)
    if out.num_nodes != data.num_nodes:  # It is inferred from edges.
        out.num_nodes = data.num_nodes
    return out


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

    def prepare(self, model: Module, adds_up: bool = True) -> Module:
        """A model that is faster on the task, changed in place. Its state
        does not tell.

        Args:
            model (torch.nn.Module): The model.
            adds_up (bool, optional): Whether the messages of a first layer
                may be added up once, since none has a factor that changes.
                (default: :obj:`True`)
        """
        return speed_up(model)

    def focused(self, model: Module, adds_up: bool = True) -> 'Task':
        """The same task, on no more of a graph than a model needs for it when
        it is prepared (which it is not yet).
        """
        return self

    def distilled(
        self, teacher: Module, share: float, generator: torch.Generator
    ) -> 'Task':
        """The same task, with a share of the loss against the predictions of
        a model, if there are any to compare.
        """
        return self


class Targets(NamedTuple):
    """The probabilities of classes that a model is to come close to, on
    some of the nodes that it is given.
    """

    nodes: Tensor
    probs: Tensor


class NodeTask(Task):
    """Classification of the nodes of one graph, in full batches.

    Args:
        graph (KnownGraph): The graph, with labels and masks.
        targets (Targets, optional): What a model is to come close to, on
            nodes of the graph. (default: :obj:`None`)
        share (float, optional): Their share of the loss.
            (default: :obj:`0.0`)
    """

    def __init__(
        self,
        graph: KnownGraph,
        targets: Optional[Targets] = None,
        share: float = 0.0,
    ) -> None:
        self.graph = graph
        self.targets = targets
        self.share = share
        self.is_distilled = targets is not None
        # What to train and to evaluate on, and what the loss is of:
        self.train = self.valid = graph.data
        self.mask = graph.data.train_mask
        if targets is not None:
            self.mask = self.mask.index_fill(0, targets.nodes, True)

    def batches(self) -> Collection[Any]:  # noqa: D102
        return [self.train]

    def loss(self, model: Module, batch: Any) -> Tensor:  # noqa: D102
        out = call(model, batch)
        mask = batch.train_mask
        loss = F.cross_entropy(out[mask], batch.y[mask])
        if self.targets is None:
            return loss
        other = F.cross_entropy(out[self.targets.nodes], self.targets.probs)
        return (1 - self.share) * loss + self.share * other

    @torch.no_grad()
    def evaluate(self, model: Module) -> float:  # noqa: D102
        data = self.valid
        out = call(model.eval(), data)[data.val_mask].argmax(dim=-1)
        return float((out == data.y[data.val_mask]).float().mean())

    def pruned(self, edge_mask: Tensor) -> 'NodeTask':  # noqa: D102
        data = prune_edges(self.graph.data, edge_mask)
        if 'e_id' not in data:  # Parts of it tell their edges by numbers.
            data.e_id = edge_mask.nonzero().flatten()
        graph = self.graph.with_edges_of(data)
        return NodeTask(graph, self.targets, self.share)

    @torch.no_grad()
    def distilled(  # noqa: D102
        self, teacher: Module, share: float, generator: torch.Generator
    ) -> 'NodeTask':
        data = self.graph.data
        out = call(teacher.eval(), data)
        size = max(MIN_TARGETS, int(data.train_mask.sum()))
        nodes = torch.randperm(out.size(0), generator=generator)[:size]
        nodes = nodes.sort().values.to(out.device)
        probs = (out[nodes] / TEMPERATURE).softmax(dim=-1)
        return NodeTask(self.graph, Targets(nodes, probs), share)

    def prepare(  # noqa: D102
        self, model: Module, adds_up: bool = True
    ) -> Module:
        model = swap_linears(model, self.graph.inputs)
        return speed_up(model, self.graph, adds_up)

    def focused(  # noqa: D102
        self, model: Module, adds_up: bool = True
    ) -> 'NodeTask':
        num_hops = find_num_hops(model, self.graph, adds_up)
        if num_hops is None:
            return self
        train = self.graph.part(self.mask, num_hops)
        valid = self.graph.part(self.graph.data.val_mask, num_hops)
        out = copy.copy(self)
        out.train, out.valid = train.data, valid.data
        if self.targets is not None and train.part is not None:
            nodes = torch.searchsorted(train.part.nodes, self.targets.nodes)
            out.targets = self.targets._replace(nodes=nodes)
        return out


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


def whole_graph(data: Any) -> Data:
    """The graph whose edges mini-batches number by :obj:`e_id`."""
    graph, default = data, None
    if not isinstance(data, (Data, Dataset)):
        graph = getattr(data, 'data', None)
    if not isinstance(graph, Data):
        graphs = getattr(data, 'dataset', data)
        if isinstance(graphs, (list, tuple, Dataset)):
            graph = Batch.from_data_list(list(graphs))
            default = torch.empty(0)
    if (
        not isinstance(graph, Data)
        or graph.get('edge_index') is None
        or 'adj_t' in graph  # It would keep all edges.
    ):
        raise ValueError(
            f"'data' needs to hold its edges as 'edge_index', and not as "
            f"'adj_t', to have them pruned, and a loader its graph as 'data' "
            f"or its graphs as 'dataset' (got {type(data)} of {graph})"
        )
    ids = graph.get('e_id', default)
    numbers = torch.arange(graph.num_edges)
    if ids is not None and not torch.equal(ids.cpu().long(), numbers):
        raise ValueError(
            "graphs of 'data' need to number their edges by 'e_id' to be "
            "pruned; 'number_edges' does that"
        )
    return graph


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


def check_node_task(data: Any, model: Module) -> None:
    """Raises if a graph or a model lacks what a classification of its nodes
    needs.
    """
    if not isinstance(data, Data):
        raise ValueError(
            f"a loader as 'data' needs 'loss_fn' and 'evaluate' (got "
            f'{type(data)})'
        )
    try:
        inspect.signature(model.forward).bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"'model' needs to be called with 'x' and 'edge_index'; for any "
            f"other, give 'loss_fn' and 'evaluate' ({error})"
        ) from error
    missing: List[str] = [
        key
        for key in ['x', 'edge_index', 'y', 'train_mask', 'val_mask']
        if data.get(key) is None
    ]
    if missing:
        raise ValueError(
            f"'data' needs to hold {missing} to classify its nodes ('adj_t' "
            f"is no 'edge_index'); for any other task, give 'loss_fn' and "
            f"'evaluate' (got {data})"
        )
    y = data.y
    if y.dim() != 1 or y.is_floating_point() or y.size(0) != data.num_nodes:
        raise ValueError(
            f"'y' of 'data' needs to hold one class for each of the "
            f"{data.num_nodes} nodes; for any other task, give 'loss_fn' and "
            f"'evaluate' (got {list(y.shape)} of {y.dtype})"
        )
    for key in ['train_mask', 'val_mask']:
        mask = data[key]
        if mask.dtype != torch.bool or mask.shape != y.shape:
            raise ValueError(
                f"'{key}' of 'data' needs to be of torch.bool and of shape "
                f'{list(y.shape)}, one split (got {mask.dtype} and '
                f'{list(mask.shape)})'
            )
        if not mask.any():
            raise ValueError(f"'{key}' of 'data' selects no node")
