import hashlib
from typing import Any

import torch
from torch import Tensor

from torch_geometric_ext.transforms.collated import read_chunks


def fingerprint(dataset: Any, *settings: Any) -> str:
    """Tells data sets and settings apart. Reads every graph once."""
    out = hashlib.sha256()
    _update(out, settings)
    for chunk in read_chunks(dataset, 0, len(dataset), 4096):
        _update(out, [chunk.attrs, chunk.ptrs, chunk.node_ptr])
    return out.hexdigest()[:16]


def _update(out: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        out.update(f'{value.dtype} {list(value.shape)}'.encode())
        out.update(value.flatten().view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            out.update(str(key).encode())
            _update(out, value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _update(out, item)
    else:
        out.update(repr(value).encode())
    out.update(b';')
