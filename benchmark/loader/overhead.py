"""What dynamic pruning costs: training time with and without `GDeRSampler`.

Trains a GIN on NCI1 in rounds of one epoch each, in turn, in one process:

* full data from the plain data set,
* `GDeRSampler` at keep_ratio 1, which is full data plus everything GDeR adds
  (stamped graphs, projector, losses, backward, scores, Adam, planning),
* the same with the reference operators in plain PyTorch,
* `SoftRandomSampler` and `GDeRSampler` at keep_ratio 0.3.

Prints the median over the rounds of the ratio to full data, and its quartiles.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch.optim import Adam
from torch_geometric.data import Dataset
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

import torch_geometric_ext.typing
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import GDeRSampler, SoftRandomSampler
from torch_geometric_ext.nn import HypersphericalPrototypes


class Run:
    """Trains one model; every call of `epoch` gives its seconds."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        sampler: str = 'full',
        keep_ratio: float = 1.0,
        kernels: bool = True,
    ) -> None:
        torch.manual_seed(0)
        self.kernels = kernels
        self.model = GIN(dataset.num_features, 64, 4, 64, norm='batch_norm')
        self.head = torch.nn.Linear(64, dataset.num_classes)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.sampler = None
        if sampler == 'full':
            self.loader = DataLoader(dataset, batch_size, shuffle=True)
        elif sampler == 'soft':
            soft = SoftRandomSampler(dataset, keep_ratio, num_epochs=10**6)
            self.loader = DataLoader(dataset, batch_size, sampler=soft)
        else:
            indexed = IndexedDataset(dataset)
            prototypes = HypersphericalPrototypes(64, dataset.num_classes)
            parameters += prototypes.parameters()
            self.sampler = GDeRSampler(
                indexed, prototypes, keep_ratio, num_epochs=10**6
            )
            self.loader = DataLoader(indexed, batch_size, sampler=self.sampler)
        self.optimizer = Adam(parameters, lr=1e-3)

    def epoch(self) -> float:
        torch_geometric_ext.typing.WITH_EXT = self.kernels
        start = time.perf_counter()
        for batch in self.loader:
            self.optimizer.zero_grad()
            h = self.model(batch.x, batch.edge_index)
            h = global_add_pool(h, batch.batch, batch.num_graphs)
            loss = F.cross_entropy(self.head(h), batch.y)
            if self.sampler is not None:
                extra = self.sampler.update(h, batch.y, batch.graph_idx)
                loss = loss + extra
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data', help='holds NCI1')
    parser.add_argument(
        '--batch_sizes', type=int, nargs='+', default=[32, 128]
    )
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--rounds', type=int, default=25)
    args = parser.parse_args()

    if not torch_geometric_ext.typing.WITH_EXT:
        raise SystemExit('the kernels are not installed')
    dataset = TUDataset(args.root, 'NCI1')
    print(f'NCI1, GIN 4x64, {args.rounds} rounds, PyTorch {torch.__version__}')
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch_size in args.batch_sizes:
            compare(dataset, batch_size, args.rounds, threads)


def compare(
    dataset: Dataset, batch_size: int, rounds: int, threads: int
) -> None:
    runs = {
        'full data': Run(dataset, batch_size),
        'GDeR 1.0': Run(dataset, batch_size, 'gder'),
        'GDeR 1.0, reference': Run(dataset, batch_size, 'gder', kernels=False),
        'soft random 0.3': Run(dataset, batch_size, 'soft', 0.3),
        'GDeR 0.3': Run(dataset, batch_size, 'gder', 0.3),
    }
    for run in runs.values():  # Warm up caches and allocator.
        run.epoch()
    seconds = torch.tensor(
        [[run.epoch() for run in runs.values()] for _ in range(rounds)],
        dtype=torch.float64,
    )

    print(f'\nbatch size {batch_size}, {threads} thread(s)')
    print(f'{"":22}{"ms/epoch":>9}{"to full":>10}{"quartiles":>17}')
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    for i, name in enumerate(runs):
        ratio = seconds[:, i] / seconds[:, 0]
        if name.endswith('0.3'):  # A speed-up, at most 1 / 0.3 = 3.33.
            ratio, unit = 1 / ratio, 'x faster'
        else:
            ratio, unit = 100 * (ratio - 1), '% more'
        low, mid, high = ratio.quantile(quartiles).tolist()
        print(
            f'{name:22}{1e3 * seconds[:, i].median():9.0f}{mid:10.2f}'
            f'{low:9.2f}{high:8.2f} {unit}'
        )


if __name__ == '__main__':
    main()
