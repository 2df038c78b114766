"""Measure the training time with and without `GDeRSampler`.

Trains a GIN on NCI1 in one process, one mini-batch of each method in turn:

* full data from the plain data set and from an `IndexedDataset`,
* `GDeRSampler` at a keep ratio of 1: full data with the overhead of GDeR
  (graph indices, projector, losses, backward pass, scores, Adam, planning),
* the same with the reference operators in plain PyTorch,
* `SoftRandomSampler` and `GDeRSampler` at a keep ratio of 0.3.

The time of an epoch is the sum of the medians of its steps over epochs, which
is robust to other processes. The first step includes planning. Prints the
ratio to full data from the same `IndexedDataset`, and its range over three
parts of the epochs.
"""

import argparse
import os
import time
from typing import Callable, Iterator, List

import torch
import torch.nn.functional as F
from torch.optim import Adam
from torch_geometric.data import Dataset
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

import torch_geometric_ext.typing
from benchmark import record
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import GDeRSampler, SoftRandomSampler
from torch_geometric_ext.nn import HypersphericalPrototypes
from torch_geometric_ext.ops.machine import cpu_model


class Run:
    """Train a model step by step and record the seconds of each step."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        sampler: str = 'full',
        keep_ratio: float = 1.0,
        kernels: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        fused: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.clock = clock
        self.kernels = kernels
        self.model = GIN(dataset.num_features, 64, 4, 64, norm='batch_norm')
        self.head = torch.nn.Linear(64, dataset.num_classes)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.sampler = None
        if sampler == 'full':
            self.loader = DataLoader(dataset, batch_size, shuffle=True)
        elif sampler == 'indexed':
            indexed = IndexedDataset(dataset)
            self.loader = DataLoader(indexed, batch_size, shuffle=True)
        elif sampler == 'soft':
            indexed = IndexedDataset(dataset)
            soft = SoftRandomSampler(indexed, keep_ratio, num_epochs=10**6)
            self.loader = DataLoader(indexed, batch_size, sampler=soft)
        else:
            indexed = IndexedDataset(dataset)
            prototypes = HypersphericalPrototypes(64, dataset.num_classes)
            parameters += prototypes.parameters()
            self.sampler = GDeRSampler(
                indexed, prototypes, keep_ratio, num_epochs=10**6
            )
            self.loader = DataLoader(indexed, batch_size, sampler=self.sampler)
        self.optimizer = Adam(parameters, lr=1e-3, fused=fused)
        self.seconds: List[List[float]] = []  # Of each step of each epoch.
        self.batches: Iterator = iter(())

    def step(self) -> None:
        torch_geometric_ext.typing.WITH_EXT = self.kernels
        start = self.clock()
        batch = next(self.batches, None)
        if batch is None:
            start = self.clock()
            self.seconds.append([])
            self.batches = iter(self.loader)
            batch = next(self.batches)
        self.optimizer.zero_grad()
        h = self.model(batch.x, batch.edge_index)
        h = global_add_pool(h, batch.batch, batch.num_graphs)
        loss = F.cross_entropy(self.head(h), batch.y)
        if self.sampler is not None:
            loss = loss + self.sampler.update(h, batch.y, batch.graph_idx)
        loss.backward()
        self.optimizer.step()
        self.seconds[-1].append(self.clock() - start)

    def epoch_seconds(self, part: slice = slice(None)) -> float:
        # Skip the first epoch (warm-up) and the last one (unfinished):
        complete = torch.tensor(self.seconds[1:-1])
        return float(complete[part].median(dim=0).values.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument(
        '--batch_sizes', type=int, nargs='+', default=[32, 128]
    )
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--epochs', type=int, default=15)
    parser.add_argument(
        '--cpu_time',
        action='store_true',
        help='robust to other processes, for one thread',
    )
    parser.add_argument('--fused', action='store_true', help='fused Adam')
    record.add_argument(parser)
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter

    if not torch_geometric_ext.typing.WITH_EXT:
        raise SystemExit('the kernels are not installed')
    dataset = TUDataset(f'{args.root}/TUDataset', 'NCI1')
    print(f'NCI1, GIN 4x64, {args.epochs} epochs, PyTorch {torch.__version__}')
    print(machine())
    record.start(args.output, [0])
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch_size in args.batch_sizes:
            compare(
                dataset, batch_size, args.epochs, threads, clock, args.fused
            )


def machine() -> str:
    """Return the processor, its number of cores and its load."""
    load = os.getloadavg()[0]
    return f'{cpu_model()}, {os.cpu_count()} cores, load {load:.1f}'


def compare(
    dataset: Dataset,
    batch_size: int,
    epochs: int,
    threads: int,
    clock: Callable[[], float],
    fused: bool,
) -> None:
    settings = {
        'full data': ('full', 1.0, True),
        'full data, indexed': ('indexed', 1.0, True),
        'GDeR 1.0': ('gder', 1.0, True),
        'GDeR 1.0, reference': ('gder', 1.0, False),
        'soft random 0.3': ('soft', 0.3, True),
        'GDeR 0.3': ('gder', 0.3, True),
    }
    runs = {
        name: Run(dataset, batch_size, *setting, clock, fused)
        for name, setting in settings.items()
    }
    full = runs['full data, indexed']
    while len(full.seconds) < epochs + 3:
        for run in runs.values():
            run.step()

    print(f'\nbatch size {batch_size}, {threads} thread(s)')
    print(f'{"":22}{"ms/epoch":>9}{"to indexed":>12}{"range":>17}')
    parts = [slice(None), *(slice(i, None, 3) for i in range(3))]
    for name, run in runs.items():
        ratio, *rest = (
            run.epoch_seconds(part) / full.epoch_seconds(part)
            for part in parts
        )
        if name.endswith('0.3'):  # The speed-up is at most 1 / 0.3.
            values, unit = [1 / x for x in [ratio, *rest]], 'x faster'
        else:
            values = [100 * (x - 1) for x in [ratio, *rest]]
            unit = '% more'
        print(
            f'{name:22}{1e3 * run.epoch_seconds():9.0f}{values[0]:12.2f}'
            f'{min(values[1:]):9.2f}{max(values[1:]):8.2f} {unit}',
            flush=True,
        )
        record.write(
            batch_size=batch_size,
            threads=threads,
            method=name,
            milliseconds=1e3 * run.epoch_seconds(),
            value=values[0],
            low=min(values[1:]),
            high=max(values[1:]),
            unit=unit,
        )


if __name__ == '__main__':
    main()
