"""Call a model with a graph."""

import inspect
from typing import Any, Dict

from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import Sequential

from torch_geometric_ext.full_batch.check_static import EDGE_KEYS
from torch_geometric_ext.full_batch.conv.static_edges_conv import (
    StaticEdgesConv,
)


def call_model(model: Module, data: Data) -> Tensor:
    """Call a model with the features and edges of a graph, and with the edge
    weights and edge features that it takes.
    """
    out: Tensor = model(data.x, data.edge_index, **edge_kwargs(model, data))
    return out


def edge_kwargs(model: Module, data: Data) -> Dict[str, Any]:
    """Return the edge weights and edge features that a model takes."""
    accepted = list(inspect.signature(model.forward).parameters)
    if isinstance(model, StaticEdgesConv):
        accepted = list(model.signature.parameters)
    if isinstance(model, Sequential):  # Its signature is an attribute.
        accepted = list(model.signature.param_dict)
    return {
        key: data[key]
        for key in EDGE_KEYS
        if key in accepted and data.get(key) is not None
    }
