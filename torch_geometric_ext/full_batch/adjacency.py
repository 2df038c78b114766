"""Edges of a static graph in compressed rows, for message passing without
messages.
"""

from functools import cached_property, partial
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.csr_matmul import csr_matmul
from torch_geometric_ext.ops.csr_product import compress, csr_matrix, multiply
from torch_geometric_ext.ops.ragged import row_index, take_rows

REDUCTIONS = ['add', 'sum', 'mean']


class Adjacency:
    """Hold edges and, once needed, their compressed rows.

    Args:
        edge_index (torch.Tensor): The edges (int64, of shape :obj:`[2, E]`).
        weight (torch.Tensor, optional): The edge weights, of shape
            :obj:`[E]` or :obj:`[E, 1]`, or edge features that are passed on
            with the edges.
        num_nodes (int): The number of nodes.
    """

    def __init__(
        self, edge_index: Tensor, weight: Optional[Tensor], num_nodes: int
    ) -> None:
        self.edge_index = edge_index
        self.weight = weight
        self.num_nodes = num_nodes
        self._matrices: Dict[Any, Tensor] = {}

    @cached_property
    def rows(self) -> Tuple[Tensor, Tensor, Tensor]:
        """The boundaries of the edges into each target, their sources, and
        their positions in :obj:`edge_index`.
        """
        target, source = self.edge_index[1], self.edge_index[0]
        return compress(target, source, self.num_nodes)

    @cached_property
    def cols(self) -> Tuple[Tensor, Tensor, Tensor]:
        """The same of the edges out of each source."""
        source, target = self.edge_index[0], self.edge_index[1]
        return compress(source, target, self.num_nodes)

    def matmul(self, x: Tensor, aggr: str = 'sum') -> Tensor:
        """Aggregate the features of neighbors, times the edge weights.

        Args:
            x (torch.Tensor): The features, of shape :obj:`[N, C]`.
            aggr (str, optional): :obj:`"add"`, :obj:`"sum"` or
                :obj:`"mean"`. (default: :obj:`"sum"`)
        """
        return multiply(x, partial(self.matrix, x.dtype, aggr))

    def weighted_matmul(
        self, value: Tensor, x: Tensor, aggr: str = 'sum'
    ) -> Tensor:
        """Aggregate the features of neighbors, times values that change.

        Args:
            value (torch.Tensor): The values, of shape :obj:`[E, H]`.
            x (torch.Tensor): The features, of shape :obj:`[N, H, C]`.
            aggr (str, optional): :obj:`"add"`, :obj:`"sum"` or
                :obj:`"mean"`. (default: :obj:`"sum"`)
        """
        out: Tensor = csr_matmul(value, x, *self.rows, *self.cols)
        if aggr == 'mean':
            degree = self.rows[0].diff().clamp(min=1)
            out = out / degree.to(x.dtype).view(-1, 1, 1)
        return out

    def matrix(
        self, dtype: torch.dtype, aggr: str, transposed: bool = False
    ) -> Tensor:
        """Return the adjacency matrix of shape :obj:`[N, N]`, row by target,
        or its transpose, which only gradients need.
        """
        key = dtype, aggr == 'mean', transposed
        if key not in self._matrices:
            value = self._values(dtype, aggr)
            ptr, index, perm = self.cols if transposed else self.rows
            matrix = csr_matrix(ptr, index, value[perm], self.num_nodes)
            self._matrices[key] = matrix
        return self._matrices[key]

    def incoming(
        self, dtype: torch.dtype, nodes: Optional[Tensor], aggr: str
    ) -> Tensor:
        """Return the rows of the adjacency matrix of some targets, in CSR
        format.

        Args:
            dtype (torch.dtype): The type of its values.
            nodes (torch.Tensor, optional): The targets, or :obj:`None` for
                all nodes.
            aggr (str): The reduction.
        """
        ptr, source, perm = self.rows
        value = self._values(dtype, aggr)
        if nodes is not None:
            ptr, index = take_rows(ptr, nodes)
            source, perm = source[index], perm[index]
        return csr_matrix(ptr, source, value[perm], self.num_nodes)

    def sources(self, nodes: Tensor) -> Tensor:
        """Return the sources of all edges into some nodes."""
        ptr, source, _ = self.rows
        return source[take_rows(ptr, nodes)[1]]

    def subgraph(
        self, nodes: Tensor, targets: Tensor
    ) -> Tuple['Adjacency', Tensor]:
        """Return the edges into some targets, with relabeled nodes, and their
        positions in :obj:`edge_index`.

        Args:
            nodes (torch.Tensor): The nodes of the subgraph, ascending. They
                include the targets and their neighbors.
            targets (torch.Tensor): The targets, ascending.
        """
        ptr, source, perm = self.rows
        ptr, index = take_rows(ptr, targets)
        target = targets[row_index(ptr, index.numel())]
        ends = torch.stack([source[index], target])
        edge_index = torch.searchsorted(nodes, ends.contiguous())
        e_id = perm[index]
        weight = None if self.weight is None else self.weight[e_id]
        return Adjacency(edge_index, weight, nodes.numel()), e_id

    @property
    def num_bytes(self) -> int:
        """The memory of compressed rows and matrices."""
        tensors = [
            tensor
            for name in ['rows', 'cols']
            for tensor in vars(self).get(name, ())
        ]
        tensors += [matrix.values() for matrix in self._matrices.values()]
        return sum(x.numel() * x.element_size() for x in tensors)

    def _values(self, dtype: torch.dtype, aggr: str) -> Tensor:
        if self.weight is not None:
            value = self.weight.flatten().to(dtype)
        else:
            value = self.edge_index.new_ones(self.edge_index.size(1)).to(dtype)
        if aggr == 'mean':
            target = self.edge_index[1]
            degree = torch.bincount(target, minlength=self.num_nodes)
            value = value / degree[target].to(dtype)
        return value
