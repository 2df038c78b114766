"""Measure the time of updates of the topology of a sparse layer.

All runs take turns in one process, step by step, in CPU time:

* dense: a training step of `torch.nn.Linear`,
* sparse: a training step of `SparseLinear`,
* RigL, SET, GradualMagnitude: what a step with an update takes more than one
  without, which includes what the scheduler records,
* masked: the update of RigL by hand, on a dense layer with a mask, in place.
  Its dense gradient is there already; its training step is a dense one.
* by hand: the update of RigL on `SparseLinear` in plain PyTorch, with the
  whole dense gradient, `topk` and `sort`.

A step is the forward pass, the gradients of input, weights and bias, and Adam.
Prints the machine, then medians in milliseconds, and as multiples of a dense
and of a sparse step. Then prints the time and the memory of RigL on a layer
of four billion weights.
"""

import argparse
import multiprocessing
import resource
import subprocess
import time
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import SET, GradualMagnitude, RigL

SHAPES = [(256, 2048, 2048), (2708, 1433, 512), (16384, 256, 256)]
NUM_STEPS = 1_000_000  # Fractions of moved weights hardly change.
FRACTION = 0.3


class Training:
    """Steps of a layer on one batch."""

    def __init__(
        self, layer: torch.nn.Module, x: Tensor, grad: Tensor
    ) -> None:
        self.layer, self.grad = layer, grad
        self.x = x.clone().requires_grad_()
        self.optimizer = torch.optim.Adam(layer.parameters())
        self.seconds: List[float] = []
        self.update: Callable[[], None] = lambda: None

    def step(self) -> None:
        start = time.process_time()
        self.optimizer.zero_grad()
        self.x.grad = None
        self.layer(self.x).backward(self.grad)
        self.optimizer.step()
        self.update()
        self.seconds.append(time.process_time() - start)

    def median(self) -> float:
        """Return the median in milliseconds, without the first two steps."""
        return 1000 * float(torch.tensor(self.seconds[2:]).median())


class Masked(Training):
    """A dense layer with a mask, and RigL by hand."""

    def __init__(self, pattern: Tensor, x: Tensor, grad: Tensor) -> None:
        super().__init__(torch.nn.Linear(*pattern.t().shape), x, grad)
        self.mask = pattern.clone()
        self.size = round(FRACTION * int(pattern.sum()))
        self.update = self.move

    @torch.no_grad()
    def move(self) -> None:
        weight, mask = self.layer.weight, self.mask
        magnitude = weight.abs().masked_fill_(~mask, float('inf')).flatten()
        dropped = magnitude.topk(self.size, largest=False, sorted=False)
        score = weight.grad.abs().masked_fill_(mask, -1).flatten()
        grown = score.topk(self.size, sorted=False)
        mask.view(-1)[dropped.indices] = False
        mask.view(-1)[grown.indices] = True
        state = self.optimizer.state[weight]
        for y in [weight, state['exp_avg'], state['exp_avg_sq']]:
            y.mul_(mask)
            y.view(-1)[grown.indices] = 0


class ByHand(Training):
    """A sparse layer, and RigL in plain PyTorch."""

    def __init__(self, layer: SparseLinear, x: Tensor, grad: Tensor) -> None:
        super().__init__(layer, x, grad)
        self.size = round(FRACTION * layer.values.numel())
        self.update = self.move

    @torch.no_grad()
    def move(self) -> None:
        layer, old = self.layer, self.layer.index
        score = (self.grad.t() @ self.x).abs_().flatten()
        score[old] = -1
        grown = score.topk(self.size, sorted=False).indices
        magnitude = layer.values.abs()
        num_kept = old.numel() - self.size
        kept = old[magnitude.topk(num_kept, sorted=False).indices]
        index = torch.cat([kept, grown]).sort().values
        kept = kept.sort().values
        target = torch.searchsorted(index, kept)
        source = torch.searchsorted(old, kept)
        state = self.optimizer.state[layer.values]
        moved = []
        for y in [layer.values, state['exp_avg'], state['exp_avg_sq']]:
            moved.append(torch.zeros_like(y).scatter_(0, target, y[source]))
        layer.set_weights(index, moved[0])
        state['exp_avg'].copy_(moved[1])
        state['exp_avg_sq'].copy_(moved[2])


def make_runs(
    shape: Tuple[int, int, int], sparsity: float
) -> Dict[str, Training]:
    num_rows, in_channels, out_channels = shape
    torch.manual_seed(0)
    x, grad = (torch.randn(num_rows, size) for size in shape[1:])

    def layer(sparsity: float = sparsity) -> SparseLinear:
        torch.manual_seed(0)
        return SparseLinear(
            in_channels, out_channels, sparsity=sparsity, seed=0
        )

    runs = {
        'dense': Training(torch.nn.Linear(in_channels, out_channels), x, grad),
        'sparse': Training(layer(), x, grad),
        'masked': Masked(layer().mask, x, grad),
        'by hand': ByHand(layer(), x, grad),
    }
    options = dict(num_steps=NUM_STEPS, update_every=1)
    for cls in [RigL, SET]:
        run = runs[cls.__name__] = Training(layer(), x, grad)
        run.update = cls(
            run.layer, run.optimizer, drop_fraction=FRACTION, **options
        ).step
    # Each update prunes 0.1 % of the weights:
    run = runs['GradualMagnitude'] = Training(layer(), x, grad)
    run.update = GradualMagnitude(
        run.layer,
        run.optimizer,
        num_steps=1000,
        sparsity=1 - (1 - sparsity) / 2,
        update_every=1,
    ).step
    return runs


def compare(
    shape: Tuple[int, int, int], sparsity: float, num_steps: int
) -> None:
    runs = make_runs(shape, sparsity)
    for _ in range(num_steps + 2):
        for run in runs.values():
            run.step()
    base = {name: run.median() for name, run in runs.items()}
    dense, sparse = base.pop('dense'), base.pop('sparse')
    size = ' x '.join(f'{x:,}' for x in shape)
    print(f'\n{size} at {sparsity:.0%}: a dense step {dense:.1f} ms, ', end='')
    print(f'a sparse step {sparse:.1f} ms')
    print(f'{"update":18}{"ms":>9}{"dense steps":>13}{"sparse steps":>14}')
    for name, total in base.items():
        ms = total - (dense if name == 'masked' else sparse)
        print(f'{name:18}{ms:9.1f}{ms / dense:13.2f}{ms / sparse:14.2f}')


def run_large(num_rows: int) -> None:
    """Print the time and the memory of a layer of four billion weights."""
    layer = SparseLinear(65536, 65536, bias=False, sparsity=0.999, seed=0)
    run = Training(layer, *(torch.randn(num_rows, 65536) for _ in range(2)))
    rigl = RigL(layer, run.optimizer, num_steps=NUM_STEPS, update_every=3)
    run.update = rigl.step
    for _ in range(6):
        run.step()
    product = time.process_time()
    block = torch.empty(64, 65536)
    for _ in range(8):
        block.addmm_(run.grad[:, :64].t(), run.x.detach(), beta=0)
    product = 128 * (time.process_time() - product)
    steps = sorted(run.seconds)
    print(
        f'\n{num_rows} x 65,536 x 65,536 at 99.9 %: {steps[0]:.2f} s a step, '
        f'{run.seconds[-1]:.1f} s with an update of RigL, of which the dense '
        f'gradient takes {product:.1f} s; peak RSS {peak_rss():.2f} GB'
    )


def peak_rss() -> float:
    """Return the largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def describe_machine() -> str:
    lscpu = subprocess.run(['lscpu'], capture_output=True, text=True).stdout
    lines = dict(x.split(':', 1) for x in lscpu.splitlines() if ':' in x)
    keys = ['Model name', 'L1d cache', 'L2 cache', 'L3 cache']
    parts = [f'{key}: {lines.get(key, "?").strip()}' for key in keys]
    isa = torch.backends.cpu.get_cpu_capability()
    parts += [f'family {lines.get("CPU family", "?").strip()}', isa]
    parts += [f'{torch.get_num_threads()} thread(s)']
    return ', '.join([*parts, f'PyTorch {torch.__version__}'])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--steps', type=int, default=20, help='steps to time')
    parser.add_argument('--sparsities', type=float, nargs='+', default=[0.95])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--large_rows', type=int, default=128, help='0 skips the large layer'
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe_machine())
    for shape in SHAPES:
        for sparsity in args.sparsities:
            compare(shape, sparsity, args.steps)
    if args.large_rows > 0:  # In a process of its own, for its memory.
        context = multiprocessing.get_context('spawn')
        process = context.Process(target=run_large, args=(args.large_rows,))
        process.start()
        process.join()


if __name__ == '__main__':
    main()
