"""Measure samplers under imbalance, corrupted features and wrong labels.

Trains a GIN (three layers, 64 channels) for 20 epochs on 60 % of a data set
and tests it after the last epoch on 30 %. Seeds are paired: with the same
seed, all methods have the same split, the same corruption and the same initial
weights. Scenarios change the training graphs only:

* `normal`: as they are
* `imbalanced`: one class is subsampled to one graph of ten
* `features 10 %`, `features 30 %`: features of so many graphs are replaced by
  Gaussian noise
* `both`: imbalanced, and then features of 10 % replaced
* `labels 20 %`: labels of so many graphs are wrong

The test set is as it is, and (`_imbalanced` in the results) subsampled like
the imbalanced training set. Appends one JSON line per run to `--output`, and
skips runs that are already there. `pruning_report.py` prints tables and draws
figures.
"""

import argparse
import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch_geometric import seed_everything
from torch_geometric.datasets import MoleculeNet, TUDataset
from torch_geometric.nn import GIN, global_add_pool
from torch_geometric.utils import degree

from benchmark import record
from torch_geometric_ext.loader import (
    BalancedSampler,
    DynamicSampler,
    GDeRSampler,
    InfoBatchSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

DATASETS = ['NCI1', 'PROTEINS', 'DHFR', 'AIDS', 'BACE', 'IMDB-BINARY']
SCENARIOS = [
    'normal',
    'imbalanced',
    'features 10 %',
    'features 30 %',
    'both',
    'labels 20 %',
]
WITHOUT_SAMPLER = ['full', 'full, class weights', 'half the epochs']
METHODS = [
    *WITHOUT_SAMPLER,
    'soft random',
    'balanced',
    'InfoBatch',
    'GDeR, paper',
    'GDeR',
]
# Not run by default: soft random with the loss of the prototypes.
OTHER_METHODS = ['soft random, prototypes']
BATCH_SIZE = 32
MAX_DEGREE = 63


class Graphs(NamedTuple):
    """The graphs of a data set in flat tensors, which collate quickly."""

    x: Tensor
    edge_index: Tensor
    node_ptr: Tensor
    edge_ptr: Tensor
    y: Tensor

    def batch(self, index: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return features, edges and the graph of each node."""
        node, batch, node_begin = _rows(self.node_ptr, index)
        edge, edge_batch, _ = _rows(self.edge_ptr, index)
        edge_index = self.edge_index[:, edge] + node_begin[edge_batch]
        return self.x[node], edge_index, batch


class Split(NamedTuple):
    """The training graphs with their labels, and the test graphs."""

    graphs: Graphs
    train: Tensor
    y: Tensor
    corrupted: Tensor  # A mask of training graphs.
    tests: Dict[str, Tensor]


class Net(torch.nn.Module):
    """A GIN with a sum over nodes and a linear classifier."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.gnn = GIN(in_channels, 64, num_layers=3, norm='batch_norm')
        self.head = torch.nn.Linear(64, num_classes)

    def forward(self, graphs: Graphs, index: Tensor) -> Tensor:
        x, edge_index, batch = graphs.batch(index)
        return global_add_pool(self.gnn(x, edge_index), batch, index.numel())


def _rows(ptr: Tensor, index: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    count = ptr.diff()[index]
    begin = count.cumsum(0) - count
    batch = torch.arange(index.numel()).repeat_interleave(count)
    row = torch.arange(batch.numel()) + (ptr[index] - begin)[batch]
    return row, batch, begin


def load(root: str, name: str) -> Graphs:
    """Load a data set with features as floating point numbers."""
    molecules = Path(root) / 'MoleculeNet'
    if (molecules / name.lower()).exists():
        dataset: Any = MoleculeNet(str(molecules), name)
    else:
        dataset = TUDataset(str(Path(root) / 'TUDataset'), name)
    data, slices = dataset._data, dataset.slices
    edge_ptr, y = slices['edge_index'], data.y.view(-1).long()
    if data.x is None:  # One-hot degrees.
        num_nodes = torch.tensor([graph.num_nodes for graph in dataset])
        node_ptr = F.pad(num_nodes.cumsum(0), (1, 0))
        graph = torch.arange(len(dataset)).repeat_interleave(edge_ptr.diff())
        source = data.edge_index[0] + node_ptr[graph]
        degrees = degree(source, int(node_ptr[-1]), dtype=torch.long)
        x = F.one_hot(degrees.clamp(max=MAX_DEGREE)).float()
    elif data.x.is_floating_point():
        node_ptr, x = slices['x'], data.x
    else:  # Categories of atoms.
        node_ptr = slices['x']
        columns = [
            F.one_hot(column.unique(return_inverse=True)[1])
            for column in data.x.t()
        ]
        columns = [column for column in columns if column.size(1) > 1]
        x = torch.cat(columns, dim=1).float()
    return Graphs(x, data.edge_index, node_ptr, edge_ptr, y)


def make_split(graphs: Graphs, scenario: str, seed: int) -> Split:
    """Split a data set and change its training graphs."""
    generator = torch.Generator().manual_seed(1000 + seed)
    size = graphs.y.numel()
    perm = torch.randperm(size, generator=generator)
    train, test = perm[: int(0.6 * size)], perm[int(0.7 * size) :]
    count = graphs.y.bincount()
    # Class one, unless it is clearly the larger one:
    minority = int(count[1] <= 1.1 * count[0])

    def subsample(index: Tensor) -> Tensor:
        rare = graphs.y[index] == minority
        others, few = index[~rare], index[rare]
        num_others = others.numel()
        out = torch.cat([others, few[: max(round(num_others / 9), 1)]])
        return out[torch.randperm(out.numel(), generator=generator)]

    if scenario in ['imbalanced', 'both']:
        train = subsample(train)
    tests = {'': test, '_imbalanced': subsample(test)}
    num_train = train.numel()
    fraction = {
        'features 10 %': 0.1,
        'features 30 %': 0.3,
        'both': 0.1,
        'labels 20 %': 0.2,
    }.get(scenario, 0.0)
    chosen = torch.randperm(num_train, generator=generator)
    corrupted = torch.zeros(num_train, dtype=torch.bool)
    corrupted[chosen[: round(fraction * num_train)]] = True
    y = graphs.y[train]
    if scenario == 'labels 20 %':
        y[corrupted] = 1 - y[corrupted]
    elif fraction > 0:
        x = graphs.x.clone()
        node = _rows(graphs.node_ptr, train[corrupted])[0]
        x[node] = torch.randn(node.numel(), x.size(1), generator=generator)
        graphs = graphs._replace(x=x)
    return Split(graphs, train, y, corrupted, tests)


def make_sampler(
    method: str,
    y: Tensor,
    prototypes: torch.nn.Module,
    keep_ratio: float,
    epochs: int,
    seed: int,
) -> Optional[DynamicSampler]:
    args: Any = (y.numel(), keep_ratio, epochs)
    if method.startswith('soft random'):
        return SoftRandomSampler(*args, seed=seed)
    if method == 'balanced':
        return BalancedSampler(*args, y=y, seed=seed)
    if method == 'InfoBatch':
        return InfoBatchSampler(*args, seed=seed)
    if method.startswith('GDeR'):
        return GDeRSampler(
            y.numel(),
            prototypes,
            keep_ratio,
            epochs,
            y=y,
            draw='paper' if method.endswith('paper') else 'trusted',
            seed=seed,
        )
    return None


def run(
    graphs: Graphs,
    scenario: str,
    method: str,
    keep_ratio: float,
    seed: int,
    epochs: int,
    lr: float,
) -> Dict[str, Any]:
    """Train and test a model."""
    start = time.perf_counter()
    split = make_split(graphs, scenario, seed)
    seed_everything(seed)
    if method == 'half the epochs':
        epochs //= 2
    model = Net(graphs.x.size(1), 2)
    prototypes = HypersphericalPrototypes(64, num_classes=2)
    parameters = list(model.parameters())
    if 'GDeR' in method or 'prototypes' in method:
        parameters += prototypes.parameters()
    size = split.y.numel()
    sampler = make_sampler(
        method, split.y, prototypes, keep_ratio, epochs, seed
    )
    weight = None
    if method == 'full, class weights':
        weight = size / (2 * split.y.bincount(minlength=2).float())
    optimizer = Adam(parameters, lr=lr)
    num_steps = epochs * -(-size // BATCH_SIZE)
    if sampler is not None:
        num_steps = sampler.total_steps(BATCH_SIZE)
    scheduler = CosineAnnealingLR(optimizer, num_steps)
    num_corrupted = num_drawn = 0
    for _ in range(epochs):
        order = torch.randperm(size)
        if sampler is not None:
            order = torch.tensor(list(sampler))
        num_drawn += order.numel()
        num_corrupted += int(split.corrupted[order].sum())
        for index in order.split(BATCH_SIZE):
            if index.numel() == 1:
                continue  # Batch normalization needs several graphs.
            optimizer.zero_grad()
            h = model(split.graphs, split.train[index])
            out, y = model.head(h), split.y[index]
            if isinstance(sampler, InfoBatchSampler):
                losses = F.cross_entropy(out, y, reduction='none')
                loss = sampler.update(losses, index)
            else:
                loss = F.cross_entropy(out, y, weight)
            if isinstance(sampler, GDeRSampler):
                loss = loss + sampler.update(h, y, index)
            elif 'prototypes' in method:
                loss = loss + prototypes(h, y)[0]
            loss.backward()
            optimizer.step()
            scheduler.step()
    result: Dict[str, Any] = dict(
        scenario=scenario,
        method=method,
        keep_ratio=1.0 if method in WITHOUT_SAMPLER else keep_ratio,
        seed=seed,
        corrupted_draws=num_corrupted / num_drawn,
    )
    for suffix, index in split.tests.items():
        for name, value in test(model, graphs, index).items():
            result[name + suffix] = value
    if isinstance(sampler, GDeRSampler) and method == 'GDeR':
        sampler.set_epoch(epochs)  # Counts the feedback of the last epoch.
        result.update(count_suspects(sampler, split.corrupted))
    return {**result, 'seconds': round(time.perf_counter() - start, 2)}


def count_suspects(
    sampler: GDeRSampler, corrupted: Tensor
) -> Dict[str, Optional[float]]:
    """Return precision and recall of the suspects, the fraction of distrusted
    graphs among the clean ones, and the first balanced epoch.
    """
    suspect = torch.zeros_like(corrupted)
    suspect[sampler.suspects()] = True
    num_true = int((suspect & corrupted).sum())
    num_clean = int((~corrupted).sum())
    balanced = [i for i, x in enumerate(sampler.history()['balance']) if x]
    return dict(
        precision=num_true / max(int(suspect.sum()), 1),
        recall=num_true / max(int(corrupted.sum()), 1),
        distrusted_clean=int((suspect & ~corrupted).sum()) / num_clean,
        balanced_from=balanced[0] if balanced else None,
    )


@torch.no_grad()
def test(model: Net, graphs: Graphs, index: Tensor) -> Dict[str, float]:
    """Return F1-macro, balanced accuracy and AUC in percent."""
    model.eval()
    out = torch.cat(
        [model.head(model(graphs, part)) for part in index.split(256)]
    )
    y, pred = graphs.y[index], out.argmax(dim=-1)
    values = dict(
        f1=f1_score(y, pred, average='macro'),
        balanced_accuracy=balanced_accuracy_score(y, pred),
        auc=roc_auc_score(y, out[:, 1] - out[:, 0]),
    )
    return {key: round(100 * float(x), 3) for key, x in values.items()}


class Job(NamedTuple):
    root: str
    dataset: str
    scenario: str
    method: str
    keep_ratio: float
    seed: int
    epochs: int
    lr: float


CACHE: Dict[str, Graphs] = {}


def work(job: Job) -> Dict[str, Any]:
    torch.set_num_threads(1)
    if job.dataset not in CACHE:
        CACHE[job.dataset] = load(job.root, job.dataset)
    result = run(CACHE[job.dataset], *job[2:])
    return {'dataset': job.dataset, **result}


def make_jobs(args: argparse.Namespace) -> List[Job]:
    """Return all runs that are missing, one seed after the other."""
    done = set()
    if args.output.exists():
        for line in args.output.read_text().splitlines():
            row = json.loads(line)
            if 'method' in row:
                keys = 'dataset', 'scenario', 'method', 'keep_ratio', 'seed'
                done.add(tuple(row[key] for key in keys))
    jobs = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for dataset in args.datasets:
            for scenario in args.scenarios:
                for method in args.methods:
                    full = method in WITHOUT_SAMPLER
                    for ratio in [1.0] if full else args.keep_ratios:
                        key = (dataset, scenario, method, ratio, seed)
                        if key not in done:
                            jobs.append(
                                Job(args.root, *key, args.epochs, args.lr)
                            )
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument('--output', type=Path, default='pruning.jsonl')
    parser.add_argument('--datasets', nargs='+', default=DATASETS)
    parser.add_argument('--scenarios', nargs='+', default=SCENARIOS)
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument(
        '--keep_ratios', nargs='+', type=float, default=[0.3, 0.5]
    )
    parser.add_argument('--first_seed', type=int, default=10)
    parser.add_argument('--seeds', type=int, default=4)
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--lr', type=float, default=0.005)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument(
        '--minutes', type=float, default=math.inf, help='stop after them'
    )
    args = parser.parse_args()

    jobs, start = make_jobs(args), time.monotonic()
    if not jobs:
        return
    for name in args.datasets:  # Processes data sets once.
        load(args.root, name)
    record.start(
        args.output,
        range(args.first_seed, args.first_seed + args.seeds),
        epochs=args.epochs,
        lr=args.lr,
        processes=args.processes,
    )
    context = multiprocessing.get_context('spawn')
    with context.Pool(args.processes) as pool:
        for i, row in enumerate(pool.imap(work, jobs), 1):
            record.write(**row)
            minutes = (time.monotonic() - start) / 60
            if i % 50 == 0:
                print(f'{i} of {len(jobs)} runs, {minutes:.1f} minutes')
            if minutes > args.minutes:
                pool.terminate()
                break


if __name__ == '__main__':
    main()
