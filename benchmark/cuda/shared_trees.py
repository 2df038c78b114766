"""Measure the time of an epoch on plain graphs and on shared trees on a GPU.

Trains GIN, GCN and GAT (hidden 128, batch normalization after each layer, sum
over nodes, Adam) on random molecules, with each method in turn:

* plain: PyG's `DataLoader`,
* workers: the same with four worker processes,
* trees: `SharedTreeLoader`, `TreeBatchNorm` and `shared_batch`,
* kept: mini-batches of plain graphs, collated once and kept on the GPU,
* kept tr.: mini-batches of shared trees, extracted once and kept on the GPU.

Mini-batches come from pinned memory without waiting, and an epoch counts
loading, copies to the GPU, forward and backward passes and Adam. Prints median
milliseconds of an epoch and the ratios of fresh mini-batches (plain and
workers to trees) and of kept ones. `rows` is the ratio of the rows that all
layers compute.
"""

import argparse
import contextlib
import copy
import os
from typing import Any, Dict, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch_geometric.data import InMemoryDataset
from torch_geometric.loader import DataLoader

from benchmark.cuda.timing import Run, make_parser, measure, start
from benchmark.loader.shared_trees import HIDDEN, Net, share, train_step
from benchmark.scale import random_molecules
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import TreeBatchNorm, shared_batch

MODELS = ['GIN', 'GCN', 'GAT']
NUM_ATOMS = 37
NUM_WORKERS = min(4, os.cpu_count() or 1)
RATIOS = [('plain', 'trees'), ('workers', 'trees'), ('kept', 'kept tr.')]


class NormalizedNet(Net):
    """A network with batch normalization, on plain graphs or on trees."""

    def __init__(self, name: str, num_layers: int, plain: bool) -> None:
        super().__init__(name, NUM_ATOMS, num_layers, plain)
        self.plain = plain
        norm: Any = torch.nn.BatchNorm1d if plain else TreeBatchNorm
        self.norms = torch.nn.ModuleList(norm(HIDDEN) for _ in self.convs)

    def forward(self, batch: Any) -> Tensor:
        h = batch.x
        args = (batch.edge_weight,) if 'edge_weight' in batch else ()
        scope = contextlib.nullcontext() if self.plain else shared_batch(batch)
        with scope:
            for conv, norm in zip(self.convs, self.norms):
                h = norm(conv(h, batch.edge_index, *args)).relu()
        return self.head(self.aggr(h, batch))


class Kept:
    """Mini-batches on a device, in a new order in each epoch."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.batches = [batch.to(device) for batch in loader]

    def __iter__(self) -> Iterator:
        for i in torch.randperm(len(self.batches)).tolist():
            yield copy.copy(self.batches[i])


def load_molecules(num_graphs: int) -> InMemoryDataset:
    """Return random molecules, whose features are their atoms."""
    dataset = random_molecules(num_graphs)
    atoms = dataset._data.x[:, 0]
    dataset._data.x = F.one_hot(atoms, NUM_ATOMS).float()
    return dataset


def make_epoch(model: Net, loader: Any, device: torch.device) -> Run:
    """Return a function that trains a copy of a model for an epoch."""
    model = copy.deepcopy(model).to(device)
    optimizer = Adam(model.parameters(), lr=1e-3)

    def epoch() -> None:
        for batch in loader:
            batch = batch.to(device, non_blocking=True)
            train_step(model, optimizer, batch)

    return Run(epoch)


def compare(
    dataset: InMemoryDataset,
    name: str,
    batch_size: int,
    args: argparse.Namespace,
) -> None:
    """Print a row of the table."""
    trees = share(dataset, name, args.num_layers)
    options: Dict[str, Any] = dict(
        shuffle=True, drop_last=True, pin_memory=args.device.type == 'cuda'
    )
    plain = DataLoader(dataset, batch_size, **options)
    workers = DataLoader(
        dataset,
        batch_size,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
        **options,
    )
    fresh = SharedTreeLoader(trees, batch_size, **options)
    torch.manual_seed(0)
    on_graphs = NormalizedNet(name, args.num_layers, plain=True)
    on_trees = NormalizedNet(name, args.num_layers, plain=False)
    on_trees.load_state_dict(on_graphs.state_dict())
    epochs = {
        'plain': make_epoch(on_graphs, plain, args.device),
        'workers': make_epoch(on_graphs, workers, args.device),
        'trees': make_epoch(on_trees, fresh, args.device),
        'kept': make_epoch(on_graphs, Kept(plain, args.device), args.device),
        'kept tr.': make_epoch(
            on_trees, Kept(fresh, args.device), args.device
        ),
    }
    times = measure(epochs, args.device, args.budget)
    cells = ''.join(f'{x:>10.1f}' for x in times.values())
    ratios = ''.join(f'{times[x] / times[y]:>10.2f}x' for x, y in RATIOS)
    rows = fresh.report().node_ratio
    print(f'{name:<6}{batch_size:>6}{cells}{ratios}{rows:>8.2f}', flush=True)


def main() -> None:
    parser = make_parser(__doc__, budget=4.0)
    parser.add_argument('--num_layers', type=int, default=2)
    parser.add_argument(
        '--batch_sizes', type=int, nargs='+', default=[128, 1024]
    )
    args = parser.parse_args()
    start(args.device)
    dataset = load_molecules(2048 if args.small else 6144)
    print(
        f'\n{len(dataset):,} random molecules, {args.num_layers} layers: ms '
        f'of an epoch, and ratios (workers: {NUM_WORKERS})'
    )
    labels = [*(f'{x:>10}' for x in ['plain', 'workers', 'trees', 'kept'])]
    labels += [f'{"kept tr.":>10}', f'{"pl./trees":>11}']
    labels += [f'{"wo./trees":>11}', f'{"kept":>11}', f'{"rows":>8}']
    print(f'{"model":<6}{"batch":>6}{"".join(labels)}')
    for name in MODELS:
        for batch_size in args.batch_sizes:
            compare(dataset, name, batch_size, args)


if __name__ == '__main__':
    main()
