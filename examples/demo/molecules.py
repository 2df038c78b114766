"""The doors for data sets of many graphs, on molecules."""

import time
from functools import cache, partial
from typing import Any, Iterable, List

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import WeightedRandomSampler
from torch_geometric import seed_everything
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import GDeRSampler, SharedTreeLoader
from torch_geometric_ext.nn import (
    HypersphericalPrototypes,
    RootAggregation,
    TreeBatchNorm,
    shared_batch,
)
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)

from .table import Door, Run

NUM_FAULTY = 4000  # Molecules of the faulty data set, with all liquids.
KEPT_LIQUIDS, CORRUPTED = 0.05, 0.2  # Fractions of it.
CONDENSED = 0.05  # Fraction of the bytes of the training molecules.
BATCH_SIZE = 1024  # Of shared trees and condensed data.


class Net(torch.nn.Module):
    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        gnn = GIN(12, channels, num_layers, norm='batch_norm')
        self.gnn = TreeBatchNorm.convert(gnn)
        self.aggr = RootAggregation('sum')
        self.head = torch.nn.Linear(channels, 3)

    def forward(self, batch: Data) -> Tensor:
        with shared_batch(batch):  # Plain graphs pass as always.
            h = self.gnn(batch.x, batch.edge_index)
        return self.aggr(h, batch)


def fewer_graphs(
    dataset: Dataset, test: Dataset, seed: int, epochs: int
) -> Door:
    """Compare samplers on few liquids and corrupted molecules."""
    faulty = make_faulty(dataset, seed)

    def run(kind: str) -> Run:
        seed_everything(seed)
        model, start = Net(64, num_layers=3), time.perf_counter()
        parameters = list(model.parameters())
        graphs: Any = faulty
        sampler: Any = None
        if kind == 'by hand':
            y = torch.cat([data.y for data in faulty])
            weight: Any = 1 / y.bincount()[y]
            sampler = WeightedRandomSampler(weight, len(y) // 2)
        elif kind == 'ours':
            graphs = IndexedDataset(faulty)
            prototypes = HypersphericalPrototypes(64, num_classes=3)
            parameters += prototypes.parameters()
            sampler = GDeRSampler(graphs, prototypes, 0.5, epochs, seed=seed)
        loader = DataLoader(graphs, 64, shuffle=not sampler, sampler=sampler)
        fit(model, loader, epochs, parameters, sampler)
        seconds = time.perf_counter() - start
        return Run(f1_score(model, test), seconds, 'half of the steps')

    runs = [partial(run, kind) for kind in ['plain', 'by hand', 'ours']]
    return Door('fewer graphs', 'GIN, faulty molecules', 'F1', *runs)


def trees(
    dataset: Dataset, test: Dataset, seed: int, epochs: int
) -> List[Door]:
    """Compare plain graphs with shared trees and with condensed data."""

    def run(prepare: Any, saved: str = '') -> Run:
        seed_everything(seed)
        model, start = Net(128, num_layers=2), time.perf_counter()
        fit(model, prepare(dataset, seed), epochs, model.parameters())
        seconds = time.perf_counter() - start
        return Run(accuracy(model, test), seconds, saved)

    plain = cache(partial(run, load_plain))
    shared = Door(
        'shared trees',
        'GIN, molecules',
        'accuracy',
        plain,
        partial(run, load_collated),
        partial(run, load_shared, 'equal gradients'),
    )
    condensed = Door(
        'condensed data',
        'GIN, molecules',
        'accuracy',
        plain,
        partial(run, load_random),
        partial(run, load_condensed, '95 % of bytes'),
    )
    return [shared, condensed]


def load_plain(dataset: Dataset, seed: int) -> DataLoader:
    return DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True)


def load_collated(dataset: Dataset, seed: int) -> List[Data]:
    """Return mini-batches that are collated once."""
    return list(load_plain(dataset, seed))


def load_shared(dataset: Dataset, seed: int) -> SharedTreeLoader:
    shared = ShareComputationTrees(num_layers=2, edge_attr=False)(dataset)
    return SharedTreeLoader(shared, BATCH_SIZE, shuffle=True, drop_last=True)


def load_random(dataset: Dataset, seed: int) -> DataLoader:
    """Return a loader of random molecules with a fraction of the bytes."""
    size = round(CONDENSED * len(dataset))
    chosen = dataset[torch.randperm(len(dataset))[:size]]
    sampler = draw(torch.ones(size), len(dataset))
    return DataLoader(chosen, BATCH_SIZE, sampler=sampler)


def load_condensed(dataset: Dataset, seed: int) -> SharedTreeLoader:
    """Return a loader of trees with a fraction of the bytes."""
    graphs = [
        Data(x=data.x, edge_index=data.edge_index, y=data.y)
        for data in dataset
    ]
    condense = MirageCondense(
        num_layers=2, ratio=CONDENSED, share=True, seed=seed
    )
    condensed = condense(graphs)
    sampler = draw(condensed.graph_attrs['weight'], len(dataset))
    return SharedTreeLoader(condensed, BATCH_SIZE, sampler=sampler)


def draw(weight: Any, size: int) -> WeightedRandomSampler:
    """Draw as many graphs in an epoch as complete mini-batches have."""
    return WeightedRandomSampler(weight, size // BATCH_SIZE * BATCH_SIZE)


def fit(
    model: Net,
    loader: Any,
    epochs: int,
    parameters: Iterable[Tensor],
    sampler: Any = None,
) -> None:
    optimizer = Adam(parameters, lr=0.005)
    num_steps = epochs * len(loader)
    scheduler = OneCycleLR(optimizer, 0.005, total_steps=num_steps)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            h = model(batch)
            loss = F.cross_entropy(model.head(h), batch.y)
            if isinstance(sampler, GDeRSampler):
                loss = loss + sampler.update(h, batch.y, batch.graph_idx)
            loss.backward()
            optimizer.step()
            scheduler.step()


@torch.no_grad()
def predict(model: Net, test: Dataset) -> Tensor:
    model.eval()
    loader = DataLoader(test, batch_size=1024)
    return torch.cat([model.head(model(b)).argmax(dim=-1) for b in loader])


def accuracy(model: Net, test: Dataset) -> float:
    return 100 * float((predict(model, test) == test.y).float().mean())


def f1_score(model: Net, test: Dataset) -> float:
    """Return the mean F1-score of the three classes."""
    pred, y = predict(model, test), test.y
    scores = [
        2
        * ((pred == c) & (y == c)).sum()
        / ((pred == c).sum() + (y == c).sum())
        for c in range(3)
    ]
    return 100 * float(sum(scores) / 3)


def make_faulty(dataset: Dataset, seed: int) -> List[Data]:
    """Return molecules of which few are liquid and a fifth is corrupted."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(NUM_FAULTY, 2, generator=generator)
    faulty = []
    for data, (kept, corrupted) in zip(dataset, draws):
        if int(data.y) == 0 and kept > KEPT_LIQUIDS:
            continue
        data = Data(x=data.x, edge_index=data.edge_index, y=data.y)
        if corrupted < CORRUPTED:
            data.x = torch.randn(data.x.size(), generator=generator)
        faulty.append(data)
    return faulty
