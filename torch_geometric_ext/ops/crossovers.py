"""Measure from which density on dense products are faster than sparse ones."""

import itertools
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

# The largest weights that are measured with up to 512 rows and with more. A
# choice: a table of them takes about a second.
MAX_WEIGHTS, MAX_WEIGHTS_OF_MANY_ROWS = 2**20, 2**14
# Times are interpolated linearly between these densities, and extrapolated. A
# choice.
DENSITIES = (0.1, 0.5)
# Sparse products need to be faster by this factor: dense in doubt. A choice.
MARGIN = 1.05
# Seconds of repetitions of each size. A choice.
MIN_SECONDS = 2e-3

Pattern = Tuple[Tensor, ...]
Run = Callable[[], Any]


def measure_crossovers(dtype: torch.dtype, budget: float = 2.0) -> List[float]:
    """Return the density above which each product is faster as a dense one,
    with the current number of threads.

    Times the operators of :func:`~torch_geometric_ext.ops.sparse_linear`, with
    the choice between sparse and dense products forced, and keeps the fastest
    of several runs.

    Args:
        dtype (torch.dtype): The dtype of the input.
        budget (float, optional): Seconds after which no run is repeated.
            (default: :obj:`2.0`)

    Returns:
        list: The densities by product (the forward pass, the gradient of the
        weights, both gradients), number of rows, input and output width.
    """
    end = time.perf_counter() + budget / 2  # The last sizes take longest.
    shape = (NUM_PRODUCTS, len(ROWS), len(WIDTHS), len(WIDTHS))
    out = torch.full(shape, torch.inf, device='cpu', dtype=torch.double)
    noise = torch.rand(
        MAX_WEIGHTS, generator=torch.Generator(), dtype=torch.float
    )
    size = max(ROWS[-2] * WIDTHS[-1], ROWS[-1] * 1024)
    data = torch.linspace(0.5, 1.5, size, dtype=torch.float).to(dtype)
    widths = itertools.product(range(len(WIDTHS)), repeat=2)
    for i, o in sorted(widths, key=sum):
        size = WIDTHS[i] * WIDTHS[o]
        if size > MAX_WEIGHTS:
            continue
        mask = noise[:size].view(WIDTHS[o], WIDTHS[i])
        patterns = [_make_pattern(mask < density) for density in DENSITIES]
        for r, num_rows in enumerate(ROWS):
            if num_rows <= 512 or size <= MAX_WEIGHTS_OF_MANY_ROWS:
                runs = [_make_runs(data, num_rows, x) for x in patterns]
                times = _time_runs([*runs[0], *runs[1]], end)
                out[:, r, i, o] = _find_crossovers(*times)
    return _fill(out).flatten().tolist()


def _make_pattern(mask: Tensor) -> Pattern:
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
        lambda: backward(grad, *weight, False, True, False),
        lambda: backward(grad, *weight, True, True, False),
    ]


def _time_runs(runs: Sequence[Run], end: float) -> Tuple[Tensor, Tensor]:
    """Return the least seconds of sparse and of dense products, by density
    and product.
    """
    # Time of this thread does not count what other processes take:
    single = torch.get_num_threads() == 1
    clock = time.thread_time if single else time.perf_counter
    force = torch.ops.torch_geometric_ext.sparse_linear_force_dense.default
    least = [[float('inf')] * len(runs) for _ in range(2)]
    repeated, stop = 0, time.perf_counter() + MIN_SECONDS
    while repeated < 2 or time.perf_counter() < min(stop, end):
        for dense, run in itertools.product([False, True], range(len(runs))):
            force(dense)
            start = clock()
            runs[run]()
            least[dense][run] = min(least[dense][run], clock() - start)
        repeated += 1
        if time.perf_counter() > end:
            break
    sparse, dense = torch.tensor(least, dtype=torch.double).view(2, 2, -1)
    return sparse, dense


def _find_crossovers(sparse: Tensor, dense: Tensor) -> Tensor:
    """Return the density at which sparse products take as long as dense ones,
    by product, given times of shape :obj:`[2, num_products]`.
    """
    low, high = dense - MARGIN * sparse  # The time that sparse products save.
    slope = (high - low) / (DENSITIES[1] - DENSITIES[0])
    always = (torch.minimum(low, high) > 0).to(slope.dtype)
    return torch.where(slope < 0, DENSITIES[0] - low / slope, always).clamp(
        0, 1
    )


def _fill(density: Tensor) -> Tensor:
    """Fill in sizes that were not measured, given as :obj:`inf`, by their
    smaller neighbors.
    """
    num_rows, num_widths = len(ROWS), len(WIDTHS)
    for i, o in itertools.product(range(num_widths), repeat=2):
        for r in range(num_rows):
            values = density[:, r, i, o]
            if values.isfinite().all():
                continue
            if r > 0 and WIDTHS[i] * WIDTHS[o] <= MAX_WEIGHTS:
                values.copy_(density[:, r - 1, i, o])
            else:  # A weight that is too large.
                narrow = density[:, r, i - 1, o], density[:, r, i, o - 1]
                values.copy_(torch.minimum(*narrow))
    return density
