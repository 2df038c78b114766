import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex


def digest(*values: Any) -> str:
    """Return the SHA-256 hash of values, as a hexadecimal string.

    Tensors are hashed by type, shape and elements, whatever their device and
    layout. Dictionaries (in the order of their keys), lists, tuples and
    iterators are hashed by their items, and other values by their `repr`.
    """
    out = hashlib.sha256()
    for value in values:
        _update(out, value)
    return out.hexdigest()


def _update(out: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        _update_tensor(out, value.detach())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            out.update(str(key).encode())
            _update(out, value[key])
    elif isinstance(value, (list, tuple, Iterator)):
        for item in value:
            _update(out, item)
    else:
        out.update(repr(value).encode())
    out.update(b';')


def _update_tensor(out: Any, x: Tensor) -> None:
    if isinstance(x, EdgeIndex):
        x = x.as_tensor()
    if x.layout != torch.strided:
        x = x.to_dense()
    x = x.cpu().contiguous()
    out.update(f'{x.dtype} {list(x.shape)}'.encode())
    out.update(x.flatten().view(torch.uint8).numpy())
