"""Measure the time of a training step of a sparse layer.

Compares `SparseLinear` ("ours") with baselines, in one process and one step of
each in turn:

* dense: `torch.nn.Linear`,
* masked: a dense layer whose weight is multiplied by a mask,
* CSR: PyTorch's sparse products with a matrix in CSR format.

A step is the forward pass, the gradients of input, weights and bias, and Adam.
Prints the memory and the time of a layer of four billion weights, then median
times with quartiles and ratios to dense, then ratios to dense over sizes and
sparsities for large and for small batches.
"""

import argparse
import multiprocessing
import resource
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import RigL

SHAPES = [
    (2708, 1433, 512),
    (2708, 512, 512),
    (16384, 256, 256),
    (65536, 128, 128),
]


class Masked(torch.nn.Linear):
    def __init__(self, layer: SparseLinear) -> None:
        super().__init__(layer.in_channels, layer.out_channels)
        self.mask: Tensor
        self.register_buffer('mask', layer.mask.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, *layout: Any) -> Tensor:
        (rowptr, col, colptr, row, perm), (out, inp) = layout
        weight = torch.sparse_csr_tensor(rowptr, col, values, (out, inp))
        ctx.save_for_backward(x, values)
        ctx.layout = layout
        return (weight @ x.t()).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Any, ...]:
        x, values = ctx.saved_tensors
        (rowptr, col, colptr, row, perm), (out, inp) = ctx.layout
        by_column = torch.sparse_csr_tensor(
            colptr, row, values[perm], (inp, out)
        )
        zero = torch.zeros_like(values)
        pattern = torch.sparse_csr_tensor(rowptr, col, zero, (out, inp))
        grad_values = torch.sparse.sampled_addmm(pattern, grad.t(), x)
        return (by_column @ grad.t()).t(), grad_values.values(), None, None


class CSR(torch.nn.Module):
    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(layer.values.detach().clone())
        self.bias = torch.nn.Parameter(torch.zeros(layer.out_channels))
        self.size = (layer.out_channels, layer.in_channels)
        names = ['rowptr', 'col', 'colptr', 'row', 'perm']
        self.pattern = [getattr(layer, name) for name in names]

    def forward(self, x: Tensor) -> Tensor:
        args = (self.pattern, self.size)
        return Product.apply(x, self.values, *args) + self.bias


class Step:
    """A training step of a layer on one batch."""

    def __init__(self, layer: torch.nn.Module, x: Tensor, grad: Tensor):
        self.layer, self.grad = layer, grad
        self.x = x.clone().requires_grad_()
        self.optimizer = torch.optim.Adam(layer.parameters())
        self.seconds: List[float] = []

    def __call__(self) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.x.grad = None
        self.layer(self.x).backward(self.grad)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)

    def quartiles(self) -> Tensor:
        """Return quartiles in milliseconds, without the first step."""
        times = 1000 * torch.tensor(self.seconds[1:])
        return times.quantile(torch.tensor([0.25, 0.5, 0.75]))


def measure(
    shape: Tuple[int, int, int],
    sparsity: float,
    rivals: List[str],
    budget: float,
) -> Dict[str, Tensor]:
    """Time steps of ours, dense and rivals in turn for `budget` seconds."""
    num_rows, in_channels, out_channels = shape
    torch.manual_seed(0)
    x, grad = (torch.randn(num_rows, size) for size in shape[1:])
    layer = SparseLinear(in_channels, out_channels, sparsity=sparsity)
    layers: Dict[str, Callable] = {
        'dense': lambda: torch.nn.Linear(in_channels, out_channels),
        'ours': lambda: layer,
        'masked': lambda: Masked(layer),
        'CSR': lambda: CSR(layer),
    }
    steps = {
        name: Step(layers[name](), x, grad)
        for name in ['dense', 'ours', *rivals]
    }
    start = time.perf_counter()
    while (
        time.perf_counter() - start < budget or len(steps['ours'].seconds) < 6
    ):
        for step in steps.values():
            step()
    return {name: step.quartiles() for name, step in steps.items()}


def compare(shape: Tuple[int, int, int], args: argparse.Namespace) -> None:
    size = ' x '.join(f'{x:,}' for x in shape)
    print(f'\n{size}, {torch.get_num_threads()} thread(s): ms, and x to dense')
    print(f'{"sparsity":>9}{"dense":>9}{"masked":>16}{"CSR":>16}', end='')
    print(f'{"ours":>16}   (quartiles)')
    for sparsity in args.sparsities:
        times = measure(shape, sparsity, ['masked', 'CSR'], args.budget)
        dense = times['dense'][1]
        print(f'{sparsity:9.1%}{dense:9.2f}', end='')
        for name in ['masked', 'CSR', 'ours']:
            own = times[name][1]
            print(f'{own:9.2f}{dense / own:6.2f}x', end='')
        low, _, high = times['ours'].tolist()
        print(f'   ({low:.2f} - {high:.2f})', flush=True)


def sweep(
    title: str,
    shapes: List[Tuple[int, int, int]],
    sparsities: List[float],
    budget: float,
) -> None:
    """Print the ratios of dense to ours for all shapes and sparsities."""
    print(f'\n{title}, {torch.get_num_threads()} thread(s): x to dense')
    labels = ''.join(f'{f"{x:.1%}":>8}' for x in sparsities)
    print(f'{"rows x in x out":20}{labels}')
    lowest = float('inf')
    for shape in shapes:
        print(f'{" x ".join(map(str, shape)):20}', end='')
        for sparsity in sparsities:
            times = measure(shape, sparsity, [], budget)
            ratio = float(times['dense'][1] / times['ours'][1])
            lowest = min(lowest, ratio)
            print(f'{ratio:8.2f}', end='', flush=True)
        print()
    print(f'lowest: {lowest:.2f}x')


def train_large(num_steps: int = 12) -> None:
    """Print the memory and the time of a layer of four billion weights."""
    before = peak_rss()
    layer = SparseLinear(65536, 65536, bias=False, sparsity=0.999, seed=0)
    optimizer = torch.optim.Adam(layer.parameters())
    rigl = RigL(layer, optimizer, num_steps=num_steps, update_every=4)
    built = peak_rss()
    x = torch.randn(128, 65536)
    seconds: List[float] = []
    for _ in range(num_steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
        rigl.step()
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds)
    print(
        f'\n65,536 x 65,536 at 99.9 % ({layer.values.numel():,} weights), '
        f'128 rows, Adam and RigL: peak RSS {peak_rss():.2f} GB '
        f'({before:.2f} GB after imports, {built:.2f} GB once built), '
        f'{seconds[0]:.2f} s a step, {seconds[-1]:.1f} s with an update; '
        f'a dense layer and its Adam state: {4 * 4 * 65536**2 / 1e9:.0f} GB'
    )


def peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--budget', type=float, default=2.0)
    parser.add_argument(
        '--sparsities',
        type=float,
        nargs='+',
        default=[0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99],
    )
    parser.add_argument('--only', choices=['steps', 'sweep', 'memory'])
    args = parser.parse_args()
    only: Optional[str] = args.only
    if only in [None, 'memory']:
        # Run first and in another process, so that the peak is the layer's.
        context = multiprocessing.get_context('spawn')
        process = context.Process(target=train_large)
        process.start()
        process.join()
    for threads in args.threads:
        torch.set_num_threads(threads)
        if only in [None, 'steps']:
            for shape in SHAPES:
                compare(shape, args)
        if only in [None, 'sweep']:
            grid = [
                0,
                0.1,
                0.2,
                0.3,
                0.4,
                0.5,
                0.6,
                0.7,
                0.8,
                0.9,
                0.99,
                0.999,
            ]
            widths = [(128, 128), (256, 256), (512, 512), (1433, 512)]
            shapes = [(n, *size) for n in [512, 2048] for size in widths]
            sweep('Large batches', shapes, grid, args.budget / 4)
            grid = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]
            rows = [1, 4, 16, 32, 64, 128, 256, 512]
            shapes = [(n, w, w) for w in [128, 512] for n in rows]
            sweep('Small batches', shapes, grid, args.budget / 8)


if __name__ == '__main__':
    main()
