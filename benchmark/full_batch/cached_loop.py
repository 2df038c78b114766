"""A loop by hand for a GCN that computes its first aggregation once."""

from typing import Any, Callable, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm


class Product(torch.autograd.Function):
    """Multiply a constant CSR matrix by a dense one."""

    @staticmethod
    def forward(ctx: Any, adj: Tensor, adj_t: Tensor, x: Tensor) -> Tensor:
        ctx.adj_t = adj_t
        return adj @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, ctx.adj_t @ grad


def constant(matrix: Tensor, csr: bool) -> Callable[[Tensor], Tensor]:
    """Return the product by a constant matrix."""
    if not csr:
        dense = matrix.to_dense()
        return lambda x: dense @ x
    adj, adj_t = matrix.to_sparse_csr(), matrix.t().to_sparse_csr()
    return lambda x: Product.apply(adj, adj_t, x)


def cached_loop(
    model: Any, data: Data, csr: bool
) -> Tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return functions for the outputs of training and validation nodes."""
    size = (data.num_nodes, data.num_nodes)
    edge_index, weight = gcn_norm(
        data.edge_index, None, data.num_nodes, dtype=data.x.dtype
    )
    adj = torch.sparse_coo_tensor(edge_index.flip(0), weight, size).coalesce()
    first, second = model.convs

    def run(mask: Tensor) -> Callable[[], Tensor]:
        rows = adj.index_select(0, mask.nonzero().flatten()).coalesce()
        inner = rows.indices()[1].unique()
        features = adj.index_select(0, inner) @ data.x
        cached = constant(features.to_sparse() if csr else features, csr)
        outer = constant(rows.index_select(1, inner), csr=True)

        def forward() -> Tensor:
            h = cached(first.lin.weight.t()) + first.bias
            h = model.dropout(model.act(h))
            return outer(h @ second.lin.weight.t()) + second.bias

        return forward

    return run(data.train_mask), run(data.val_mask)
