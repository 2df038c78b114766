"""Cache the aggregation of sparse features, and multiply it by weights in the
cheaper order.
"""

from functools import cached_property
from typing import Optional

import torch
from torch import Tensor

from torch_geometric_ext.full_batch.sparse_input import (
    BLOCK_SIZE,
    MAX_DENSITY,
    SparseInput,
    transpose,
)
from torch_geometric_ext.ops.csr_product import csr_matrix, multiply
from torch_geometric_ext.ops.ragged import take_rows

# On CPUs, products of two sparse matrices are faster than those with dense
# features up to this density. Measured by
# `benchmark/full_batch/sparse_input.py --aggregate`:
MAX_PRODUCT_DENSITY = 1 / 128


class AggregatedInput(SparseInput):
    r"""Hold aggregated features :math:`\mathbf{A} \mathbf{X}` as two sparse
    factors.

    The product with a weight is :math:`\mathbf{A} (\mathbf{X} \mathbf{W})`,
    since :math:`\mathbf{A} \mathbf{X}` has more nonzero values.

    Args:
        x (torch.Tensor): The aggregated features, of shape :obj:`[N, C]`.
        rows (torch.Tensor): The features of the sources, a CSR matrix of
            shape :obj:`[M, C]`.
        matrix (torch.Tensor): The edges, a CSR matrix of shape
            :obj:`[N, M]`.
    """

    def __init__(self, x: Tensor, rows: Tensor, matrix: Tensor) -> None:
        super().__init__(x, rows)
        self.matrix = matrix

    @cached_property
    def transposed_matrix(self) -> Tensor:
        """The transpose of the edges, which only gradients need."""
        return transpose(self.matrix)

    @property
    def num_bytes(self) -> int:  # noqa: D102
        value, index = self.matrix.values(), self.matrix.col_indices()
        size = value.element_size() + index.element_size()
        factor = 1 + ('transposed_matrix' in vars(self))
        return super().num_bytes + value.numel() * size * factor

    def product(self, weight: Tensor) -> Tensor:  # noqa: D102
        return self.matrix @ super().product(weight)

    def transposed_product(self, grad: Tensor) -> Tensor:  # noqa: D102
        return super().transposed_product(self.transposed_matrix @ grad)

    def from_rows(self, out: Tensor) -> Tensor:  # noqa: D102
        return multiply(
            out, lambda back: self.transposed_matrix if back else self.matrix
        )


def aggregate_sparse(inputs: SparseInput, matrix: Tensor) -> Tensor:
    """Aggregate sparse features into a dense tensor, without their zeros if
    few are not zero. Both ways add in the same order.

    Args:
        inputs (SparseInput): The features, of shape :obj:`[M, C]`.
        matrix (torch.Tensor): The edges, a CSR matrix of shape
            :obj:`[N, M]`.
    """
    if not inputs.x.is_cpu or inputs.density > MAX_PRODUCT_DENSITY:
        return matrix @ inputs.x
    features = inputs.rows.to_sparse_coo()
    num_rows, num_features = matrix.size(0), inputs.x.size(1)
    out = inputs.x.new_zeros(num_rows, num_features)
    ptr, col, value = (
        matrix.crow_indices(),
        matrix.col_indices(),
        matrix.values(),
    )
    for first in range(0, num_rows, BLOCK_SIZE):  # A bound on the memory.
        part = ptr[first : first + BLOCK_SIZE + 1]
        inside = slice(int(part[0]), int(part[-1]))
        edges = csr_matrix(
            part - part[0], col[inside], value[inside], matrix.size(1)
        )
        found = torch.sparse.mm(edges.to_sparse_coo(), features)
        index = found._indices()
        block = out[first : first + BLOCK_SIZE].view(-1)
        position = index[0] * num_features + index[1]
        block.scatter_add_(0, position, found._values())
    return out


def find_cheaper(
    x: Tensor, inputs: SparseInput, matrix: Tensor
) -> Optional[SparseInput]:
    """Return how to multiply aggregated features by weights, or :obj:`None`
    for a dense product. This is decided by numbers of multiplications for
    each output channel, and equals on all machines. The backward pass takes
    as many as the forward pass.

    Args:
        x (torch.Tensor): The aggregated features.
        inputs (SparseInput): The features.
        matrix (torch.Tensor): The edges.
    """
    sources, col = matrix.col_indices().unique(return_inverse=True)
    ptr, index = take_rows(inputs.rows.crow_indices(), sources)
    # The products of sources are written and read, too:
    cost = index.numel() + col.numel() + sources.numel()
    if min(int(x.count_nonzero()), MAX_DENSITY * x.numel()) <= cost:
        return SparseInput.find(x)
    rows = csr_matrix(
        ptr,
        inputs.rows.col_indices()[index],
        inputs.rows.values()[index],
        x.size(1),
    )
    edges = csr_matrix(
        matrix.crow_indices(), col, matrix.values(), sources.numel()
    )
    return AggregatedInput(x, rows, edges)
