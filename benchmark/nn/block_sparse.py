"""Measure the time of a training step of a sparse layer of blocks.

Compares `SparseLinear` with a `block_size` of 8, 16 and 32 with its rivals, in
one process and one step of each in turn:

* dense: `torch.nn.Linear`,
* single: `SparseLinear` of the same sparsity without blocks.

A step is the forward pass and the gradients of input, weights and bias. Prints
the CPU, the median CPU time in milliseconds, and ratios to "single".
"""

import argparse
import time
from typing import Dict, List, Tuple

import torch

from benchmark import record
from torch_geometric_ext.nn import SparseLinear

SHAPES = [
    (2708, 1433, 512),
    (2708, 512, 512),
    (16384, 256, 256),
    (512, 2048, 2048),
]
BLOCK_SIZES = [8, 16, 32]


def measure(
    shape: Tuple[int, int, int], sparsity: float, args: argparse.Namespace
) -> Dict[str, float]:
    """Return the median CPU time of a step of each layer in milliseconds."""
    num_rows, inputs, outputs = shape
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    x = torch.randn(num_rows, inputs, dtype=dtype, requires_grad=True)
    grad = torch.randn(num_rows, outputs, dtype=dtype)
    layers: Dict[str, torch.nn.Module] = {
        'dense': torch.nn.Linear(inputs, outputs)
    }
    for size in [1, *BLOCK_SIZES]:
        layers['single' if size == 1 else f'blocks of {size}'] = SparseLinear(
            inputs, outputs, sparsity=sparsity, block_size=size
        )
    times: Dict[str, List[float]] = {name: [] for name in layers}
    for _ in range(args.steps + 2):
        for name, layer in layers.items():
            layer.to(dtype).zero_grad()
            x.grad = None
            start = time.process_time()
            layer(x).backward(grad)
            times[name].append(1000 * (time.process_time() - start))
    return {
        name: torch.tensor(values[2:]).median().item()
        for name, values in times.items()
    }


def compare(shape: Tuple[int, int, int], args: argparse.Namespace) -> None:
    size = ' x '.join(f'{x:,}' for x in shape)
    print(f'\n{size}: ms, and x to single')
    names = [f'blocks of {size}' for size in BLOCK_SIZES]
    print(f'{"sparsity":>9}{"dense":>9}{"single":>9}', end='')
    print(''.join(f'{name:>18}' for name in names))
    for sparsity in args.sparsities:
        times = measure(shape, sparsity, args)
        record.write(shape=shape, sparsity=sparsity, milliseconds=times)
        print(f'{sparsity:9.0%}', end='')
        print(f'{times["dense"]:9.2f}{times["single"]:9.2f}', end='')
        for name in names:
            ratio = times['single'] / times[name]
            print(f'{times[name]:11.2f}{ratio:6.2f}x', end='')
        print(flush=True)


def cpu_name() -> str:
    """Return the model of the CPU, family and model number, on Linux."""
    try:
        with open('/proc/cpuinfo') as file:
            lines = [line.split(':') for line in file if ':' in line]
    except OSError:
        return 'unknown CPU'
    info = {line[0].strip(): line[1].strip() for line in reversed(lines)}
    names = ['model name', 'cpu family', 'model']
    return ', '.join(f'{name} {info.get(name)}' for name in names)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--dtype', default='float')
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=[0.8, 0.9, 0.95, 0.98]
    )
    parser.add_argument('--shapes', type=int, nargs='+', default=range(4))
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'{cpu_name()}; {torch.backends.cpu.get_cpu_capability()}, ', end='')
    print(f'{args.threads} thread(s), {args.dtype}, torch {torch.__version__}')
    record.start(args.output, [0])
    for i in args.shapes:
        compare(SHAPES[i], args)


if __name__ == '__main__':
    main()
