"""Run a model for the shapes of its tensors, without computing them."""

import copy
from typing import Any, List, Optional

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch_geometric.data import Data

aten = torch.ops.aten
INDEXING = [aten.index, aten.index_put, aten.index_put_]


class ShapesOnly(TorchDispatchMode):
    """Context manager that computes integers, such as edges, but of floating
    point tensors only the shapes, without memory.

    Floating point tensors are on the device "meta". An operation whose shapes
    or results depend on their values raises an error.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in INDEXING:  # Masks define the shape.
            args = (args[0], _positions(args[1]), *args[2:])
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(x, Tensor) and x.is_meta for x in leaves):
            return tree_map(_keep_shape, func(*args, **kwargs))
        in_place = func.overloadpacket.__name__.endswith('_')
        if in_place and not args[0].is_meta:
            raise NotImplementedError(f"'{func}' changes integers in place")
        args, kwargs = tree_map(_to_meta, (args, kwargs))
        return func(*args, **kwargs)


def keep_shapes(value: Any) -> Any:
    """Return a copy of a model or a graph whose floating point tensors have
    shapes only.
    """
    if isinstance(value, Data):
        return copy.copy(value).apply(_keep_shape)
    if not isinstance(value, Module):
        return tree_map(_keep_shape, value)
    model = copy.deepcopy(value)
    for module in model.modules():
        for name, x in module.named_parameters(recurse=False):
            param = Parameter(_keep_shape(x.detach()), x.requires_grad)
            module.register_parameter(name, param)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _keep_shape(buffer))
    return model


def _positions(index: List[Optional[Tensor]]) -> List[Optional[Tensor]]:
    out: List[Optional[Tensor]] = []
    for x in index:
        if x is not None and x.dtype == torch.bool:
            out += x.nonzero().unbind(dim=1)
        else:
            out.append(x)
    return out


def _keep_shape(x: Any) -> Any:
    is_float = isinstance(x, Tensor) and x.is_floating_point()
    return _to_meta(x) if is_float else x


def _to_meta(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.is_meta:
        return x
    if x.layout != torch.strided:
        raise NotImplementedError(f'shapes of {x.layout}')
    return x.detach().to('meta').requires_grad_(x.requires_grad)
