"""Choose between sparse and dense products by what this machine does."""

import math
import os
import threading
import time
from typing import NamedTuple, Optional, Set, Tuple, Union

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

import torch_geometric_ext.typing
from torch_geometric_ext.ops.calibration_file import (
    Choices,
    Place,
    find_place,
    read,
    write,
)
from torch_geometric_ext.ops.crossovers import get_clock, measure_crossovers
from torch_geometric_ext.ops.csr_costs import measure_csr_costs
from torch_geometric_ext.ops.gpu_crossovers import calibrate_gpu
from torch_geometric_ext.ops.register import is_eager

DTYPES = [torch.float, torch.double, torch.bfloat16]
# Measured on first use. Double precision mostly checks equivalence, which
# should not take four seconds longer.
AUTOMATIC = [torch.float, torch.bfloat16]
# Seconds after which a first call stops to measure: threads of other processes
# can slow down those of this one by a factor of 20. A choice.
MAX_SECONDS = 10.0

# The numbers of threads and dtypes whose choices are made, and those whose
# files were looked up.
_settled: Set[Tuple[int, torch.dtype]] = set()
_loaded: Set[Tuple[int, torch.dtype]] = set()
_lock = threading.RLock()
_is_forked = False


class Calibration(NamedTuple):
    """Report a calibration.

    Args:
        num_threads (int): The number of threads that it holds for, on CPU.
        dtype (torch.dtype): The dtype that it holds for.
        seconds (float): The time that it took.
        path (str, optional): The file that keeps it, or :obj:`None` if there
            is none.
        device (str): The name of the GPU, or :obj:`"cpu"`.
    """

    num_threads: int
    dtype: torch.dtype
    seconds: float
    path: Optional[str]
    device: str = 'cpu'


def calibrate(
    dtype: torch.dtype = torch.float,
    device: Union[str, torch.device] = 'cpu',
) -> Calibration:
    r"""Measure when sparse products are faster than dense ones on this
    machine, and keep the result for later processes.

    :func:`~torch_geometric_ext.ops.sparse_linear` does so by itself when it is
    first called on a CPU with a number of threads, in single precision or
    bfloat16, unless a file of an earlier process holds the result. Only this
    function measures double precision. On a busy machine, it measures no
    larger sizes after ten seconds, and writes no file. Call this function to
    choose the moment, for example before a model is compiled, or to measure
    again on a machine that is idle. Products may then change their choice,
    hence their results up to rounding.

    Takes two to four seconds on a CPU with the current number of threads
    (:func:`torch.set_num_threads`). It multiplies matrices of 1 to 4,096 rows
    and widths of 16 to 4,096, and derives, for each size, the density above
    which the dense product is faster.

    On a GPU, only this function measures. Until then, all products are dense.
    It compares the Triton kernels for single weights and for blocks of each
    size with dense products, for this type of GPU, the versions of PyTorch and
    Triton, and the current setting of TensorFloat-32
    (:obj:`torch.backends.cuda.matmul`).

    Args:
        dtype (torch.dtype, optional): The dtype of the features.
            (default: :obj:`torch.float`)
        device (str or torch.device, optional): The device to measure, a CPU or
            a GPU. (default: :obj:`"cpu"`)

    Returns:
        Calibration: The number of threads, the dtype, the seconds it took, the
        path of the file, and the name of the device.

    Raises:
        ValueError: If :obj:`dtype` is another type than :obj:`torch.float`,
            :obj:`torch.double` or :obj:`torch.bfloat16` (or, on a GPU,
            :obj:`torch.half`), or if :obj:`device` is neither a CPU nor a GPU.
        RuntimeError: If there are no kernels for the device, or a transform or
            a mode of PyTorch is active, such as fake tensors.
    """
    device = torch.device(device)
    if device.type not in ['cpu', 'cuda']:
        raise ValueError(
            f"'device' of 'calibrate' needs to be a CPU or a GPU "
            f'(got {device})'
        )
    dtypes = DTYPES if device.type == 'cpu' else [*DTYPES, torch.half]
    if dtype not in dtypes:
        raise ValueError(
            f"'dtype' of 'calibrate' needs to be one of {dtypes} (got {dtype})"
        )
    if not is_eager():
        raise RuntimeError(
            "'calibrate' needs to be called outside of transforms and modes "
            'of PyTorch'
        )
    if device.type == 'cpu':
        return _calibrate_cpu(dtype)
    start = time.perf_counter()
    card, path = calibrate_gpu(dtype, device)
    seconds = time.perf_counter() - start
    return Calibration(torch.get_num_threads(), dtype, seconds, path, card)


def _calibrate_cpu(dtype: torch.dtype) -> Calibration:
    """Measure and keep all choices for the current number of threads."""
    if not torch_geometric_ext.typing.WITH_EXT:
        raise RuntimeError(
            "'calibrate' needs the compiled kernels. Without them, all "
            'products are dense'
        )
    num_threads = torch.get_num_threads()
    with _lock:
        start = time.perf_counter()
        choices = _measure(dtype, math.inf)
        place, path = find_place(num_threads, dtype), None
        if place is not None and write(
            place, choices, num_threads, dtype, replace=True
        ):
            path = str(place.path)
        _set(choices, num_threads, dtype)
        seconds = time.perf_counter() - start
    return Calibration(num_threads, dtype, seconds, path)


def ensure_calibration(x: Tensor, dtype: torch.dtype) -> None:
    """Make the choices for the current number of threads and a dtype, once.

    Measures them unless a file holds them. Does nothing under transforms and
    modes of PyTorch, which would observe or trace the measurement.

    Args:
        x (torch.Tensor): The input of a product on the CPU.
        dtype (torch.dtype): The dtype that the product is computed in.
    """
    if torch.compiler.is_compiling():  # First: graphs hold no other line.
        return
    key = (torch.get_num_threads(), dtype)
    if key in _settled or isinstance(x, FakeTensor) or not is_eager():
        return
    with _lock:
        if key in _settled:
            return
        load_calibration(dtype)
        place = find_place(*key)
        if not _is_set(*key) and dtype in AUTOMATIC and _may_measure(place):
            clock = get_clock()
            start = clock()
            choices = _measure(dtype, MAX_SECONDS)
            if clock() - start < MAX_SECONDS:  # All sizes were measured.
                choices = _keep(place, choices, *key)
            _set(choices, *key)
        _settled.add(key)


def load_calibration(dtype: torch.dtype) -> None:
    """Read the choices for the current number of threads and a dtype from
    their file, if there is one, once.
    """
    if torch.compiler.is_compiling():
        return
    key = (torch.get_num_threads(), dtype)
    with_kernels = torch_geometric_ext.typing.WITH_EXT
    if key in _loaded or not with_kernels or not is_eager():
        return
    with _lock:
        place = find_place(*key)
        if place is not None and not _is_set(*key):
            choices = read(place, *key)
            if choices is not None:
                _set(choices, *key)
        _loaded.add(key)


def _may_measure(place: Optional[Place]) -> bool:
    """Check whether a measurement is wanted and represents training.

    After a fork, threads of OpenMP can hang. Workers of data loaders have
    another number of threads than training.
    """
    is_worker = _is_forked or torch.utils.data.get_worker_info() is not None
    return place is not None and not place.is_explicit and not is_worker


def _measure(dtype: torch.dtype, limit: float) -> Choices:
    """Measure all choices for some seconds, and leave all state of PyTorch as
    it is.
    """
    force = torch.ops.torch_geometric_ext.sparse_linear_force_dense.default
    try:
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            # Sparse features need full precision:
            csr_dtype = torch.float if dtype == torch.bfloat16 else dtype
            measured = [
                measure_csr_costs(csr_dtype),
                measure_crossovers(dtype, limit),
            ]
    finally:
        force(None)
    # As in a file:
    csr_costs, crossovers = ([round(x, 4) for x in y] for y in measured)
    return Choices(crossovers, csr_costs)


def _keep(
    place: Optional[Place],
    choices: Choices,
    num_threads: int,
    dtype: torch.dtype,
) -> Choices:
    """Write choices to a file and return them, or return those of another
    process that was faster.
    """
    assert place is not None
    args = (num_threads, dtype)
    if write(place, choices, *args, replace=False):
        return choices
    found = read(place, *args)
    if found is None:  # A damaged file, or a file system without links.
        write(place, choices, *args, replace=True)
    return found or choices


def _set(choices: Choices, num_threads: int, dtype: torch.dtype) -> None:
    ops = torch.ops.torch_geometric_ext
    ops.sparse_linear_set_crossovers(*choices, num_threads, dtype)


def _is_set(num_threads: int, dtype: torch.dtype) -> bool:
    ops = torch.ops.torch_geometric_ext
    return len(ops.sparse_linear_get_crossovers(num_threads, dtype)) > 0


def _note_fork() -> None:
    """Remember that this process is a fork, in which no other thread holds
    the lock.
    """
    global _is_forked, _lock
    _is_forked, _lock = True, threading.RLock()


if hasattr(os, 'register_at_fork'):  # Not on Windows.
    os.register_at_fork(after_in_child=_note_fork)
