"""Files that are replaced at once."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Union

try:
    import fcntl
except ImportError:  # Windows, which never removes open files.
    fcntl = None  # type: ignore[assignment]

# Seconds before a temporary file can count as abandoned: some network file
# systems do not show the locks of other machines.
MIN_AGE = 3600


def check_target(path: Union[str, Path]) -> None:
    """Raise an error if a file cannot be written for want of its folder.

    Raises:
        FileNotFoundError: If the folder does not exist.
        IsADirectoryError: If the path is that of a folder.
        OSError: If the path is that of a device, a pipe or a socket.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder '{path.parent}' does not exist")
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder")
    if path.exists() and not path.is_file():  # A rename would replace it.
        raise OSError(f"'{path}' needs to be a regular file, if it exists")


@contextlib.contextmanager
def atomic_write(path: Union[str, Path]) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces a file once it is complete.

    If the block raises an error, the temporary file is removed. If the
    process is killed, the temporary file stays until the next writer of the
    same file removes it, at least an hour later. A symbolic link stays, and
    the file that it points to is replaced.

    Raises:
        FileNotFoundError: If the folder does not exist.
        IsADirectoryError: If the path is that of a folder.
        OSError: If the path is that of a device, a pipe or a socket.
    """
    path = Path(os.path.realpath(path))
    check_target(path)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
        with open(temporary, 'xb') as file:
            _lock(file)
            _remove_abandoned(path, os.fstat(file.fileno()).st_mtime)
            yield file
            file.flush()
            os.fsync(file.fileno())  # Before the old file is gone.
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_abandoned(path: Path, now: float) -> None:
    """Remove temporary files of killed writers. The time is that of the file
    system, which may be another machine's.
    """
    pattern = re.compile(rf'\.{re.escape(path.name)}\.[0-9a-f]{{32}}')
    for other in path.parent.iterdir():
        if pattern.fullmatch(other.name):
            with contextlib.suppress(OSError):  # Another writer removed it.
                if now - other.stat().st_mtime > MIN_AGE:
                    with open(other, 'r+b') as file:
                        locked = _lock(file)
                    if locked:
                        other.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Return whether no other process had locked a file, and lock it until it
    is closed.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # Locked, or on a file system without locks.
        return False
    return True
