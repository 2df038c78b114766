"""Check whether a graph can be static."""

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

EDGE_KEYS = ['edge_weight', 'edge_attr']


def check_static(data: Any) -> None:
    """Raise an error unless a graph has static features and edges."""
    if not isinstance(data, Data):
        raise TypeError(f"'data' needs to be a 'Data' (got {type(data)})")
    for key in ['x', 'edge_index']:
        if data.get(key) is None:
            raise ValueError(
                f"'data' needs to hold '{key}', and its edges not as 'adj_t' "
                f'(got {data})'
            )
    x, edge_index = data.x, data.edge_index
    if x.layout != torch.strided or x.dim() != 2 or x.requires_grad:
        raise ValueError(
            f"'x' of 'data' needs to be a dense matrix that needs no gradient "
            f"('to_dense' makes it dense, and its zeros are skipped all the "
            f'same; got {x.layout} of shape {list(x.shape)}, '
            f'requires_grad={x.requires_grad})'
        )
    if edge_index.dtype != torch.long or edge_index.dim() != 2:
        raise ValueError(
            f"'edge_index' of 'data' needs to be of torch.int64 and of shape "
            f'[2, num_edges] (got {edge_index.dtype} and '
            f'{list(edge_index.shape)})'
        )
    if edge_index.numel() > 0:
        low, high = (int(value) for value in edge_index.aminmax())
        if low < 0 or high >= x.size(0):
            raise ValueError(
                f"'edge_index' of 'data' needs to be in [0, {x.size(0)}), the "
                f"rows of 'x' (got {low} to {high})"
            )
    for key in EDGE_KEYS:
        value = data.get(key)
        if value is not None and (
            not isinstance(value, Tensor)
            or value.requires_grad
            or value.size(0) != edge_index.size(1)
        ):
            raise ValueError(
                f"'{key}' of 'data' needs to have a row for each of the "
                f'{edge_index.size(1)} edges, and to need no gradient (got '
                f'{value})'
            )
