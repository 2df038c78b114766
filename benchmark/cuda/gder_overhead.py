"""Measure what `GDeRSampler` adds to a training step on a GPU.

Trains a GIN (4 layers, 64 channels) on half of random molecules, with each
method in turn:

* random: `SoftRandomSampler`,
* GDeR: `GDeRSampler` and the losses of its prototypes.

`step` is a step on a mini-batch that is on the GPU already: forward and
backward passes, Adam and `GDeRSampler.update`. `epoch` also counts the
planning of the epoch, and loading by PyG's `DataLoader` from pinned memory.
Prints median milliseconds, and the overhead in percent.
"""

import argparse
from typing import Any, List, Optional

import torch
import torch.nn.functional as F
from torch.optim import Adam
from torch_geometric.data import InMemoryDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

from benchmark.cuda.shared_trees import load_molecules
from benchmark.cuda.timing import Run, make_parser, measure, start
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import (
    DynamicSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

HIDDEN = 64
KEEP_RATIO = 0.5
MAX_EPOCHS = 10**6


class Training:
    """A training that draws half of the graphs in each epoch."""

    def __init__(
        self,
        dataset: InMemoryDataset,
        batch_size: int,
        device: torch.device,
        gder: bool,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = GIN(
            dataset.num_features, HIDDEN, 4, HIDDEN, norm='batch_norm'
        ).to(device)
        self.head = torch.nn.Linear(HIDDEN, dataset.num_classes).to(device)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        indexed = IndexedDataset(dataset)
        args = (KEEP_RATIO, MAX_EPOCHS)
        self.gder: Optional[GDeRSampler] = None
        sampler: DynamicSampler = SoftRandomSampler(indexed, *args)
        if gder:
            prototypes = HypersphericalPrototypes(HIDDEN, dataset.num_classes)
            parameters += prototypes.to(device).parameters()
            self.gder = sampler = GDeRSampler(indexed, prototypes, *args)
        self.loader = DataLoader(
            indexed,
            batch_size,
            sampler=sampler,
            pin_memory=device.type == 'cuda',
        )
        self.optimizer = Adam(parameters, lr=1e-3)
        self.batches: List[Any] = []

    def load(self) -> None:
        """Plan an epoch, and keep its mini-batches on the device."""
        self.batches = [batch.to(self.device) for batch in self.loader]

    def train(self) -> None:
        """Take a step on each mini-batch that was loaded."""
        for batch in self.batches:
            self.step(batch)

    def epoch(self) -> None:
        """Plan, load and train an epoch."""
        for batch in self.loader:
            self.step(batch.to(self.device, non_blocking=True))

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        h = self.model(batch.x, batch.edge_index)
        h = global_add_pool(h, batch.batch, batch.num_graphs)
        loss = F.cross_entropy(self.head(h), batch.y)
        if self.gder is not None:
            loss = loss + self.gder.update(h, batch.y, batch.graph_idx)
        loss.backward()
        self.optimizer.step()


def compare(
    dataset: InMemoryDataset, batch_size: int, args: argparse.Namespace
) -> None:
    """Print the rows of a batch size."""
    trainings = {
        name: Training(dataset, batch_size, args.device, name == 'GDeR')
        for name in ['random', 'GDeR']
    }
    num_steps = len(trainings['random'].loader)
    steps = {k: Run(v.train, v.load) for k, v in trainings.items()}
    epochs = {k: Run(v.epoch) for k, v in trainings.items()}
    for label, runs, size in [
        ('step', steps, num_steps),
        ('epoch', epochs, 1),
    ]:
        times = measure(runs, args.device, args.budget)
        more = 100 * (times['GDeR'] / times['random'] - 1)
        cells = ''.join(f'{x / size:>10.3f}' for x in times.values())
        print(f'{batch_size:>6} {label:<6}{cells}{more:>+10.1f} %', flush=True)


def main() -> None:
    parser = make_parser(__doc__, budget=3.0)
    parser.add_argument(
        '--batch_sizes', type=int, nargs='+', default=[128, 1024]
    )
    args = parser.parse_args()
    start(args.device)
    dataset = load_molecules(2048 if args.small else 6144)
    print(f'\n{len(dataset):,} random molecules, GIN 4 x 64: ms')
    print(f'{"batch":>6} {"":6}{"random":>10}{"GDeR":>10}{"overhead":>12}')
    for batch_size in args.batch_sizes:
        compare(dataset, batch_size, args)


if __name__ == '__main__':
    main()
