"""Choose between sparse and dense products on GPUs by calibrations."""

import hashlib
import json
import math
from functools import lru_cache
from itertools import product as all_pairs
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from torch_geometric_ext.ops.block_weights import BLOCK_SIZES
from torch_geometric_ext.ops.calibration_file import (
    INVALID,
    find_folder,
    name_file,
    parse_densities,
    store,
)
from torch_geometric_ext.ops.crossovers import ROWS, WIDTHS
from torch_geometric_ext.ops.register import is_eager
from torch_geometric_ext.ops.triton_launch import allows_tf32, has_triton
from torch_geometric_ext.version import __version__

# The products that a table covers. The gradient of the input alone is the
# forward pass of the transposed weight.
FORWARD, VALUES, BOTH = range(3)
# The version of the layout and of the meaning of a file.
VERSION = 1

# The densities of each block size, where one stands for single weights.
Tables = Dict[int, List[float]]


class Key(NamedTuple):
    """Hold all that a calibration of a GPU depends on, beside versions.

    Args:
        card (str): The name of the GPU.
        dtype (torch.dtype): The dtype of the input.
        tf32 (bool): Whether products may use TensorFloat-32.
    """

    card: str
    dtype: torch.dtype
    tf32: bool


_tables: Dict[Key, Tables] = {}


def get_key(device: torch.device, dtype: torch.dtype) -> Key:
    """Return the key of the calibration that holds for a GPU now."""
    tf32 = dtype == torch.float and allows_tf32()
    return Key(_card_name(device), dtype, tf32)


def prefers_sparse(
    x: Tensor,
    product: int,
    size: Tuple[int, int],
    num_weights: int,
    block_size: int,
) -> bool:
    """Check whether a calibration of this GPU found the Triton kernel to be
    faster than the dense product.

    Never measures, and never waits for the device. Without a calibration, and
    under transforms and modes of PyTorch, products are dense.

    Args:
        x (torch.Tensor): The input of the product.
        product (int): The product: :obj:`FORWARD`, :obj:`VALUES` or
            :obj:`BOTH`.
        size (Tuple[int, int]): The number of rows and columns of the weight.
        num_weights (int): The number of active weights.
        block_size (int): The size of blocks, or :obj:`1`.
    """
    if torch.compiler.is_compiling() or not x.is_cuda:
        return False
    if isinstance(x, FakeTensor) or not is_eager() or not has_triton():
        return False
    key = get_key(x.device, x.dtype)
    density = _find(key, block_size, product, x.size(0), size[1], size[0])
    return num_weights < density * size[0] * size[1]


def gpu_crossover(
    device: torch.device,
    dtype: torch.dtype,
    num_rows: int,
    in_channels: int,
    out_channels: int,
    block_size: int = 1,
) -> float:
    """Return the density above which the forward pass of a sparse layer on a
    GPU computes a dense product: zero without a calibration.

    Args:
        device (torch.device): The GPU.
        dtype (torch.dtype): The dtype of the input.
        num_rows (int): The number of input samples.
        in_channels (int): Size of each input sample.
        out_channels (int): Size of each output sample.
        block_size (int, optional): The size of blocks. (default: :obj:`1`)
    """
    if not torch.cuda.is_available() or not has_triton():
        return 0.0
    sizes = (num_rows, in_channels, out_channels)
    return _find(get_key(device, dtype), block_size, FORWARD, *sizes)


def set_tables(key: Key, tables: Tables) -> None:
    """Choose by other densities from now on."""
    _tables[key] = tables
    _find.cache_clear()


def write_tables(key: Key, tables: Tables) -> Optional[str]:
    """Write the file of a calibration, and return its path if it was written.

    Returns :obj:`None` if the environment variable is :obj:`"off"`.
    """
    path = _find_path(key)
    crossovers = {str(size): values for size, values in tables.items()}
    content = {
        'version': VERSION,
        'machine': describe(key),
        'crossovers': crossovers,
    }
    if path is None or not store(path, content, replace=True):
        return None
    return str(path)


def read_tables(key: Key) -> Optional[Tables]:
    """Return the densities of the file of a calibration, or :obj:`None` if
    there is none.
    """
    path = _find_path(key)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
        known = content['version'] == VERSION
        if not known or content['machine'] != describe(key):
            return None
        crossovers = content['crossovers']
        sizes = [1, *BLOCK_SIZES]
        return {x: parse_densities(crossovers[str(x)]) for x in sizes}
    except (OSError, *INVALID):
        return None


def describe(key: Key) -> Dict[str, Any]:
    """Return all that a calibration depends on."""
    import triton  # An optional dependency.

    return {
        'card': key.card,
        'dtype': str(key.dtype),
        'tf32': key.tf32,
        'torch': torch.__version__,
        'triton': triton.__version__,
        'torch_geometric_ext': __version__,
        'kernels': _kernel_digest(),
    }


def interpolate(table: Sequence[float], product: int, *sizes: int) -> float:
    """Return the density of a table at three sizes, linearly in their
    logarithms.
    """
    places = [_locate(x, y) for x, y in zip(sizes, [ROWS, WIDTHS, WIDTHS])]
    total = 0.0
    for corner in all_pairs([0, 1], repeat=3):
        index, weight = product, 1.0
        for (i, part), step, axis in zip(
            places, corner, [ROWS] + 2 * [WIDTHS]
        ):
            index = index * len(axis) + i + step
            weight *= part if step else 1 - part
        total += weight * table[index]
    return total


def _locate(size: int, axis: Sequence[int]) -> Tuple[int, float]:
    """Return the point of an axis below a size and the part of the way to the
    next one. Points are equally far apart in logarithms.
    """
    step = math.log(axis[1] / axis[0])
    last = len(axis) - 1
    at = min(max(math.log(max(size, 1) / axis[0]) / step, 0.0), float(last))
    i = min(int(at), last - 1)
    return i, at - i


@lru_cache(maxsize=4096)
def _find(key: Key, block_size: int, product: int, *sizes: int) -> float:
    if key not in _tables:
        _tables[key] = read_tables(key) or {}
    table = _tables[key].get(block_size)
    return 0.0 if table is None else interpolate(table, product, *sizes)


def _find_path(key: Key) -> Optional[Path]:
    folder = find_folder()
    if folder is None:
        return None
    return folder / name_file('sparse_linear-gpu', describe(key))


@lru_cache(maxsize=64)
def _card_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@lru_cache(maxsize=1)
def _kernel_digest() -> str:
    """Return a digest of the kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob('*_triton.py')):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
