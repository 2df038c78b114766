import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Collection, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_geometric_ext.full_batch import (
    AcceleratedModel,
    StaticGraph,
    accelerate,
)
from torch_geometric_ext.full_batch.call_model import call_model
from torch_geometric_ext.full_batch.check_static import EDGE_KEYS
from torch_geometric_ext.lottery.check_node_task import (
    check_model,
    check_outputs,
    check_scores,
)
from torch_geometric_ext.lottery.edges.prune_edges import prune_edges
from torch_geometric_ext.lottery.task import Task

NODE_KEYS = ['x', 'y', 'train_mask', 'val_mask']
# More targets do not help sparse weights: `benchmark/lottery/lottery.py`.
MIN_TARGETS = 4096
# The best dense model is of an early epoch, whose predictions are smooth.
TEMPERATURE = 0.5
MAX_REASONS = 3  # Of one line.


@dataclass
class Verification:
    """Remember, for a task and all tasks that are derived from it, whether an
    accelerated model gave equal results on the graph.
    """

    done: bool = False


class NodeTask(Task):
    """Classify the nodes of one graph in full batches.

    Args:
        data (torch_geometric.data.Data): The graph, with labels and masks.
        targets (torch.Tensor, optional): The distillation targets, the class
            probabilities of all nodes. (default: :obj:`None`)
        fraction (float, optional): The weight of distillation in the loss.
            (default: :obj:`0.0`)
        sample (torch.Tensor, optional): The nodes, ascending, whose targets
            are enough if their receptive field is only a part of the graph.
            (default: :obj:`None`)
        graph (StaticGraph, optional): The graph to train on, if there is one
            already. (default: :obj:`None`)
    """

    by_shapes = True

    def __init__(
        self,
        data: Data,
        targets: Optional[Tensor] = None,
        fraction: float = 0.0,
        sample: Optional[Tensor] = None,
        graph: Optional[StaticGraph] = None,
    ) -> None:
        self.data = data
        self.graph = graph
        self.obstacle: Optional[str] = None
        if graph is None:
            try:
                self.graph = StaticGraph(data)
            except (TypeError, ValueError) as error:
                self.obstacle = str(error)
        self.targets = targets
        self.fraction = fraction
        self.sample = sample
        self.is_distilled = targets is not None
        self.fast: Optional[AcceleratedModel] = None
        self.verification = Verification()
        # The nodes that the loss depends on, if not on all:
        self.nodes: Optional[Tensor] = None
        self._set_nodes(None)

    def batches(self) -> Collection[Any]:  # noqa: D102
        if self.fast is not None:
            return [self.fast.select(self.nodes, training=True).data]
        return [self.data]

    def labeled_batch(self) -> Any:  # noqa: D102
        if self.fast is None:
            return self.data
        return self.fast.select(self.data.train_mask, training=True).data

    def loss(self, model: Module, batch: Any) -> Tensor:  # noqa: D102
        targets = self.targets
        if self.fast is not None and model is self.fast.model:
            out: Tensor = self.fast(self.nodes)
            train, labels = self.train_rows, self.labels
        else:
            out, train = call_model(model, batch), batch.train_mask
            labels = batch.y[train].long()
        check_scores(out)
        loss = F.cross_entropy(out[train], labels)
        if targets is None:
            return loss
        rows = self.target_rows
        if rows is not None and out.size(0) == self.num_outputs:
            out, targets = out[rows], targets[self.sample]
        elif out.size(0) != targets.size(0):  # Subgraphs have no targets.
            return loss
        distillation = F.cross_entropy(out, targets.to(out.dtype))
        return (1 - self.fraction) * loss + self.fraction * distillation

    @torch.no_grad()
    def evaluate(self, model: Module) -> float:  # noqa: D102
        data, mask = self.data, self.data.val_mask
        model.eval()
        if self.fast is not None and model is self.fast.model:
            out = self.fast(mask)
        else:
            out = call_model(model, data)[mask]
        pred = out.argmax(dim=-1)
        return float((pred == data.y[mask]).float().mean())

    def pruned(self, edge_mask: Tensor) -> 'NodeTask':  # noqa: D102
        data = prune_edges(self.data, edge_mask)
        if 'e_id' not in data:  # Subgraphs identify their edges by it.
            data.e_id = edge_mask.nonzero().flatten()
        graph = None
        if self.graph is not None:
            self.graph.clear()  # Training goes on with the pruned graph.
            graph = self.graph.with_edges(data)
        out = NodeTask(data, self.targets, self.fraction, self.sample, graph)
        out.verification = self.verification
        return out

    def identity(self) -> List[Tensor]:  # noqa: D102
        keys = [*NODE_KEYS, 'edge_index', *EDGE_KEYS]
        values = [self.data.get(key) for key in keys]
        return [value for value in values if isinstance(value, Tensor)]

    @torch.no_grad()
    def check(self, model: Module) -> None:  # noqa: D102
        # Modules may cache what they see, such as normalized edges:
        if self.fast is not None and model is self.fast.model:
            with suppress(Exception):  # The model itself tells why it fails.
                check_outputs(copy.deepcopy(self.fast).eval()(), self.data)
                return
        check_model(copy.deepcopy(model), self.data)

    def initialize(self, model: Module) -> None:  # noqa: D102
        check_model(model, self.data)

    def fallback(self) -> Optional[str]:  # noqa: D102
        nodes = f'computes all {self.data.num_nodes:,} nodes'
        edges = f'passes a message along each of {self.data.num_edges:,} edges'
        if self.fast is None:
            return f'since {self.obstacle}: each step {nodes} and {edges}'
        report, fields, others = self.fast.report(), [], []
        is_whole = report.num_hops['training'] is None
        for what, why in report.reasons.items():
            if not what.startswith('the receptive field'):
                others.append(f'{what} ({why})')
            elif is_whole and 'evaluation' not in what:
                fields.append(f'{what} ({why})')
        reasons = fields + others
        if not reasons:
            return None
        names = reasons[:MAX_REASONS]
        if len(reasons) > MAX_REASONS:
            names.append(f'{len(reasons) - MAX_REASONS} more optimizations')
        costs = [nodes] * len(fields[:1]) + [edges] * len(others[:1])
        return f'without {", ".join(names)}: each step {" and ".join(costs)}'

    @torch.no_grad()
    def distilled(  # noqa: D102
        self,
        teacher: Module,
        fraction: float,
        generator: Optional[torch.Generator] = None,
    ) -> 'NodeTask':
        teacher.eval()
        if self.fast is not None and teacher is self.fast.model:
            out = self.fast()
        else:
            out = call_model(teacher, self.data)
        targets, sample = (out / TEMPERATURE).softmax(dim=-1), None
        size = max(MIN_TARGETS, int(self.data.train_mask.sum()))
        if generator is not None and size < out.size(0):
            sample = torch.randperm(out.size(0), generator=generator)[:size]
            sample = sample.sort().values.to(out.device)
        task = copy.copy(self)
        task.fast, task.targets, task.is_distilled = None, targets, True
        task.fraction, task.sample = fraction, sample
        task._set_nodes(None)
        return task

    def accelerate(  # noqa: D102
        self,
        model: Module,
        *,
        cache_aggregation: bool = True,
        all_nodes: bool = False,
    ) -> 'NodeTask':
        if self.graph is None:
            return self
        task = copy.copy(self)
        task.fast = accelerate(
            model,
            self.graph,
            cache_aggregation=cache_aggregation,
            verify=not self.verification.done,
        )
        if task.fast.plan.num_hops[True] is not None:
            self.verification.done = True
        nodes = self.data.train_mask
        if self.sample is not None:
            nodes = nodes.index_fill(0, self.sample, True)
        elif self.targets is not None or all_nodes:
            return task
        part = task.fast.select(nodes, training=True)
        if part.nodes is not None:  # Else, all targets are for free.
            task._set_nodes(nodes.nonzero().flatten())
        return task

    def _set_nodes(self, nodes: Optional[Tensor]) -> None:
        """Set the nodes that the loss depends on, and their rows in it."""
        train = self.data.train_mask.nonzero().flatten()
        self.labels = self.data.y[train].long()
        self.nodes, self.train_rows, self.target_rows = nodes, train, None
        self.num_outputs = 0 if nodes is None else nodes.numel()
        if nodes is not None:
            self.train_rows = torch.searchsorted(nodes, train)
            if self.sample is not None:
                self.target_rows = torch.searchsorted(nodes, self.sample)
