"""Measure the costs of products of sparse features and sparse weights."""

from typing import List

import torch
from torch import Tensor

from torch_geometric_ext.ops.crossovers import Run, make_pattern, time_runs

# The sizes of the measured product: few enough features and weights for the
# second-level cache. A choice.
NUM_ROWS, IN_CHANNELS, OUT_CHANNELS = 1024, 1024, 256
FEATURE_DENSITY = 0.02
DENSITIES = (0.001, 0.1)
# Rows of a product that mostly converts the weight. A choice.
FEW_ROWS = 16
NUM_COSTS = 3


def measure_csr_costs(dtype: torch.dtype) -> List[float]:
    """Return the costs of a multiply-add with a sparse weight, of a feature
    that is not zero, and of an element of a dense weight.

    Costs are in multiply-adds of the loop of
    :func:`~torch_geometric_ext.ops.csr_sparse_linear` over a dense weight.
    Takes some dozen milliseconds.
    """
    generator = torch.Generator()
    noise = torch.rand(NUM_ROWS, IN_CHANNELS, generator=generator)
    mask = noise < FEATURE_DENSITY
    noise = torch.rand(OUT_CHANNELS, IN_CHANNELS, generator=generator)
    masks = [noise < density for density in DENSITIES]
    runs = [
        (False, _make_run(mask, masks[0], dtype)),
        (False, _make_run(mask, masks[1], dtype)),
        (True, _make_run(mask, masks[0], dtype)),
        (True, _make_run(mask[:FEW_ROWS], masks[0], dtype)),
    ]
    start, high, dense, few = time_runs(runs)

    num_features, num_few = int(mask.sum()), int(mask[:FEW_ROWS].sum())
    unit = (dense - few) / ((num_features - num_few) * OUT_CHANNELS)
    if unit <= 0:  # The machine is too busy to tell, or the clock too coarse.
        unit = max(dense, 1e-9) / (num_features * OUT_CHANNELS)
    degree = mask.sum(0)  # Of each column.
    macs = [int((degree * x.sum(0)).sum()) for x in masks]
    scattered = (high - start) / (macs[1] - macs[0]) / unit
    feature = (start / unit - scattered * macs[0]) / num_features
    size = IN_CHANNELS * OUT_CHANNELS
    element = (few / unit - num_few * OUT_CHANNELS) / size
    return [max(x, 0.0) for x in [scattered, feature, element]]


def _make_run(mask: Tensor, weight_mask: Tensor, dtype: torch.dtype) -> Run:
    """Return a function that multiplies features by a weight, and computes
    the gradient of the weight.
    """
    ops = torch.ops.torch_geometric_ext
    forward = ops.csr_sparse_linear.default
    backward = ops.csr_sparse_linear_backward.default
    ptr, index, *_ = make_pattern(mask)
    pattern = make_pattern(weight_mask)
    x = torch.ones(index.numel(), dtype=dtype)
    values = torch.ones(pattern[1].numel(), dtype=dtype)
    grad = torch.ones(mask.size(0), weight_mask.size(0), dtype=dtype)

    def run() -> None:
        forward(ptr, index, x, values, None, *pattern, False)
        backward(grad, ptr, index, x, *pattern, False)

    return run
