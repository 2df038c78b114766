"""Measure the time and the memory to plan an epoch for many graphs.

Passes the feedback of an epoch over N graphs to `GDeRSampler` and plans the
next one, with the kernel and with the reference operator. Each row runs in its
own process. Peak memory is relative to the memory before the sampler is built.
"""

import argparse
import resource
import subprocess
import sys
import time
from typing import Tuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

import torch_geometric_ext.typing
from torch_geometric_ext.loader import (
    DynamicSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

METHODS = ['GDeR', 'GDeR, reference', 'soft random']


class RandomScores(HypersphericalPrototypes):
    """Prototypes that return random scores without computing them."""

    def forward(self, h: Tensor, *args: Any, **kwargs: Any) -> Tuple[Tensor, Tensor]:
        scores = torch.rand(h.size(0), 3)
        scores[:, 2] = (20 * scores[:, 2]).floor()
        return h.new_zeros(()), scores


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB


def measure(method: str, size: int, keep_ratio: float) -> None:
    torch_geometric_ext.typing.WITH_EXT &= 'reference' not in method
    base = peak_memory()
    sampler: DynamicSampler
    if method == 'soft random':
        sampler = SoftRandomSampler(size, keep_ratio, num_epochs=10)
    else:
        prototypes = RandomScores(8, num_classes=10)
        sampler = GDeRSampler(size, prototypes, keep_ratio, num_epochs=10)
    seconds = []
    for epoch in range(4):
        start = time.perf_counter()
        sampler.set_epoch(epoch)
        seconds.append(time.perf_counter() - start)
        if isinstance(sampler, GDeRSampler):
            with torch.no_grad():  # Replaces a step of the optimizer.
                prototypes.prototypes.add_(0.01)
            for batch in BatchSampler(sampler, 4096, drop_last=False):
                graph_idx = torch.tensor(batch)
                h = torch.empty(len(batch), 8)
                sampler.update(h, graph_idx, graph_idx)
    memory = peak_memory() - base
    print(
        f'{method:18}{size:>12,}{keep_ratio:>8.0%}'
        f'{sorted(seconds[1:])[1]:>12.2f}{memory:>12.2f}',
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sizes', type=int, nargs='+', default=[10**6, 10**7])
    parser.add_argument('--keep_ratios', type=float, nargs='+', default=[0.5])
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        measure(args.row[0], int(args.row[1]), float(args.row[2]))
        return
    print(f'PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)')
    print(f'{"":18}{"graphs":>12}{"kept":>8}{"seconds":>12}{"peak GB":>12}')
    sys.stdout.flush()
    for size in args.sizes:
        for ratio in args.keep_ratios:
            for method in METHODS:
                row = ['--row', method, str(size), str(ratio)]
                subprocess.run([sys.executable, __file__, *row], check=True)


if __name__ == '__main__':
    main()
