"""Measure from which density on dense products are faster than sparse ones."""

import itertools
import math
import time
from typing import Any, Callable, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The sizes of a table. `csrc/cpu/crossovers.cpp` holds the same.
ROWS = [1, 8, 64, 512, 4096]
WIDTHS = [16, 64, 256, 1024, 4096]
NUM_PRODUCTS = 3  # Forward pass, gradient of the weights, both gradients.
# The number of elements of a table.
SIZE = NUM_PRODUCTS * len(ROWS) * len(WIDTHS) ** 2

# The largest weights that are measured with up to 512 rows, and with more if
# both widths exceed 16. A choice: all take two to four seconds.
MAX_WEIGHTS, MAX_WEIGHTS_OF_MANY_ROWS = 2**20, 2**14
# Times of sparse products are interpolated linearly between these densities,
# and extrapolated. Dense products are timed at the last one. A choice.
DENSITIES = (0.1, 0.5)
# Sparse products need to be faster by this factor: dense in doubt. A choice.
MARGIN = 1.1
# Repetitions of each size, the seconds that small sizes repeat, and those from
# which a size does not. A choice.
MIN_REPETITIONS, MIN_SECONDS, MAX_SECONDS = 2, 4e-3, 5e-2
# Seconds after which only small sizes are repeated. A choice.
BUDGET = 3.0

Pattern = Tuple[Tensor, ...]
Run = Callable[[], Any]


def measure_crossovers(
    dtype: torch.dtype, limit: float = math.inf
) -> List[float]:
    """Return the density above which each product is faster as a dense one,
    with the current number of threads.

    Times the operators of :func:`~torch_geometric_ext.ops.sparse_linear`, with
    the choice between sparse and dense products forced, and keeps the fastest
    of several runs.

    Args:
        dtype (torch.dtype): The dtype of the input.
        limit (float, optional): Seconds after which larger sizes take the
            densities of smaller ones, for machines that are busy.
            (default: :obj:`math.inf`)

    Returns:
        list: The densities by product (the forward pass, the gradient of the
        weights, both gradients), number of rows, input and output width.
    """
    clock = get_clock()
    start = clock()
    shape = (NUM_PRODUCTS, len(ROWS), len(WIDTHS), len(WIDTHS))
    out = torch.full(shape, torch.inf, device='cpu', dtype=torch.double)
    noise = torch.rand(
        MAX_WEIGHTS, generator=torch.Generator(), dtype=torch.float
    )
    size = ROWS[-1] * WIDTHS[-1]
    data = torch.linspace(0.5, 1.5, size, dtype=torch.float).to(dtype)
    widths = itertools.product(range(len(WIDTHS)), repeat=2)
    for i, o in sorted(widths, key=sum):
        size = WIDTHS[i] * WIDTHS[o]
        is_late = i + o > 0 and clock() - start > limit
        if size > MAX_WEIGHTS or is_late:
            continue
        mask = noise[:size].view(WIDTHS[o], WIDTHS[i])
        patterns = [make_pattern(mask < density) for density in DENSITIES]
        few = size <= MAX_WEIGHTS_OF_MANY_ROWS or min(i, o) == 0
        for r, num_rows in enumerate(ROWS if few else ROWS[:-1]):
            low, high = (_make_runs(data, num_rows, x) for x in patterns)
            runs = [(False, run) for run in [*low, *high]]
            runs += [(True, run) for run in high]
            times = time_runs(runs, start + min(BUDGET, limit))
            seconds = torch.tensor(times, dtype=torch.double).view(3, -1)
            out[:, r, i, o] = find_crossovers(*seconds)
    return _fill(out).flatten().tolist()


def make_pattern(mask: Tensor) -> Pattern:
    """Return a mask in CSR and CSC format."""
    rowptr, colptr = (F.pad(mask.sum(x).cumsum(0), (1, 0)) for x in [1, 0])
    col, row = mask.nonzero()[:, 1], mask.t().nonzero()[:, 1]
    position = mask.flatten().cumsum(0).view_as(mask) - 1
    perm = position.t()[mask.t()]
    return tuple(x.int() for x in [rowptr, col, colptr, row, perm])


def _make_runs(data: Tensor, num_rows: int, pattern: Pattern) -> List[Run]:
    """Return functions that compute each product."""
    ops = torch.ops.torch_geometric_ext
    forward = ops.sparse_linear.default
    backward = ops.sparse_linear_backward.default
    rowptr, col, colptr, *_ = pattern
    widths = colptr.numel() - 1, rowptr.numel() - 1
    x, grad = (data[: num_rows * size].view(num_rows, -1) for size in widths)
    values = data[: col.numel()]
    if data.dtype in [torch.half, torch.bfloat16]:
        values = values.float()
    weight = (x, values, *pattern)
    return [
        lambda: forward(x, values, None, *pattern, False),
        lambda: backward(grad, *weight, False, True, False, False),
        lambda: backward(grad, *weight, True, True, False, False),
    ]


def get_clock() -> Callable[[], float]:
    """Return a clock that does not count the time of other processes, if
    products run on this thread only.
    """
    single = torch.get_num_threads() == 1
    return time.thread_time if single else time.perf_counter


def time_runs(
    runs: Sequence[Tuple[bool, Run]], end: float = math.inf
) -> List[float]:
    """Return the least seconds of each run, by a dense or a sparse product.

    Args:
        runs (list): Whether the product is dense, and a function that computes
            it.
        end (float, optional): The time of :func:`get_clock` after which only
            short runs are repeated. (default: :obj:`math.inf`)
    """
    clock = get_clock()
    force = torch.ops.torch_geometric_ext.sparse_linear_force_dense.default
    least = [float('inf')] * len(runs)
    repeated, begin = 0, clock()
    stop = begin + MIN_SECONDS
    while repeated < MIN_REPETITIONS or clock() < stop:
        for i, (dense, run) in enumerate(runs):
            force(dense)
            start = clock()
            run()
            least[i] = min(least[i], clock() - start)
        repeated += 1
        if clock() > min(max(end, stop), begin + MAX_SECONDS):
            break
    return least


def find_crossovers(
    low: Tensor,
    high: Tensor,
    dense: Tensor,
    densities: Sequence[float] = DENSITIES,
) -> Tensor:
    """Return the density at which sparse products take as long as dense ones,
    given their seconds at a low and a high density.
    """
    slope = MARGIN * (high - low) / (densities[1] - densities[0])
    saved = dense - MARGIN * low
    always = (saved > 0).to(saved.dtype)  # If the density does not matter.
    density = torch.where(slope > 0, densities[0] + saved / slope, always)
    return density.clamp(0, 1)


def _fill(density: Tensor) -> Tensor:
    """Fill in sizes that were not measured, given as :obj:`inf`, by their
    smaller neighbors.
    """
    num_rows, num_widths = len(ROWS), len(WIDTHS)
    for i, o in itertools.product(range(num_widths), repeat=2):
        is_measured = bool(density[:, 0, i, o].isfinite().all())
        for r in range(num_rows):
            values = density[:, r, i, o]
            if values.isfinite().all():
                continue
            if is_measured:
                values.copy_(density[:, r - 1, i, o])
            else:  # A weight that is too large. An index may wrap to `inf`.
                narrow = density[:, r, i - 1, o], density[:, r, i, o - 1]
                values.copy_(torch.minimum(*narrow))
    return density
