"""Measure the time of a training step of a sparse layer on a GPU.

Compares `SparseLinear` ("ours"), with single weights and with blocks of 16,
with its rivals, one after another in one process:

* dense: `torch.nn.Linear` of the same dtype, which runs on tensor cores in
  TF32 and bfloat16,
* CSR: PyTorch's sparse products (cuSPARSE) with the same weights, forward and
  for the gradients of input and weights. PyTorch computes the gradient of the
  weights in no type below float32, hence all of these steps do.

A step is the forward pass and the gradients of input, weights and bias. A
calibration of each precision comes first, as users run it: where it found
dense products to be faster, "ours" computes them too. Prints median
milliseconds, and ratios to "ours" (above 1: ours is faster).

`TORCH_GEOMETRIC_EXT_CALIBRATION` names the folder of the calibrations.
"""

import argparse
from typing import Dict, List, Tuple

import torch
from torch import Tensor
from torch.nn import Linear, Module

from benchmark.cuda.timing import Run, make_parser, measure, start
from benchmark.nn.sparse_linear import CSR
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops import calibrate

SHAPES = [
    (2708, 1433, 512),
    (16384, 256, 256),
    (65536, 128, 128),
    (512, 2048, 2048),
]
SPARSITIES = [0.8, 0.9, 0.95, 0.98]
BLOCK_SIZES = [1, 16]
# The dtype and PyTorch's precision of products of float32.
PRECISIONS: Dict[str, Tuple[torch.dtype, str]] = {
    'float32': (torch.float, 'highest'),
    'TF32': (torch.float, 'high'),
    'bfloat16': (torch.bfloat16, 'highest'),
}
NUM_STEPS = 10


def make_step(layer: Module, x: Tensor, grad: Tensor) -> Run:
    """Return a training step of a layer on its device and in its dtype."""
    like = next(layer.parameters())
    x = x.to(like, copy=True).requires_grad_()
    grad = grad.to(like)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(grad)

    return Run(step)


def compare(
    shape: Tuple[int, int, int],
    block_size: int,
    sparsity: float,
    dtype: torch.dtype,
    args: argparse.Namespace,
) -> None:
    """Print a row of the table."""
    num_rows, inputs, outputs = shape
    torch.manual_seed(0)
    x, grad = torch.randn(num_rows, inputs), torch.randn(num_rows, outputs)
    layer = SparseLinear(
        inputs, outputs, sparsity=sparsity, block_size=block_size
    )
    single = SparseLinear.from_dense(layer.to_dense())
    if single.values.numel() != layer.values.numel():
        raise RuntimeError('a weight of the layer is zero')
    layers: Dict[str, Module] = {
        'dense': Linear(inputs, outputs).to(args.device, dtype),
        'CSR': CSR(single.to(args.device)).to(args.device),
        'ours': layer.to(args.device, dtype),
    }
    steps = {k: make_step(v, x, grad) for k, v in layers.items()}
    num_calls = NUM_STEPS if args.device.type == 'cuda' else 1
    times = measure(steps, args.device, args.budget, num_calls)
    print(f'{block_size:>7}{sparsity:>10.0%}', end='')
    for name in ['dense', 'CSR']:
        ratio = times[name] / times['ours']
        print(f'{times[name]:>11.4f}{ratio:>8.2f}x', end='')
    print(f'{times["ours"]:>11.4f}', flush=True)


def main() -> None:
    parser = make_parser(__doc__, budget=0.3)
    parser.add_argument('--precisions', nargs='+', default=[*PRECISIONS])
    args = parser.parse_args()
    start(args.device)
    shapes: List[Tuple[int, int, int]] = SHAPES
    if args.small:
        shapes = [(n // 64, i // 8, o // 8) for n, i, o in SHAPES]
    for name in args.precisions:
        dtype, precision = PRECISIONS[name]
        torch.set_float32_matmul_precision(precision)
        seconds = calibrate(dtype, args.device).seconds
        print(f'\n# calibration of {name}: {seconds:.1f} s')
        for shape in shapes:
            size = ' x '.join(f'{x:,}' for x in shape)
            print(f'\n{size}, {name}: ms, and x to ours')
            print(
                f'{"blocks":>7}{"sparsity":>10}{"dense":>11}{"":9}'
                f'{"CSR":>11}{"":9}{"ours":>11}'
            )
            for block_size in BLOCK_SIZES:
                for sparsity in SPARSITIES:
                    compare(shape, block_size, sparsity, dtype, args)


if __name__ == '__main__':
    main()
