"""Report which optimizations a model uses, and why others are not used."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional

import torch
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.full_batch.conv.find_static_convs import obstacle
from torch_geometric_ext.full_batch.conv.static_conv import MESSAGES
from torch_geometric_ext.full_batch.plan import MODES, Plan
from torch_geometric_ext.full_batch.static_graph import StaticGraph


@dataclass
class Report:
    """Report of the optimizations that an accelerated model uses, to print.

    Attributes:
        num_hops (Dict[str, int]): The receptive field beyond cached
            aggregations, in hops, in training and in evaluation, or
            :obj:`None` for the whole graph.
        convs (Dict[str, Dict[str, str]]): The way in which each convolution
            aggregates, by its name and the mode.
        density (float): The fraction of features that are not zero.
        sparse_input (bool): Whether products skip the zeros of features.
        num_bytes (int): The memory of all caches of the graph.
        reasons (Dict[str, str]): The optimizations that are not used, with
            their reasons.
    """

    num_hops: Dict[str, Optional[int]]
    convs: Dict[str, Dict[str, str]]
    density: float
    sparse_input: bool
    num_bytes: int
    reasons: Dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines: List[str] = ['Receptive field beyond cached aggregations:']
        for mode, hops in self.num_hops.items():
            text = 'whole graph' if hops is None else f'{hops} hop'
            text += 's' if hops is not None and hops != 1 else ''
            lines.append(f'  {mode}: {text}')
        lines.append('Convolutions:')
        for name, ways in self.convs.items():
            text = ', '.join(f'{way} in {mode}' for mode, way in ways.items())
            if len(set(ways.values())) == 1:
                text = next(iter(ways.values()))
            lines.append(f'  {name or "model"}: {text}')
        skipped = 'skips zeros' if self.sparse_input else 'dense'
        lines.append(f'Features: {self.density:.1%} nonzero, {skipped}')
        lines.append(f'Caches: {self.num_bytes / 2**20:.1f} MiB')
        if self.reasons:
            lines.append('Not used:')
            lines += [f'  {what}: {why}' for what, why in self.reasons.items()]
        return '\n'.join(lines)


def make_report(model: Module, graph: StaticGraph, plan: Plan) -> Report:
    """Return the report of a model that runs on a graph by a plan."""
    convs: Dict[str, Dict[str, str]] = {}
    reasons = dict(plan.reasons)
    for name, module in model.named_modules():
        if not isinstance(module, MessagePassing):
            continue
        convs[name] = {
            mode: plan.ways[training].get(name, MESSAGES)
            for training, mode in MODES.items()
        }
        reason = obstacle(module)
        if reason is not None:
            label = f"'{name}' ({type(module).__name__})"
            reasons[f'sparse products in {label}'] = reason
    norms = _batch_norms(model)
    key = f'the receptive field in {MODES[True]}'
    if norms and key in reasons:
        names = ', '.join(f"'{name}'" for name in norms)
        reasons[key] += f' ({names} normalizes over all nodes in training)'
    x = graph.data.x
    return Report(
        {MODES[key]: hops for key, hops in plan.num_hops.items()},
        convs,
        float(x.count_nonzero()) / max(x.numel(), 1),
        bool(graph.whole.inputs),
        graph.num_bytes,
        reasons,
    )


def _batch_norms(model: Module) -> List[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
