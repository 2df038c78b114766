"""Call a model with a graph."""

import inspect
from functools import lru_cache
from typing import Any, Callable, Dict, FrozenSet

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
    if isinstance(model, StaticEdgesConv):
        accepted = frozenset(model.signature.parameters)
    elif isinstance(model, Sequential):  # Its signature is an attribute.
        accepted = frozenset(model.signature.param_dict)
    elif inspect.ismethod(model.forward):
        accepted = _parameters(model.forward.__func__)
    else:
        accepted = frozenset(inspect.signature(model.forward).parameters)
    return {
        key: data[key]
        for key in EDGE_KEYS
        if key in accepted and data.get(key) is not None
    }


@lru_cache
def _parameters(function: Callable) -> FrozenSet[str]:
    """Return the names of parameters, which each forward pass looks up."""
    return frozenset(inspect.signature(function).parameters)
