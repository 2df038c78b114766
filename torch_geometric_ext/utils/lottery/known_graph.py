"""Graphs that are trained on for many epochs, and what is computed of them
once.
"""

import inspect
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_geometric_ext.utils.lottery.sparse_input import SparseInput

EDGE_KEYS = ['edge_weight', 'edge_attr']
MAX_SHARE = 0.9  # Of nodes. A part of more does not pay.
NODE_KEYS = ['x', 'y', 'train_mask', 'val_mask']


class Part(NamedTuple):
    """A part of a graph.

    Attributes:
        nodes (torch.Tensor): Its nodes.
        near (torch.Tensor): A mask of those nodes of the whole graph whose
            incoming edges it has.
    """

    nodes: Tensor
    near: Tensor

    @classmethod
    def reached(
        cls, edge_index: Tensor, mask: Tensor, num_hops: int
    ) -> 'Part':
        """What some nodes get messages from. At the last hop, no more edges
        arrive.
        """
        row, col = edge_index
        near, far = torch.zeros_like(mask), mask
        for _ in range(num_hops):
            near, far = far, far.clone()
            far[row[near[col]]] = True
        return cls(far.nonzero().flatten(), near)

    def edges(self, edge_index: Tensor) -> Tuple[Tensor, Tensor]:
        """Its edges, in their order, and where they are in the graph."""
        index = self.near[edge_index[1]].nonzero().flatten()
        number = torch.full_like(self.near, -1, dtype=torch.long)
        number[self.nodes] = torch.arange(
            self.nodes.numel(), device=number.device
        )
        return number[edge_index[:, index]], index

    def data(self, data: Data) -> Data:
        """Its features, labels, masks and edges."""
        edge_index, index = self.edges(data.edge_index)
        out = Data(edge_index=edge_index)
        for key in NODE_KEYS:
            out[key] = data[key][self.nodes]
        for key in [*EDGE_KEYS, 'e_id']:
            # PyG takes 'e_id' for a feature of nodes if there are as many:
            if key in data and (key == 'e_id' or data.is_edge_attr(key)):
                out[key] = data[key][index]
        return out


class KnownGraph:
    """A graph that stays as it is, and what layers computed of it: sums of
    the features of neighbors, which take as much memory as the features, and
    norms of edges. Both are those of the whole graph in any part of it.

    Args:
        data (Data): The graph, with all nodes.
        whole (KnownGraph, optional): The graph that is to be had a part of.
            (default: :obj:`None`)
        part (Part, optional): This part. (default: :obj:`None`)
        inputs (List[SparseInput], optional): What layers may be given of
            which few values are not zero. More is added.
            (default: :obj:`None`)
    """

    def __init__(
        self,
        data: Data,
        whole: Optional['KnownGraph'] = None,
        part: Optional[Part] = None,
        inputs: Optional[List[SparseInput]] = None,
    ) -> None:
        self.whole = whole
        self._part = part
        self.data = data if part is None else part.data(data)
        self.inputs = [] if inputs is None else inputs
        self._sums: Dict[Any, Tensor] = {}
        self._norms: Dict[Any, Tuple[Tensor, Tensor]] = {}
        self._parts: Dict[Any, KnownGraph] = {}
        if not any(found.x is self.data.x for found in self.inputs):
            self._compress(self.data.x)

    @property
    def is_constant(self) -> bool:
        """Whether features may be added up once."""
        x = self.data.x
        if not self.is_divisible or x.dim() != 2 or x.requires_grad:
            return False
        return bool(x.is_floating_point())

    @property
    def is_divisible(self) -> bool:
        """Whether features of some nodes are to be had."""
        x = self.data.x
        return isinstance(x, Tensor) and x.layout == torch.strided

    def sums(self, key: Any, compute: Callable[[Any], Tensor]) -> Tensor:
        """Sums over the neighbors of each node."""
        if key not in self._sums:
            if self.whole is None or self._part is None:
                sums = compute(self)
            else:
                sums = self.whole.sums(key, compute)[self._part.nodes]
            self._compress(sums)
            self._sums[key] = sums
        return self._sums[key]

    def norm(
        self, key: Any, compute: Callable[[Any], Tuple[Tensor, Tensor]]
    ) -> Tuple[Tensor, Tensor]:
        """Edges, with those that layers add, and their weights."""
        if key not in self._norms:
            if self.whole is None or self._part is None:
                self._norms[key] = compute(self)
            else:
                edge_index, weight = self.whole.norm(key, compute)
                edge_index, index = self._part.edges(edge_index)
                self._norms[key] = edge_index, weight[index]
        return self._norms[key]

    def part(self, key: str, num_hops: int) -> 'KnownGraph':
        """What the nodes of a mask get messages from, or all, if that is
        nearly all.
        """
        if (key, num_hops) not in self._parts:
            data, graph = self.data, self
            part = Part.reached(data.edge_index, data[key], num_hops)
            if part.nodes.numel() <= MAX_SHARE * part.near.numel():
                graph = KnownGraph(data, self, part, self.inputs)
            self._parts[key, num_hops] = graph
        return self._parts[key, num_hops]

    def holding(self, edge_index: Any) -> Optional['KnownGraph']:
        """The graph, itself or a part of it, that has these edges."""
        for graph in [self, *self._parts.values()]:
            if edge_index is graph.data.edge_index:
                return graph
        return None

    def with_edges_of(self, data: Data) -> 'KnownGraph':
        """A graph with the same features."""
        inputs = [found for found in self.inputs if found.x is data.x]
        return KnownGraph(data, inputs=inputs)

    def _compress(self, x: Any) -> None:
        found = SparseInput.find(x)
        if found is not None:
            self.inputs.append(found)

    def __deepcopy__(self, memo: Any) -> 'KnownGraph':
        return self


def call(model: Module, data: Data) -> Tensor:
    """Calls a model with the features and edges of a graph, and what it takes
    of their weights and features.
    """
    accepted = inspect.signature(model.forward).parameters
    kwargs = {
        key: data[key]
        for key in EDGE_KEYS
        if key in accepted and data.get(key) is not None
    }
    return model(data.x, data.edge_index, **kwargs)
