import os
import uuid
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor


def atomic_save(state: Any, path: Union[str, Path]) -> None:
    """Writes tensors in dictionaries and lists to a file, which is complete or
    not there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder '{path.parent}' is not there")
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
        with open(temporary, 'xb') as file:
            torch.save(without_views(state), file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_bytes(state: Any) -> int:
    """The number of bytes that :func:`atomic_save` writes."""
    counter = _Counter()
    torch.save(without_views(state), counter)  # type: ignore[arg-type]
    return counter.num_bytes


class _Counter:
    """A file that forgets what it is given."""

    num_bytes = 0

    def write(self, data: bytes) -> int:
        """Counts."""
        self.num_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing."""


def without_views(value: Any) -> Any:
    """Copies tensors that would take larger ones with them into a file."""
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
