"""Trains a GIN on real molecules with fewer graphs in each epoch.

Compares training on all graphs with its honest rivals (half the epochs, a new
random part of the graphs in each epoch) and with `GDeRSampler`, over several
paired seeds: all methods of a seed start from the same weights. Accuracies are
those of the last epoch; nothing is selected on the test set.
"""

import argparse
import time
from typing import Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Dataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool
from torch_geometric.utils.smiles import x_map
from tqdm import tqdm

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import (
    DynamicSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes
from torch_geometric_ext.typing import WITH_EXT


class Net(torch.nn.Module):
    def __init__(self, hidden_channels: int, num_classes: int) -> None:
        super().__init__()
        sizes = torch.tensor([len(values) for values in x_map.values()])
        self.register_buffer('offset', sizes.cumsum(0) - sizes)
        self.atom = torch.nn.EmbeddingBag(
            int(sizes.sum()), hidden_channels, mode='sum'
        )
        self.gnn = GIN(
            hidden_channels, hidden_channels, num_layers=4, norm='batch_norm'
        )
        self.head = torch.nn.Linear(hidden_channels, num_classes)

    def forward(self, batch: Batch) -> Tensor:
        x = self.atom(batch.x + self.offset)
        h = self.gnn(x, batch.edge_index)
        return global_add_pool(h, batch.batch, batch.num_graphs)


class Method(NamedTuple):
    name: str
    epochs: int
    sampler: Optional[str] = None
    keep_ratio: float = 1.0


class Result(NamedTuple):
    accuracy: float
    num_graphs: int
    seconds: float


def train(
    method: Method,
    seed: int,
    dataset: IndexedDataset,
    test_dataset: Dataset,
    args: argparse.Namespace,
    progress: tqdm,
) -> Result:
    seed_everything(seed)
    model = Net(args.hidden_channels, dataset.num_classes)
    parameters = list(model.parameters())
    sampler: Optional[DynamicSampler] = None

    if method.sampler == 'soft':
        sampler = SoftRandomSampler(
            dataset, method.keep_ratio, method.epochs, seed=seed
        )
    elif method.sampler == 'gder':
        prototypes = HypersphericalPrototypes(
            args.hidden_channels, dataset.num_classes
        )
        parameters += prototypes.parameters()
        sampler = GDeRSampler(
            dataset, prototypes, method.keep_ratio, method.epochs, seed=seed
        )
    loader = DataLoader(
        dataset, args.batch_size, shuffle=sampler is None, sampler=sampler
    )

    optimizer = Adam(parameters, lr=args.lr)
    scheduler = OneCycleLR(
        optimizer, args.lr, total_steps=method.epochs * len(loader)
    )
    num_graphs, start = 0, time.perf_counter()
    model.train()
    for _ in range(method.epochs):
        for batch in loader:
            optimizer.zero_grad()
            h = model(batch)
            loss = F.cross_entropy(model.head(h), batch.y)
            if isinstance(sampler, GDeRSampler):
                loss = loss + sampler.update(h, batch.y, batch.graph_idx)
            loss.backward()
            optimizer.step()
            scheduler.step()
            num_graphs += batch.num_graphs
            progress.update(batch.num_graphs)
    seconds = time.perf_counter() - start
    return Result(test(model, test_dataset), num_graphs, seconds)


@torch.no_grad()
def test(model: Net, dataset: Dataset) -> float:
    model.eval()
    batch = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    pred = model.head(model(batch)).argmax(dim=-1)
    return 100 * float((pred == batch.y).float().mean())


def mean_and_error(values: List[float]) -> str:
    x = torch.tensor(values, dtype=torch.double)
    error = x.std() / len(x) ** 0.5 if len(x) > 1 else torch.tensor(0.0)
    return f'{x.mean():.1f} ± {error:.1f}'


def print_table(results: Dict[Method, List[Result]]) -> None:
    full = next(iter(results.values()))
    full_seconds = sum(r.seconds for r in full)
    print(
        f'{"method":20}{"accuracy [%]":>14}{"Δ to full":>14}'
        f'{"graphs":>10}{"time [s]":>10}{"speed-up":>10}'
    )
    for method, runs in results.items():
        delta = [r.accuracy - f.accuracy for r, f in zip(runs, full)]
        seconds = sum(r.seconds for r in runs)
        num_graphs = sum(r.num_graphs for r in runs) // len(runs)
        print(
            f'{method.name:20}'
            f'{mean_and_error([r.accuracy for r in runs]):>14}'
            f'{mean_and_error(delta) if runs is not full else "":>14}'
            f'{num_graphs:>10,}{seconds / len(runs):>10.2f}'
            f'{full_seconds / seconds:>9.2f}x'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data/Solubility')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--epochs', type=int, default=40)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--hidden_channels', type=int, default=64)
    parser.add_argument('--lr', type=float, default=0.005)
    args = parser.parse_args()

    train_dataset = IndexedDataset(Solubility(args.root, 'train'))
    test_dataset = Solubility(args.root, 'test')
    methods = [
        Method('full data', args.epochs),
        Method('half the epochs', max(args.epochs // 2, 1)),
    ]
    for ratio in [0.5, 0.3]:
        for label, sampler in [('soft random', 'soft'), ('GDeR', 'gder')]:
            methods.append(
                Method(f'{label} {ratio:.0%}', args.epochs, sampler, ratio)
            )
    print(
        f'GIN on Solubility: {len(train_dataset):,} training and '
        f'{len(test_dataset)} test molecules, {args.epochs} epochs, '
        f'{args.seeds} paired seeds, {torch.get_num_threads()} thread(s), '
        f'kernels {"on" if WITH_EXT else "off"}'
    )

    size = len(train_dataset)
    total = sum(round(m.keep_ratio * size) * m.epochs for m in methods)
    results: Dict[Method, List[Result]] = {method: [] for method in methods}
    with tqdm(total=args.seeds * total, unit=' graphs', disable=None) as bar:
        for seed in range(args.seeds):
            for method in methods:
                bar.set_description(f'seed {seed}, {method.name}')
                results[method].append(
                    train(method, seed, train_dataset, test_dataset, args, bar)
                )
    print_table(results)


if __name__ == '__main__':
    main()
