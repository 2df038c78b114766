"""Measure from which density on dense products are faster on a GPU."""

import itertools
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.block_weights import BLOCK_SIZES, count_columns
from torch_geometric_ext.ops.crossovers import (
    NUM_PRODUCTS,
    ROWS,
    WIDTHS,
    find_crossovers,
    make_pattern,
)
from torch_geometric_ext.ops.gpu_choice import (
    get_key,
    set_tables,
    write_tables,
)
from torch_geometric_ext.ops.gpu_linear import (
    Weight,
    backward_dense,
    backward_sparse,
    multiply_dense,
    multiply_sparse,
)
from torch_geometric_ext.ops.triton_launch import has_triton

# Times of sparse products are interpolated linearly between these densities,
# and extrapolated. Lower than those of CPUs: dense products are faster here. A
# choice.
DENSITIES = (0.02, 0.2)
# The number of measurements of each product, of which the fastest counts, and
# the seconds and the runs of each. A choice.
REPETITIONS, SECONDS, MAX_RUNS = 3, 1e-3, 20

Run = Callable[[], Any]
Timer = Callable[[Run, torch.device], float]


def calibrate_gpu(
    dtype: torch.dtype, device: torch.device
) -> Tuple[str, Optional[str]]:
    """Measure the densities of a GPU for all sizes of blocks, choose by them,
    and keep them in a file.

    Returns:
        tuple: The name of the GPU, and the path of the file, if it was
        written.

    Raises:
        RuntimeError: If there is no such GPU, or no Triton.
    """
    if not has_triton() or not torch.cuda.is_available():
        raise RuntimeError(
            "'calibrate' needs a GPU and Triton. Without them, all products "
            'on GPUs are dense'
        )
    key = get_key(device, dtype)
    with torch.inference_mode(), torch._C.DisableTorchFunction():
        tables = {
            size: measure_gpu_crossovers(dtype, device, size)
            for size in [1, *BLOCK_SIZES]
        }
    set_tables(key, tables)
    return key.card, write_tables(key, tables)


def time_run(run: Run, device: torch.device) -> float:
    """Return the least seconds that a GPU takes to run a function.

    Counts the time that a GPU waits for launches, as in training.
    """
    with torch.cuda.device(device):
        run()  # Compiles the kernels.
        seconds = _time_runs(run, 1)
        num_runs = min(max(SECONDS / max(seconds, 1e-9), 1), MAX_RUNS)
        times = [_time_runs(run, int(num_runs)) for _ in range(REPETITIONS)]
    return min(times)


def _time_runs(run: Run, num_runs: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(num_runs):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / num_runs


def measure_gpu_crossovers(
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    time_run: Timer = time_run,
) -> List[float]:
    """Return the density above which each product is faster as a dense one.

    Args:
        dtype (torch.dtype): The dtype of the input.
        device (torch.device): The GPU.
        block_size (int): The size of blocks, or :obj:`1`.
        time_run (callable, optional): Return the seconds of a function on a
            device. (default: :func:`time_run`)

    Returns:
        list: The densities by product (the forward pass, the gradient of the
        weights, both gradients), number of rows, input and output width.
    """
    shape = (NUM_PRODUCTS, len(ROWS), len(WIDTHS), len(WIDTHS))
    out = torch.zeros(shape, dtype=torch.double, device='cpu')
    generator = torch.Generator(device).manual_seed(0)
    for (i, width), (o, height) in itertools.product(
        enumerate(WIDTHS), repeat=2
    ):
        grid = (-(-height // block_size), -(-width // block_size))
        noise = torch.rand(grid, generator=generator, device=device)
        low, high = (
            _make_weight(noise < density, (height, width), block_size, dtype)
            for density in DENSITIES
        )
        densities = [x.values.numel() / (height * width) for x in (low, high)]
        if densities[0] == densities[1]:
            continue  # Few blocks, which are dense.
        for r, num_rows in enumerate(ROWS):
            runs = [
                run
                for weight, is_sparse in [
                    (low, True),
                    (high, True),
                    (high, False),
                ]
                for run in _make_runs(num_rows, weight, is_sparse, dtype)
            ]
            times = [time_run(run, device) for run in runs]
            seconds = torch.tensor(times, dtype=torch.double, device='cpu')
            of_low, of_high, of_dense = seconds.view(3, -1)
            args = (of_low, of_high, of_dense, densities)
            out[:, r, i, o] = find_crossovers(*args)
    return [round(x, 4) for x in out.flatten().tolist()]


def _make_weight(
    mask: Tensor, size: Tuple[int, int], block_size: int, dtype: torch.dtype
) -> Weight:
    """Return a weight of ones whose pattern is a mask of blocks."""
    rowptr, col, colptr, row, perm = make_pattern(mask)
    num_weights = col.numel()
    if block_size > 1:
        columns = count_columns(rowptr, col, size, block_size)
        num_weights = int(columns.sum())
    if dtype in [torch.half, torch.bfloat16]:
        dtype = torch.float
    values = torch.ones(num_weights, dtype=dtype, device=mask.device)
    pattern = (rowptr, col, colptr, row, perm)
    return Weight(values, *pattern, size, block_size)


def _make_runs(
    num_rows: int, weight: Weight, is_sparse: bool, dtype: torch.dtype
) -> List[Run]:
    """Return functions that compute each product."""
    kwargs: Dict[str, Any] = dict(dtype=dtype, device=weight.values.device)
    x = torch.ones(num_rows, weight.size[1], **kwargs)
    grad = torch.ones(num_rows, weight.size[0], **kwargs)
    forward = multiply_sparse if is_sparse else multiply_dense
    backward = backward_sparse if is_sparse else backward_dense
    return [
        lambda: forward(x, None, weight),
        lambda: backward(grad, x, weight, (False, True, False)),
        lambda: backward(grad, x, weight, (True, True, False)),
    ]
