"""Measure what a wrong choice between sparse and dense products costs.

`sparse_linear` chooses by a calibration of the machine. For a grid of sizes
and densities, this script times each product (the forward pass, the gradient
of the weights, both gradients) with the choice that it makes, and with both
choices forced, in turn. It keeps the least of several times and prints

* regret: the time of the choice made over that of the better choice,
* loss: the time of the choice made over that of a dense layer, which stores
  no pattern (rows from 512 on).
"""

import argparse
import itertools
import json
import time
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops import calibrate

PRODUCTS = ['forward', 'values', 'both']
WIDTHS = [
    (16, 16),
    (64, 64),
    (128, 128),
    (300, 47),
    (256, 256),
    (1433, 16),
    (512, 512),
    (1433, 512),
    (2048, 128),
    (128, 2048),
    (1024, 1024),
    (2048, 2048),
]
ROWS = [1, 4, 32, 128, 512, 1000, 2708, 16384, 65536]
DENSITIES = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99]
# The largest dense product, in multiply-adds.
MAX_WORK = 2**31

OPS = torch.ops.torch_geometric_ext


def make_runs(
    x: Tensor, grad: Tensor, layer: SparseLinear
) -> Dict[str, Tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return each product of a sparse layer, and that of a dense layer."""
    values, weight = layer.values.detach(), layer.weight.detach()
    names = ['rowptr', 'col', 'colptr', 'row', 'perm']
    pattern = [getattr(layer, name) for name in names]
    forward, backward = OPS.sparse_linear, OPS.sparse_linear_backward
    args = (grad, x, values, *pattern)
    return {
        'forward': (
            lambda: forward(x, values, None, *pattern, False),
            lambda: torch.nn.functional.linear(x, weight),
        ),
        'values': (
            lambda: backward(*args, False, True, False, False),
            lambda: grad.t() @ x,
        ),
        'both': (
            lambda: backward(*args, True, True, False, False),
            lambda: (grad @ weight, grad.t() @ x),
        ),
    }


@torch.inference_mode()  # As in a backward pass, without autograd.
def measure(
    shape: Tuple[int, int, int], density: float, dtype: torch.dtype
) -> List[Dict[str, Any]]:
    """Return the seconds of all choices for each product."""
    num_rows, in_channels, out_channels = shape
    x, grad = (torch.randn(num_rows, size, dtype=dtype) for size in shape[1:])
    layer = SparseLinear(in_channels, out_channels, sparsity=1 - density)
    rows = []
    for product, (ours, rival) in make_runs(x, grad, layer.to(dtype)).items():
        runs = {'auto': None, 'sparse': False, 'dense': True, 'rival': None}
        least = dict.fromkeys(runs, float('inf'))
        start, repeated = time.perf_counter(), 0
        while repeated < 5 or time.perf_counter() - start < 4e-3:
            names = list(runs)  # Each run evicts data of the next one.
            first = repeated % len(names)
            for name in [*names[first:], *names[:first]]:
                OPS.sparse_linear_force_dense(runs[name])
                seconds = seconds_of(rival if name == 'rival' else ours)
                least[name] = min(least[name], seconds)
            repeated += 1
        OPS.sparse_linear_force_dense(None)
        row = dict(shape=shape, density=density, product=product)
        rows.append({**row, 'dtype': str(dtype), **least})
    return rows


def seconds_of(run: Callable[[], Any]) -> float:
    single = torch.get_num_threads() == 1
    clock = time.thread_time if single else time.perf_counter
    start = clock()
    run()
    return clock() - start


def report(rows: List[Dict[str, Any]]) -> None:
    """Print the regret and the loss of each product."""
    for product in PRODUCTS:
        own = [row for row in rows if row['product'] == product]
        for title, value, selected in [
            ('regret, below 512 rows', regret, lambda x: x < 512),
            ('regret, from 512 rows on', regret, lambda x: x >= 512),
            ('loss, from 512 rows on', loss, lambda x: x >= 512),
        ]:
            found = [row for row in own if selected(row['shape'][0])]
            if found:
                ratios = torch.tensor([value(row) for row in found])
                worst = found[int(ratios.argmax())]
                print(
                    f'{product:8} {title:25} max {ratios.max():5.2f}, '
                    f'95 % {ratios.quantile(0.95):5.2f}, '
                    f'mean {ratios.mean():5.3f} (worst: '
                    f'{worst["shape"]} at {worst["density"]:.0%})'
                )


def regret(row: Dict[str, Any]) -> float:
    return row['auto'] / min(row['auto'], row['sparse'], row['dense'])


def loss(row: Dict[str, Any]) -> float:
    return row['auto'] / row['rival']


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--double', action='store_true')
    parser.add_argument('--max-work', type=int, default=MAX_WORK)
    parser.add_argument('--rows', type=int, nargs='+', default=ROWS)
    parser.add_argument(
        '--densities', type=float, nargs='+', default=DENSITIES
    )
    parser.add_argument('--out', help='a file of JSON lines')
    args = parser.parse_args()
    dtype = torch.double if args.double else torch.float
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(calibrate(dtype))
        rows: List[Dict[str, Any]] = []
        for widths, num_rows in itertools.product(WIDTHS, args.rows):
            shape = (num_rows, *widths)
            if num_rows * widths[0] * widths[1] <= args.max_work:
                for density in args.densities:
                    rows += measure(shape, density, dtype)
        report(rows)
        if args.out:
            with open(args.out, 'a') as file:
                for row in rows:
                    file.write(json.dumps({**row, 'threads': threads}) + '\n')


if __name__ == '__main__':
    main()
