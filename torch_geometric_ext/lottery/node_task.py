import copy
from typing import Any, Collection, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.full_batch.cached_convs import speed_up
from torch_geometric_ext.full_batch.receptive_field import find_num_hops
from torch_geometric_ext.full_batch.sparse_input import swap_linears
from torch_geometric_ext.full_batch.static_graph import (
    EDGE_KEYS,
    NODE_KEYS,
    KnownGraph,
    View,
    call,
)
from torch_geometric_ext.lottery.edges.prune_edges import prune_edges
from torch_geometric_ext.lottery.task import Task

MIN_TARGETS = 4096  # While weights are sparse, more are no better (PubMed).
TEMPERATURE = 0.5  # The best model is one of an early epoch, and not sure.


class Targets(NamedTuple):
    """The probabilities of classes that a model is to come close to.

    Attributes:
        probs (torch.Tensor): The probabilities.
        nodes (torch.Tensor, optional): The nodes that they are of, if not of
            all.
    """

    probs: Tensor
    nodes: Optional[Tensor] = None

    def loss(self, out: Tensor) -> Tensor:
        """The cross-entropy."""
        out = out if self.nodes is None else out[self.nodes]
        return F.cross_entropy(out, self.probs.to(out.dtype))


class NodeTask(Task):
    """Classification of the nodes of one graph, in full batches.

    Args:
        graph (KnownGraph): The graph, with labels and masks.
        targets (torch.Tensor, optional): The probabilities that a model is
            to come close to, on all nodes. (default: :obj:`None`)
        share (float, optional): Their share of the loss.
            (default: :obj:`0.0`)
        sample (torch.Tensor, optional): Nodes, in order, whose targets are
            enough where no more than a part of the graph is needed for them.
            (default: :obj:`None`)
    """

    def __init__(
        self,
        graph: KnownGraph,
        targets: Optional[Tensor] = None,
        share: float = 0.0,
        sample: Optional[Tensor] = None,
    ) -> None:
        self.graph = graph
        self.targets = targets
        self.share = share
        self.sample = sample
        self.is_distilled = targets is not None
        # The nodes that the loss is of, if not of all:
        self.mask: Optional[Tensor] = graph.data.train_mask
        if sample is not None:
            self.mask = graph.data.train_mask.index_fill(0, sample, True)
        elif targets is not None:
            self.mask = None
        # What is looked at, of which 'focused' leaves a part:
        self.train = self.valid = graph.data
        self.told = None if targets is None else Targets(targets)

    def batches(self) -> Collection[Any]:  # noqa: D102
        return [self.train]

    def loss(self, model: Module, batch: Any) -> Tensor:  # noqa: D102
        out = call(model, batch)
        mask = batch.train_mask
        loss = F.cross_entropy(out[mask], batch.y[mask].long())
        if self.told is None:
            return loss
        return (1 - self.share) * loss + self.share * self.told.loss(out)

    @torch.no_grad()
    def evaluate(self, model: Module) -> float:  # noqa: D102
        data = self.valid
        out = call(model.eval(), data)[data.val_mask].argmax(dim=-1)
        return float((out == data.y[data.val_mask]).float().mean())

    def pruned(self, edge_mask: Tensor) -> 'NodeTask':  # noqa: D102
        data = prune_edges(self.graph.data, edge_mask)
        if 'e_id' not in data:  # Parts of it tell their edges by numbers.
            data.e_id = edge_mask.nonzero().flatten()
        self.graph.forget()  # Its successor is what is trained on.
        graph = self.graph.with_edges_of(data)
        return NodeTask(graph, self.targets, self.share, self.sample)

    def identity(self) -> List[Tensor]:  # noqa: D102
        data = self.graph.data
        keys = [*NODE_KEYS, 'edge_index', *EDGE_KEYS]
        values = [data.get(key) for key in keys]
        return [value for value in values if isinstance(value, Tensor)]

    @torch.no_grad()
    def distilled(  # noqa: D102
        self,
        teacher: Module,
        share: float,
        generator: Optional[torch.Generator] = None,
    ) -> 'NodeTask':
        data = self.graph.data
        out = call(teacher.eval(), data)
        targets, sample = (out / TEMPERATURE).softmax(dim=-1), None
        size = max(MIN_TARGETS, int(data.train_mask.sum()))
        if generator is not None and size < out.size(0):
            sample = torch.randperm(out.size(0), generator=generator)[:size]
            sample = sample.sort().values.to(out.device)
        return NodeTask(self.graph, targets, share, sample)

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
        masks = [self.graph.data.val_mask]
        if self.mask is not None:
            masks.append(self.mask)
        views = [self.graph.part(mask, num_hops) for mask in masks]
        if self.graph.is_local is None:
            self.graph.is_local = self._is_local(model, adds_up, masks, views)
        if not self.graph.is_local:
            return self
        out, train = copy.copy(self), views[-1]
        out.valid = views[0].data
        if self.mask is None:
            return out
        out.train = train.data
        if train.part is None:  # All targets are for free.
            return out
        if self.targets is not None and self.sample is not None:
            nodes = torch.searchsorted(train.part.nodes, self.sample)
            out.told = Targets(self.targets[self.sample], nodes)
        return out

    @torch.no_grad()
    def _is_local(
        self,
        model: Module,
        adds_up: bool,
        masks: List[Tensor],
        views: List[View],
    ) -> Optional[bool]:
        """Whether parts of the graph give the outputs of all of it, as those
        of a random graph did: a model may compare nodes with a median, say.
        It is not known if there are no parts.
        """
        if all(view.part is None for view in views):
            return None
        plain = swap_linears(copy.deepcopy(model), self.graph.inputs)
        whole = call(plain.eval(), self.graph.data)
        fast = self.prepare(copy.deepcopy(model), adds_up).eval()
        tolerance = torch.finfo(whole.dtype).eps ** 0.5
        tolerance *= float(whole.abs().max())
        for mask, view in zip(masks, views):
            if view.part is None:
                continue
            out = call(fast, view.data)[mask[view.part.nodes]]
            if not torch.allclose(out, whole[mask], rtol=0, atol=tolerance):
                return False
        return True
