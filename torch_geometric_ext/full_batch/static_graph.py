"""Graphs that are trained on for many epochs, and what is computed of them
once.
"""

import inspect
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import Sequential

from torch_geometric_ext.full_batch.sparse_input import SparseInput
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs

EDGE_KEYS = ['edge_weight', 'edge_attr']
MAX_SHARE = 0.9  # Of nodes. A part of more does not pay.
NODE_KEYS = ['x', 'y', 'train_mask', 'val_mask']

Norm = Tuple[Tensor, Tensor]  # Edges and their weights.


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
            if _is_still(data.get(key), data.num_edges):
                out[key] = data[key][index]
        return out


class View:
    """A graph, or a part of it, and what layers know of it.

    Args:
        data (Data): The graph.
        part (Part, optional): The part of it. (default: :obj:`None`)
    """

    def __init__(self, data: Data, part: Optional[Part] = None) -> None:
        self.data = data if part is None else part.data(data)
        self.part = part
        self.sums: Dict[Any, Tensor] = {}
        self.norms: Dict[Any, Norm] = {}


class KnownGraph:
    """A graph that stays as it is, and what layers computed of it: sums of
    the features of neighbors and norms of edges, which are those of the whole
    graph in any part of it. Of each part, sums take as much memory as its
    features, of which it has a copy.

    Args:
        data (Data): The graph, with all nodes.
        inputs (List[SparseInput], optional): What layers may be given of
            which few values are not zero. More is added.
            (default: :obj:`None`)
    """

    def __init__(
        self, data: Data, inputs: Optional[List[SparseInput]] = None
    ) -> None:
        self.data = data
        self.whole = View(data)
        self.inputs = [] if inputs is None else inputs
        # Whether parts of it have given what it gives, once that is known:
        self.is_local: Optional[bool] = None
        # None refers to this graph, which a cycle would free late:
        self._parts: Dict[Tuple[Tensor, int], View] = {}
        self._is_undirected: Optional[bool] = None
        if not any(found.x is data.x for found in self.inputs):
            self._compress(data.x)

    @property
    def is_still(self) -> bool:
        """Whether features and edges are ordinary, and not to be changed."""
        edge_index, num_edges = self.data.edge_index, self.data.num_edges
        sizes = {'x': self.data.num_nodes}
        sizes.update({x: num_edges for x in EDGE_KEYS if x in self.data})
        return (
            _is_still(edge_index)
            and edge_index.dtype == torch.long
            and all(_is_still(self.data[x], n) for x, n in sizes.items())
        )

    @property
    def is_undirected(self) -> bool:
        """Whether all edges go both ways."""
        if self._is_undirected is None:
            pairs = EdgePairs(self.data.edge_index, self.data.num_nodes)
            self._is_undirected = pairs.undirected
        return self._is_undirected

    def view(self, edge_index: Any) -> Optional[View]:
        """What has these edges, the graph or a part of it."""
        for view in [self.whole, *self._parts.values()]:
            if edge_index is view.data.edge_index:
                return view
        return None

    def part(self, mask: Tensor, num_hops: int) -> View:
        """What the nodes of a mask get messages from, or all, if that is
        nearly all. The same mask, not an equal one, gives the same part.
        """
        if (mask, num_hops) not in self._parts:
            view, data = self.whole, self.data
            part = Part.reached(data.edge_index, mask, num_hops)
            if part.nodes.numel() <= MAX_SHARE * part.near.numel():
                view = View(data, part)
                self._compress(view.data.x)
            self._parts[mask, num_hops] = view
        return self._parts[mask, num_hops]

    def sums(
        self, view: View, key: Any, compute: Callable[[Any], Tensor]
    ) -> Tensor:
        """Sums over all neighbors of some nodes, or of all (of no part)."""
        if key not in view.sums:
            nodes = None if view.part is None else view.part.nodes
            sums = compute(nodes)
            self._compress(sums)
            view.sums[key] = sums
        return view.sums[key]

    def norm(self, view: View, key: Any, compute: Callable[[], Norm]) -> Norm:
        """Edges, with those that layers add, and their weights, which are
        computed for all of them.
        """
        if key not in view.norms:
            if view.part is None:
                view.norms[key] = compute()
            else:
                edge_index, weight = self.norm(self.whole, key, compute)
                edge_index, index = view.part.edges(edge_index)
                view.norms[key] = edge_index, weight[index]
        return view.norms[key]

    def forget(self) -> None:
        """Frees what is known of it."""
        self._parts.clear()
        self.whole.sums.clear()
        self.whole.norms.clear()
        x = self.data.x
        self.inputs = [found for found in self.inputs if found.x is x]

    def with_edges_of(self, data: Data) -> 'KnownGraph':
        """A graph with the same features."""
        inputs = [found for found in self.inputs if found.x is data.x]
        graph = KnownGraph(data, inputs)
        graph.is_local = self.is_local
        return graph

    def _compress(self, x: Any) -> None:
        found = SparseInput.find(x)
        if found is not None:
            self.inputs.append(found)


def _is_still(value: Any, size: Optional[int] = None) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dim() > 0
        and size in [None, value.size(0)]
        and not value.requires_grad
    )


def call(model: Module, data: Data) -> Tensor:
    """Calls a model with the features and edges of a graph, and what it takes
    of their weights and features.
    """
    out = model(data.x, data.edge_index, **edge_kwargs(model, data))
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise ValueError(
            f"'model' needs to return a score of each class for each node; "
            f"for any other, give 'loss_fn' and 'evaluate' (got "
            f'{list(out.shape) if isinstance(out, Tensor) else type(out)})'
        )
    return out


def edge_kwargs(model: Module, data: Data) -> Dict[str, Any]:
    """The weights and features of edges, if a model takes them."""
    accepted = list(inspect.signature(model.forward).parameters)
    if isinstance(model, Sequential):  # It tells elsewhere.
        accepted = list(model.signature.param_dict)
    return {
        key: data[key]
        for key in EDGE_KEYS
        if key in accepted and data.get(key) is not None
    }
