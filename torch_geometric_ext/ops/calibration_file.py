"""Keep calibrations of machines in files."""

import hashlib
import json
import math
import os
import uuid
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch

import torch_geometric_ext.typing
from torch_geometric_ext.ops.crossovers import SIZE
from torch_geometric_ext.ops.csr_costs import NUM_COSTS
from torch_geometric_ext.ops.machine import cpu_model
from torch_geometric_ext.version import __version__

VARIABLE = 'TORCH_GEOMETRIC_EXT_CALIBRATION'
# The version of the layout and of the meaning of a file.
VERSION = 1
# What damaged files raise, among them deep lists and integers of many digits.
INVALID = (ValueError, TypeError, KeyError, RecursionError, OverflowError)


class Choices(NamedTuple):
    """Hold all that kernels choose by.

    Args:
        crossovers (List[float]): The result of
            :func:`~torch_geometric_ext.ops.crossovers.measure_crossovers`.
        csr_costs (List[float]): The result of
            :func:`~torch_geometric_ext.ops.csr_costs.measure_csr_costs`.
    """

    crossovers: List[float]
    csr_costs: List[float]


class Place(NamedTuple):
    """Locate a file of a calibration.

    Args:
        path (Path): The file.
        is_explicit (bool): Whether the user named the file, which then holds
            for all machines.
    """

    path: Path
    is_explicit: bool


def find_place(num_threads: int, dtype: torch.dtype) -> Optional[Place]:
    """Return the file of a calibration, or :obj:`None` if the environment
    variable is :obj:`"off"`.
    """
    folder, value = find_folder(), os.getenv(VARIABLE, '')
    if folder is None:
        return None
    if value.endswith('.json'):
        return Place(_expand(value), True)
    name = name_file('sparse_linear', describe(num_threads, dtype))
    return Place(folder / name, False)


def find_folder() -> Optional[Path]:
    """Return the folder of calibrations, or :obj:`None` if the environment
    variable is :obj:`"off"`.
    """
    value = os.getenv(VARIABLE, '')
    if value.lower() == 'off':
        return None
    folder = _expand(value) if value else _cache_folder()
    return folder.parent if value.endswith('.json') else folder


def name_file(prefix: str, machine: Dict[str, Any]) -> str:
    """Return the name of the file of a machine."""
    key = json.dumps(machine, sort_keys=True)
    return f'{prefix}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json'


def describe(num_threads: int, dtype: torch.dtype) -> Dict[str, Any]:
    """Return all that a calibration depends on."""
    return {
        'cpu': cpu_model(),
        'capability': torch.backends.cpu.get_cpu_capability(),
        'num_threads': num_threads,
        'dtype': str(dtype),
        'torch': torch.__version__,
        'torch_geometric_ext': __version__,
        'kernels': _kernel_digest(),
    }


def read(
    place: Place, num_threads: int, dtype: torch.dtype
) -> Optional[Choices]:
    """Return the choices of a file, or :obj:`None` if it does not hold
    them.

    Warns if the user named the file.
    """
    try:
        content = json.loads(place.path.read_text())
        choices = _parse(content)
        known = place.is_explicit or (
            content['machine'] == describe(num_threads, dtype)
        )
        return choices if known else None
    except (OSError, *INVALID) as error:
        if place.is_explicit:
            warnings.warn(
                f"'{place.path}', which {VARIABLE} names, holds no "
                f'calibration, hence layers compute dense products in doubt '
                f'({error!r})',
                stacklevel=2,
            )
        return None


def write(
    place: Place,
    choices: Choices,
    num_threads: int,
    dtype: torch.dtype,
    replace: bool,
) -> bool:
    """Write a file at once and return whether it was written.

    Args:
        place (Place): The file.
        choices (Choices): The content.
        num_threads (int): The number of threads.
        dtype (torch.dtype): The dtype.
        replace (bool): If set to :obj:`False`, keeps a file that is there.
    """
    content = {
        'version': VERSION,
        'machine': describe(num_threads, dtype),
        **choices._asdict(),
    }
    return store(place.path, content, replace)


def store(path: Path, content: Dict[str, Any], replace: bool) -> bool:
    """Write a file at once and return whether it was written.

    If :obj:`replace` is :obj:`False`, keeps a file that is there.
    """
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=0))
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # Fails if there is one.
        return True
    except OSError:  # A folder that is read-only, or a file that is there.
        return False
    finally:
        with suppress(OSError):
            temporary.unlink()


def _parse(content: Any) -> Choices:
    """Return the choices of a file.

    Raises:
        ValueError: If the content is invalid.
    """
    if content['version'] != VERSION:
        raise ValueError(f'expected version {VERSION}')
    crossovers = parse_densities(content['crossovers'])
    csr_costs = [float(x) for x in content['csr_costs']]
    valid = all(0 <= x < math.inf for x in csr_costs)
    if len(csr_costs) != NUM_COSTS or not valid:
        raise ValueError(f'expected {NUM_COSTS} costs that are not negative')
    return Choices(crossovers, csr_costs)


def parse_densities(values: Any) -> List[float]:
    """Return the densities of a file.

    Raises:
        ValueError: If the content is invalid.
    """
    densities = [float(x) for x in values]
    if len(densities) != SIZE or not all(0 <= x <= 1 for x in densities):
        raise ValueError(f'expected {SIZE} densities in [0, 1]')
    return densities


def _cache_folder() -> Path:
    """Return the folder of the cache, as :mod:`torch.hub` does."""
    cache = _expand(os.getenv('XDG_CACHE_HOME') or '~/.cache')
    if cache.parts[0].startswith('~'):  # A user of a container has no home.
        cache = Path(os.devnull)  # It holds no files.
    return cache / 'torch_geometric_ext'


def _expand(path: str) -> Path:
    """Return a path with the home of a user, if the system knows it."""
    return Path(os.path.expanduser(path))


@lru_cache(maxsize=1)
def _kernel_digest() -> str:
    """Return a digest of the compiled kernels."""
    folder = Path(torch_geometric_ext.typing.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob('_C.*')):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
