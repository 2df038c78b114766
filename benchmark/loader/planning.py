"""Measure the time and the memory to plan an epoch for many graphs.

Passes the feedback of an epoch over N graphs of ten classes to `GDeRSampler`
and plans the next one. One graph in ten has an unusual embedding, so that the
trusted draw has suspects. The paper's draw runs with its kernel, and with the
reference operator. `SoftRandomSampler` draws uniformly, or all classes equally
often. Each row runs in its own process. Peak memory is relative to the memory
before the sampler is built.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any, Dict, Tuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

import torch_geometric_ext.typing
from benchmark import record
from torch_geometric_ext.loader import (
    DynamicSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

METHODS = [
    'GDeR',
    'GDeR, draw=paper',
    'GDeR, draw=paper, reference',
    'soft random',
    'soft random, balance=1',
]
NUM_CLASSES = 10


class RandomScores(HypersphericalPrototypes):
    """Prototypes that return random scores without computing them."""

    def forward(
        self, h: Tensor, *args: Any, **kwargs: Any
    ) -> Tuple[Tensor, Tensor]:
        scores = torch.rand(h.size(0), 3)
        scores[:, 2] = (2 * NUM_CLASSES * scores[:, 2]).floor()
        return h.new_zeros(()), scores


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB


def measure(method: str, size: int, keep_ratio: float) -> Dict[str, Any]:
    """Return a row of the table."""
    torch_geometric_ext.typing.WITH_EXT &= 'reference' not in method
    base = peak_memory()
    sampler = make_sampler(method, size, keep_ratio)
    seconds = []
    for epoch in range(4):
        start = time.perf_counter()
        sampler.set_epoch(epoch)
        seconds.append(time.perf_counter() - start)
        if isinstance(sampler, GDeRSampler):
            train_epoch(sampler)
    suspects = None
    if method == 'GDeR':
        assert isinstance(sampler, GDeRSampler)
        suspects = sampler.suspects().numel() / size
    return {
        'method': method,
        'graphs': size,
        'kept': keep_ratio,
        'suspects': suspects,
        'seconds': sorted(seconds[1:])[1],
        'gigabytes': peak_memory() - base,
    }


def run(method: str, size: int, keep_ratio: float) -> None:
    """Measure a row in another process, and print it."""
    command = [sys.executable, '-m', 'benchmark.loader.planning', '--row']
    out = subprocess.run(
        [*command, method, str(size), str(keep_ratio)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    row = json.loads(out.stdout)
    suspects = '-' if row['suspects'] is None else f'{row["suspects"]:.1%}'
    print(
        f'{method:28}{size:>12,}{keep_ratio:>8.0%}{suspects:>10}'
        f'{row["seconds"]:>12.2f}{row["gigabytes"]:>12.2f}',
        flush=True,
    )
    record.write(**row)


def make_sampler(method: str, size: int, keep_ratio: float) -> DynamicSampler:
    y = torch.arange(size) % NUM_CLASSES
    if method.startswith('soft random'):
        balance = float('balance' in method)
        return SoftRandomSampler(
            size, keep_ratio, num_epochs=10, balance=balance, y=y
        )
    return GDeRSampler(
        size,
        RandomScores(8, num_classes=NUM_CLASSES),
        keep_ratio,
        num_epochs=10,
        draw='paper' if 'paper' in method else 'trusted',
        y=y,
    )


def train_epoch(sampler: GDeRSampler) -> None:
    with torch.no_grad():  # Replaces a step of the optimizer.
        for x in sampler.prototypes.parameters():
            x.add_(0.01)
    for batch in BatchSampler(sampler, 4096, drop_last=False):
        graph_idx = torch.tensor(batch)
        h = torch.randn(len(batch), 8)
        h[graph_idx % 100 >= 90] += 20.0
        sampler.update(h, graph_idx % NUM_CLASSES, graph_idx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sizes', type=int, nargs='+', default=[10**6, 10**7])
    parser.add_argument('--keep_ratios', type=float, nargs='+', default=[0.5])
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    record.add_argument(parser)
    args = parser.parse_args()
    if args.row:
        size, ratio = int(args.row[1]), float(args.row[2])
        print(json.dumps(measure(args.row[0], size, ratio)))
        return
    record.start(args.output)
    print(f'PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)')
    print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}')
    print(
        f'{"":28}{"graphs":>12}{"kept":>8}{"suspects":>10}{"seconds":>12}'
        f'{"peak GB":>12}'
    )
    for size in args.sizes:
        for ratio in args.keep_ratios:
            for method in METHODS:
                run(method, size, ratio)


if __name__ == '__main__':
    main()
