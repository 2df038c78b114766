"""A part of a static graph, and what layers cache of it."""

from typing import Dict, Hashable, NamedTuple, Optional

from torch import Tensor
from torch_geometric.data import Data

from torch_geometric_ext.full_batch.adjacency import Adjacency
from torch_geometric_ext.full_batch.aggregated_input import (
    aggregate_sparse,
    find_cheaper,
)
from torch_geometric_ext.full_batch.sparse_input import SparseInput


class Subgraph:
    """Hold the nodes that some outputs depend on, or the whole graph, and
    what layers cache of it.

    Args:
        data (torch_geometric.data.Data): The subgraph.
        nodes (torch.Tensor, optional): The nodes, ascending, or :obj:`None`
            for all. (default: :obj:`None`)
        targets (torch.Tensor, optional): The nodes whose incoming edges the
            subgraph has, or :obj:`None` for all. (default: :obj:`None`)
    """

    def __init__(
        self,
        data: Data,
        nodes: Optional[Tensor] = None,
        targets: Optional[Tensor] = None,
    ) -> None:
        self.data = data
        self.nodes = nodes
        self.targets = targets
        self.edges: Dict[Hashable, Adjacency] = {}
        self.aggregated: Dict[Hashable, Tensor] = {}
        self.inputs: Dict[int, SparseInput] = {}

    def compress(self, x: Tensor) -> None:
        """Multiply a tensor sparsely from now on, if it is sparse."""
        self._add(x, SparseInput.find(x))

    def aggregate(
        self, x: Tensor, inputs: Optional[SparseInput], matrix: Tensor
    ) -> Tensor:
        """Aggregate features, and multiply the result sparsely from now on if
        that is cheaper.

        Args:
            x (torch.Tensor): The features of the whole graph.
            inputs (SparseInput, optional): The same if they are sparse.
            matrix (torch.Tensor): The edges into the nodes of the subgraph,
                in CSR format.
        """
        if inputs is None:
            out = matrix @ x
            self.compress(out)
        else:
            out = aggregate_sparse(inputs, matrix)
            self._add(out, find_cheaper(out, inputs, matrix))
        return out

    def _add(self, x: Tensor, found: Optional[SparseInput]) -> None:
        if found is not None:
            self.inputs[id(x)] = found

    @property
    def num_bytes(self) -> int:
        """The memory of caches, and of the copy of features of a part."""
        tensors = list(self.aggregated.values())
        if self.nodes is not None:
            tensors.append(self.data.x)
        return (
            sum(x.numel() * x.element_size() for x in tensors)
            + sum(found.num_bytes for found in self.inputs.values())
            + sum(adj.num_bytes for adj in self.edges.values())
        )


class Selection(NamedTuple):
    """Some nodes of a graph, and the subgraph that their outputs depend on.

    Attributes:
        subgraph (Subgraph): The subgraph.
        rows (torch.Tensor, optional): The rows of its output to return, or
            :obj:`None` for all.
    """

    subgraph: Subgraph
    rows: Optional[Tensor]
