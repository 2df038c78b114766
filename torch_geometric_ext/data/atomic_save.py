"""Files of dictionaries and lists of tensors, which load exactly as they were
saved or not at all.
"""

import hashlib
import math
import os
import re
import zipfile
from pathlib import Path
from typing import (
    IO,
    Any,
    Callable,
    List,
    NamedTuple,
    Optional,
    TypeVar,
    Union,
    cast,
)

import torch
from torch import Tensor

from torch_geometric_ext.data.atomic_write import atomic_write

T = TypeVar('T')

# The first line of each file: its kind, the version of its layout, the number
# of bytes that follow, and a checksum of all else.
MAGIC = b'torch_geometric_ext '
HEADER = re.compile(rb'(%b(\w+) (\d{1,9}) (\d{16}) )([0-9a-f]{64})\n' % MAGIC)
MAX_HEADER = 256  # Bytes.
ZIP = b'PK\x03\x04'  # The first bytes of files without a header.
BITS = 'torch_geometric_ext.bits'  # The key of a mask, eight elements a byte.


class FileKind(NamedTuple):
    """The content of a file.

    Args:
        name (str): The class that the file holds.
        version (int): The version of its layout, to increase with each
            change.
    """

    name: str
    version: int


def atomic_save(state: Any, path: Union[str, Path], kind: FileKind) -> None:
    """Save dictionaries and lists of tensors to a file.

    The file is replaced at once: it never holds a part of the state, even if
    the process stops. Masks are stored as bits.

    Raises:
        FileNotFoundError: If the folder does not exist.
        IsADirectoryError: If the path is that of a folder.
    """
    with atomic_write(path) as file:
        file.write(_header(kind, 0, 64 * '0'))
        payload = _Payload(file)
        payload.save(state)
        num_bytes = payload.num_bytes
        payload.hash.update(_prefix(kind, num_bytes))
        file.seek(0)
        file.write(_header(kind, num_bytes, payload.hash.hexdigest()))


def load_saved(
    path: Union[str, Path],
    kind: FileKind,
    parse: Callable[[Any], T],
    map_location: Any = None,
) -> T:
    """Load a file of :func:`atomic_save`, or one of earlier versions, which
    have no checksum of their own.

    Args:
        path (str or Path): The file.
        kind (FileKind): The expected content.
        parse (callable): A function that returns the result, given the state.
            It may raise any error if the state is of another kind.
        map_location (Any, optional): See :func:`torch.load`.
            (default: :obj:`None`)

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, of another kind, or of a newer
            version.
    """
    if Path(path).is_dir():
        raise ValueError(
            f"'{path}' does not hold '{kind.name}' (got a folder)"
        )
    if map_location is None and not torch.cuda.is_available():
        map_location = 'cpu'
    with open(path, 'rb') as file:
        _verify(file, path, kind)
        try:
            state = torch.load(file, map_location, weights_only=True)
            return parse(_decode(state))
        except Exception as error:  # Unpickling can raise anything.
            message = f"'{path}' does not hold '{kind.name}'"
            raise ValueError(message) from error


def file_bytes(state: Any) -> int:
    """Return the size of the file that :func:`atomic_save` writes, without
    its header.
    """
    with open(os.devnull, 'wb') as file:
        payload = _Payload(file)
        payload.save(state)
    return payload.num_bytes


def tensor_bytes(value: Any) -> int:
    """Return the number of bytes of all tensors in dictionaries and lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(item) for item in value)
    return 0


class _Payload:
    """A stream that counts and hashes the bytes that it writes to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.hash = hashlib.sha256()
        self.num_bytes = 0
        self._file = file
        self._error: Optional[OSError] = None

    def save(self, state: Any) -> None:
        try:
            torch.save(_encode(state), cast(IO[bytes], self))
        except RuntimeError:  # It hides the error of a full disk.
            if self._error is not None:
                raise self._error from None
            raise

    def write(self, content: Any) -> int:
        self.hash.update(content)
        self.num_bytes += len(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self._error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _prefix(kind: FileKind, num_bytes: int) -> bytes:
    return MAGIC + f'{kind.name} {kind.version} {num_bytes:016d} '.encode()


def _header(kind: FileKind, num_bytes: int, checksum: str) -> bytes:
    return _prefix(kind, num_bytes) + f'{checksum}\n'.encode()


def _verify(file: IO[bytes], path: Union[str, Path], kind: FileKind) -> None:
    """Raise an error if a file is not what was saved, and go to its content
    otherwise.
    """
    line = file.readline(MAX_HEADER)
    if line.startswith(ZIP):
        return _verify_zip(file, path)
    match = HEADER.fullmatch(line)
    if match is None:
        if line.startswith(MAGIC):
            raise ValueError(f"'{path}' is damaged (its header is cut)")
        got = 'another format' if line else 'an empty file'
        raise ValueError(f"'{path}' does not hold '{kind.name}' (got {got})")
    prefix, name, version, num_bytes, checksum = match.groups()
    _verify_content(file, path, prefix, int(num_bytes), checksum.decode())
    if name.decode() != kind.name:
        raise ValueError(
            f"'{path}' does not hold '{kind.name}' (got '{name.decode()}')"
        )
    if int(version) > kind.version:
        raise ValueError(
            f"'{path}' is of a newer version of 'torch_geometric_ext' (got "
            f"layout {int(version)} of '{kind.name}', expected at most "
            f'{kind.version})'
        )
    file.seek(len(line))


def _verify_content(
    file: IO[bytes],
    path: Union[str, Path],
    prefix: bytes,
    num_bytes: int,
    checksum: str,
) -> None:
    """Raise an error if the bytes after a header are not those saved."""
    size = os.fstat(file.fileno()).st_size - file.tell()
    if size != num_bytes:
        problem = 'truncated' if size < num_bytes else 'too long'
        raise ValueError(
            f"'{path}' is {problem} (expected {num_bytes} bytes after its "
            f'header, got {size})'
        )
    found = hashlib.sha256()
    while chunk := file.read(1 << 20):
        found.update(chunk)
    found.update(prefix)
    if found.hexdigest() != checksum:
        raise ValueError(f"'{path}' is damaged (its checksum differs)")


def _verify_zip(file: IO[bytes], path: Union[str, Path]) -> None:
    """Check a file without a header, by the checksums that it holds of each
    tensor.
    """
    try:
        damaged = zipfile.ZipFile(file).testzip()
    except Exception as error:  # A damaged archive can raise anything.
        raise ValueError(
            f"'{path}' is damaged or truncated (it is no archive)"
        ) from error
    if damaged is not None:
        raise ValueError(
            f"'{path}' is damaged (the checksum of a part differs)"
        )
    file.seek(0)


def _encode(value: Any) -> Any:
    """Pack masks, and clone tensors that are views, since :func:`torch.save`
    writes the whole storage behind a view.
    """
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.bool:
        return {BITS: _pack(value), 'shape': list(value.shape)}
    size = value.numel() * value.element_size()
    return value if value.untyped_storage().nbytes() == size else value.clone()


def _decode(value: Any) -> Any:
    """Restore the state that was encoded."""
    if isinstance(value, dict):
        if BITS in value:
            return _unpack(value[BITS], value['shape'])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value


def _pack(mask: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8))
    bit = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.view(-1, 8) << bit).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, shape: List[int]) -> Tensor:
    bit = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.view(-1, 1) >> bit) & 1
    return bits.view(-1)[: math.prod(shape)].view(shape).bool()
