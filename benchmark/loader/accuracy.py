"""Compare the test accuracy of dynamic data pruning with strong baselines.

Trains a GIN on TU data sets over random 80/10/10 splits. All methods share
splits and initial weights. Reports accuracy and macro-averaged F1 on the test
split at the epoch with the best validation F1, and the paired difference of F1
to full data. `--minority_share` removes graphs of class 1 from the training
split until they make up that fraction of it.
"""

import argparse
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor
from torch.optim import Adam
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Dataset
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import (
    DynamicSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

METHODS = ['full', 'half', 'soft', 'gder', 'gder-raw']


def run(
    dataset: Dataset,
    method: str,
    keep_ratio: float,
    seed: int,
    args: argparse.Namespace,
) -> Tuple[float, float]:
    seed_everything(seed)
    train, val, test = split(dataset.y, args.minority_share)
    model = torch.nn.ModuleDict(
        dict(
            gnn=GIN(dataset.num_features, 64, 4, norm='batch_norm'),
            head=torch.nn.Linear(64, dataset.num_classes),
        )
    )
    parameters = list(model.parameters())
    epochs = args.epochs // 2 if method == 'half' else args.epochs

    train_dataset = dataset[train]
    sampler: Optional[DynamicSampler] = None
    if method == 'soft':
        sampler = SoftRandomSampler(
            train_dataset, keep_ratio, epochs, seed=seed
        )
    elif method.startswith('gder'):
        train_dataset = IndexedDataset(train_dataset)
        prototypes = HypersphericalPrototypes(
            64,
            dataset.num_classes,
            temperature=args.temperature,
            compactness_weight=args.compactness_weight,
            separation_weight=args.separation_weight,
        )
        parameters += prototypes.parameters()
        sampler = GDeRSampler(
            train_dataset,
            prototypes,
            keep_ratio,
            epochs,
            standardize=method == 'gder',
            seed=seed,
        )
    loader = DataLoader(
        train_dataset, 32, shuffle=sampler is None, sampler=sampler
    )
    val_batch = next(iter(DataLoader(dataset[val], len(val))))
    test_batch = next(iter(DataLoader(dataset[test], len(test))))

    optimizer = Adam(parameters, lr=args.lr)
    best = ((-1.0, -1.0), (-1.0, -1.0))
    for _ in range(epochs):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            h = embed(model, batch)
            loss = F.cross_entropy(model['head'](h), batch.y)
            if isinstance(sampler, GDeRSampler):
                loss = loss + sampler.update(h, batch.y, batch.graph_idx)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            best = max(
                best,
                (metrics(model, val_batch), metrics(model, test_batch)),
                key=lambda pair: pair[0][1],
            )
    return best[1]


def embed(model: torch.nn.ModuleDict, batch: Batch) -> Tensor:
    h = model['gnn'](batch.x, batch.edge_index)
    return global_add_pool(h, batch.batch, batch.num_graphs)


def split(y: Tensor, minority_share: Optional[float]) -> Tuple[Tensor, ...]:
    perm = torch.randperm(y.numel())
    size = y.numel() // 10
    val, test, train = perm[:size], perm[size : 2 * size], perm[2 * size :]
    if minority_share is not None:
        minority, rest = train[y[train] == 1], train[y[train] != 1]
        count = round(rest.numel() * minority_share / (1 - minority_share))
        train = torch.cat([rest, minority[: max(count, 1)]])
    return train, val, test


def metrics(model: torch.nn.ModuleDict, batch: Batch) -> Tuple[float, float]:
    """Return accuracy and macro-averaged F1 in percent."""
    pred = model['head'](embed(model, batch)).argmax(dim=-1)
    accuracy = float((pred == batch.y).float().mean())
    return 100 * accuracy, 100 * f1_score(batch.y, pred, average='macro')


def summary(values: Sequence[float]) -> str:
    x = torch.tensor(values, dtype=torch.double)
    return f'{x.mean():.1f} ± {x.std() / len(x) ** 0.5:.1f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument('--datasets', nargs='+', default=['MUTAG', 'DHFR'])
    parser.add_argument(
        '--keep_ratios', nargs='+', type=float, default=[0.3, 0.5]
    )
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument('--seeds', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--lr', type=float, default=0.001)
    parser.add_argument('--minority_share', type=float)
    parser.add_argument('--temperature', type=float, default=0.1)
    parser.add_argument('--compactness_weight', type=float, default=0.1)
    parser.add_argument('--separation_weight', type=float, default=0.1)
    args = parser.parse_args()

    print(
        f'GIN 4x64, {args.epochs} epochs, {args.seeds} random splits, '
        f'PyTorch {torch.__version__}'
    )
    print(
        f'{"data set":12}{"method":16}{"accuracy":>14}{"F1-macro":>14}'
        f'{"Δ F1 to full":>14}'
    )
    for name in args.datasets:
        dataset = TUDataset(args.root, name)
        full: Sequence[float] = []
        for method in args.methods:
            ratios = [1.0] if method in ['full', 'half'] else args.keep_ratios
            for ratio in ratios:
                accuracies, scores = zip(
                    *(
                        run(dataset, method, ratio, seed, args)
                        for seed in range(args.seeds)
                    )
                )
                full = full or scores
                label = method if ratio == 1 else f'{method} {ratio:.0%}'
                delta = summary([a - b for a, b in zip(scores, full)])
                print(
                    f'{name:12}{label:16}{summary(accuracies):>14}'
                    f'{summary(scores):>14}'
                    f'{delta if method != "full" else "":>14}',
                    flush=True,
                )


if __name__ == '__main__':
    main()
