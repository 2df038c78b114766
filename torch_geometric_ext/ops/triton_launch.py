"""Launch Triton kernels, and divide their work among programs."""

from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Tuple

import torch

# The bound of CUDA on the second and third axis of a grid.
MAX_GRID = 65_535
# Programs that keep all multiprocessors of a large GPU busy. A choice.
NUM_PROGRAMS = 2048
# Samples from which a sum over samples is divided. A choice.
MIN_SAMPLES = 512


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Check whether Triton is installed, without importing it."""
    return find_spec('triton') is not None


def launch(
    kernel: Any, grid: Tuple[int, ...], *args: Any, **meta: Any
) -> None:
    """Launch a Triton kernel on the device of its first argument, and do not
    wait for it.

    Args:
        kernel (triton.JITFunction): The kernel.
        grid (Tuple[int, ...]): The number of programs of each axis. Without
            programs, the function does nothing.
        *args: The arguments of the kernel.
        **meta: The constants of the kernel and options of the compiler.
    """
    if 0 in grid:
        return
    with torch.cuda.device_of(args[0]):  # Triton uses the current device.
        # Multiply-adds are not fused by default in all versions of Triton.
        kernel[grid](*args, enable_fp_fusion=True, **meta)


def allows_tf32() -> bool:
    """Check whether products in single precision may round their factors to
    TensorFloat-32, as those of :class:`torch.nn.Linear`.
    """
    matmul = torch.backends.cuda.matmul
    # The older setting raises an error if a user changed the newer one.
    precision = getattr(matmul, 'fp32_precision', None)
    if precision is None:
        return matmul.allow_tf32
    return precision == 'tf32'


def ceil_div(size: int, block: int) -> int:
    """Return the number of blocks that cover a size."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is not below a size."""
    return 1 << max(size - 1, 0).bit_length()


def split_samples(num_samples: int, num_programs: int) -> Tuple[int, int]:
    """Divide a sum over samples into equal parts if there are few programs.

    Args:
        num_samples (int): The number of samples.
        num_programs (int): The number of programs of a part.

    Returns:
        Tuple[int, int]: The number of parts, and of samples of each.
    """
    parts = NUM_PROGRAMS // max(num_programs, 1)
    parts = min(parts, ceil_div(num_samples, MIN_SAMPLES))
    size = max(ceil_div(num_samples, max(parts, 1)), 1)
    return max(ceil_div(num_samples, size), 1), size
