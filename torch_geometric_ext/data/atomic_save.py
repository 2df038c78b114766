import io
import os
import uuid
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor


def atomic_save(state: Any, path: Union[str, Path]) -> None:
    """Save dictionaries and lists of tensors to a file.

    The file is replaced at once: it never holds a part of the state, even if
    the process stops.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder '{path.parent}' does not exist")
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
        with open(temporary, 'xb') as file:
            torch.save(without_views(state), file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_bytes(state: Any) -> int:
    """Return the size of the file that :func:`atomic_save` writes."""
    buffer = io.BytesIO()
    torch.save(without_views(state), buffer)
    return buffer.tell()


def without_views(value: Any) -> Any:
    """Clone tensors that are views, since :func:`torch.save` writes the whole
    storage behind a view.
    """
    if isinstance(value, dict):
        return {key: without_views(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_views(item) for item in value]
    if isinstance(value, Tensor):
        size = value.numel() * value.element_size()
        return (
            value
            if value.untyped_storage().nbytes() == size
            else value.clone()
        )
    return value


def tensor_bytes(value: Any) -> int:
    """Return the number of bytes of all tensors in dictionaries and lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(item) for item in value)
    return 0
