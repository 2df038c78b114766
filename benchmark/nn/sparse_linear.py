"""Measure the time of a sparse layer in training and in inference.

Compares `SparseLinear` ("ours") with baselines, in one process and one step of
each in turn:

* dense: `torch.nn.Linear`,
* bf16: `torch.nn.Linear` in bfloat16, and "ours bf16" beside it,
* masked: a dense layer whose weight is multiplied by a mask,
* CSR: PyTorch's sparse products with a matrix in CSR format.

A training step is the forward pass, the gradients of input, weights and bias,
and Adam. Inference is the forward pass.

Prints the machine and its calibration, the memory and the time of a layer of
four billion weights, then median times with quartiles and ratios to dense,
then ratios to dense over sizes and sparsities for large and for small batches.
All times also go to a file of JSON lines named after the processor, so that
those of several machines stand side by side. Takes half an hour, or a few
minutes with `--quick`.
"""

import argparse
import copy
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark import record
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops import calibrate
from torch_geometric_ext.ops.machine import describe_machine, machine_slug
from torch_geometric_ext.sparsity import RigL

RESULTS = Path(__file__).parents[1] / 'results' / 'sparse_linear'
SHAPES = [
    (512, 2048, 2048),
    (1000, 300, 47),
    (2708, 1433, 512),
    (2708, 512, 512),
    (16384, 256, 256),
    (50000, 64, 64),
    (65536, 128, 128),
]
SPARSITIES = [0, 0.2, 0.5, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99]
HALF = ['bf16', 'ours bf16']
RIVALS = [*HALF, 'masked', 'CSR']


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
    """A step of a layer on one batch, in training or in inference."""

    def __init__(
        self, layer: torch.nn.Module, x: Tensor, grad: Tensor, training: bool
    ) -> None:
        dtype = next(layer.parameters()).dtype
        self.layer, self.grad, self.training = layer, grad.to(dtype), training
        self.x = x.to(dtype, copy=True).requires_grad_(training)
        self.optimizer = torch.optim.Adam(layer.parameters())
        self.seconds: List[float] = []
        # The time of other processes does not count on a single thread:
        single = torch.get_num_threads() == 1
        self.clock = time.process_time if single else time.perf_counter

    def __call__(self) -> None:
        start = self.clock()
        if self.training:
            self.optimizer.zero_grad()
            self.x.grad = None
            self.layer(self.x).backward(self.grad)
            self.optimizer.step()
        else:
            with torch.no_grad():
                self.layer(self.x)
        self.seconds.append(self.clock() - start)

    def quartiles(self) -> Tensor:
        """Return quartiles in milliseconds, without the first step."""
        times = 1000 * torch.tensor(self.seconds[1:])
        return times.quantile(torch.tensor([0.25, 0.5, 0.75]))


class Bench:
    """Measurements that also go to a file of JSON lines."""

    def __init__(self, budget: float) -> None:
        self.budget = budget

    def measure(
        self,
        shape: Tuple[int, int, int],
        sparsity: float,
        rivals: List[str],
        training: bool,
        budget: float,
    ) -> Dict[str, Tensor]:
        """Time steps of ours, dense and rivals in turn."""
        num_rows, inp, out = shape
        torch.manual_seed(0)
        x, grad = torch.randn(num_rows, inp), torch.randn(num_rows, out)
        layer = SparseLinear(inp, out, sparsity=sparsity)
        layers: Dict[str, Callable] = {
            'dense': lambda: torch.nn.Linear(inp, out),
            'bf16': lambda: torch.nn.Linear(inp, out).bfloat16(),
            'ours': lambda: layer,
            'ours bf16': lambda: copy.deepcopy(layer).bfloat16(),
            'masked': lambda: Masked(layer),
            'CSR': lambda: CSR(layer),
        }
        steps = {
            name: Step(layers[name](), x, grad, training)
            for name in ['dense', 'ours', *rivals]
        }
        end = time.perf_counter() + budget
        while time.perf_counter() < end or len(steps['ours'].seconds) < 6:
            for step in steps.values():
                step()
        times = {name: step.quartiles() for name, step in steps.items()}
        record.write(
            shape=shape,
            sparsity=sparsity,
            training=training,
            num_threads=torch.get_num_threads(),
            quartiles_ms={
                name: [round(x, 5) for x in quartiles.tolist()]
                for name, quartiles in times.items()
            },
        )
        return times

    def compare(
        self,
        shape: Tuple[int, int, int],
        sparsities: List[float],
        training: bool,
    ) -> None:
        """Print times of all layers, and their ratios to dense."""
        rivals = RIVALS if training else HALF
        size = ' x '.join(f'{x:,}' for x in shape)
        mode = 'training step' if training else 'inference'
        threads = torch.get_num_threads()
        print(f'\n{size}, {mode}, {threads} thread(s): ms, and x to dense')
        labels = ''.join(f'{name:>16}' for name in [*rivals, 'ours'])
        print(f'{"sparsity":>9}{"dense":>9}{labels}   (quartiles)')
        for sparsity in sparsities:
            args = (shape, sparsity, rivals, training, self.budget)
            times = self.measure(*args)
            dense = times['dense'][1]
            print(f'{sparsity:9.1%}{dense:9.2f}', end='')
            for name in [*rivals, 'ours']:
                own = times[name][1]
                print(f'{own:9.2f}{dense / own:6.2f}x', end='')
            low, _, high = times['ours'].tolist()
            print(f'   ({low:.2f} - {high:.2f})', flush=True)

    def sweep(
        self,
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
                times = self.measure(shape, sparsity, [], True, budget)
                ratio = float(times['dense'][1] / times['ours'][1])
                lowest = min(lowest, ratio)
                print(f'{ratio:8.2f}', end='', flush=True)
            print()
        print(f'lowest: {lowest:.2f}x')

    def sweep_all(self) -> None:
        grid = [i / 10 for i in range(10)] + [0.99, 0.999]
        widths = [(128, 128), (256, 256), (512, 512), (1433, 512)]
        shapes = [(n, *size) for n in [512, 2048] for size in widths]
        shapes += [(512, 2048, 2048)]
        self.sweep('Large batches', shapes, grid, self.budget / 4)
        grid = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99]
        rows = [1, 4, 16, 32, 64, 128, 256, 512]
        shapes = [(n, w, w) for w in [128, 512] for n in rows]
        self.sweep('Small batches', shapes, grid, self.budget / 8)


def print_calibration() -> None:
    """Calibrate the number of threads, and print the result."""
    calibration = calibrate()
    threads = torch.get_num_threads()
    calibrate(torch.bfloat16)
    print(
        f'\nCalibration of {threads} thread(s), {calibration.seconds:.1f} s: '
        f'density above which a forward pass is dense'
    )
    widths, rows = [16, 64, 256, 1024, 4096], [1, 8, 64, 512, 4096]
    print('rows, width ' + ''.join(f'{width:8}' for width in widths))
    table = [
        [SparseLinear(w, w, sparsity=0.999).crossover(n) for w in widths]
        for n in rows
    ]
    for n, densities in zip(rows, table):
        print(f'{n:12}' + ''.join(f'{x:8.0%}' for x in densities))
    record.write(num_threads=threads, widths=widths, rows=rows, above=table)


def train_large(num_steps: int = 12) -> Dict[str, float]:
    """Return the memory and the time of a layer of four billion weights."""
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
    return {
        'weights': layer.values.numel(),
        'peak': peak_rss(),
        'imports': before,
        'built': built,
        'step': min(seconds),
        'update': max(seconds),
    }


def print_large() -> None:
    """Measure a large layer in another process, whose peak is the layer's."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        found = pool.apply(train_large)
    print(
        f'\n65,536 x 65,536 at 99.9 % ({found["weights"]:,} weights), '
        f'128 rows, Adam and RigL: peak RSS {found["peak"]:.2f} GB '
        f'({found["imports"]:.2f} GB after imports, {found["built"]:.2f} GB '
        f'once built), {found["step"]:.2f} s a step, {found["update"]:.1f} s '
        f'with an update; a dense layer and its Adam state: '
        f'{4 * 4 * 65536**2 / 1e9:.0f} GB'
    )
    record.write(large=found)


def peak_rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--budget', type=float, default=2.0)
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=SPARSITIES
    )
    parser.add_argument('--only', choices=['steps', 'sweep', 'memory'])
    parser.add_argument(
        '--shapes',
        nargs='+',
        type=lambda x: tuple(map(int, x.split('x'))),
        default=SHAPES,
        metavar='ROWSxINPUTSxOUTPUTS',
    )
    parser.add_argument('--quick', action='store_true', help='fewer steps')
    path = RESULTS / f'{machine_slug()}.jsonl'
    record.add_argument(parser)
    args = parser.parse_args()
    only: Optional[str] = args.only
    if args.output is None and not args.quick and only is None:
        args.output = path  # Results of a part do not replace all results.
    machine = describe_machine()
    for key, value in machine.items():
        print(f'# {key}: {value}')
    if args.output == path:
        path.unlink(missing_ok=True)
    record.start(args.output, [0], machine=machine)
    bench = Bench(0.2 if args.quick else args.budget)
    if only in [None, 'memory']:
        print_large()
    for threads in args.threads:
        torch.set_num_threads(threads)
        print_calibration()
        if only in [None, 'steps']:
            for shape in args.shapes:
                for training in [True, False]:
                    bench.compare(shape, args.sparsities, training)
        if only in [None, 'sweep']:
            bench.sweep_all()


if __name__ == '__main__':
    main()
