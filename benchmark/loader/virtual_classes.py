"""Measure the sizes of virtual classes, which graphs without labels belong to.

Trains a GIN with eight virtual classes, on a task or by the prototype loss
only. Without balance, the class of a graph is the one of its nearest
prototype. Prints the effective number of classes (the exponential of the
entropy of their sizes), and the sizes in the last epoch.
"""

import argparse
import os
from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch_geometric.data import Data
from torch_geometric.datasets import MoleculeNet, TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

from torch_geometric_ext.nn import HypersphericalPrototypes

NUM_CLASSES = 8
MOLECULES = ['ESOL', 'Lipo']  # Regression.


def load(root: str, name: str) -> List[Data]:
    if name not in MOLECULES:
        return list(TUDataset(os.path.join(root, 'TUDataset'), name))
    data_list = list(MoleculeNet(os.path.join(root, 'MoleculeNet'), name))
    x = torch.cat([data.x for data in data_list]).float()
    for data in data_list:  # Atomic numbers and the like:
        data.x = (data.x - x.mean(dim=0)) / (x.std(dim=0) + 1e-6)
    return data_list


def train(
    data_list: List[Data],
    regression: bool,
    with_task: bool,
    num_balance_steps: int,
    num_epochs: int,
    seed: int,
) -> Tensor:
    """Return the sizes of the virtual classes in the last epoch."""
    torch.manual_seed(seed)
    num_features = data_list[0].num_features
    model = GIN(num_features, 64, 3, 64, norm='batch_norm')
    num_targets = 1 if regression else 2
    head = torch.nn.Linear(64, num_targets)
    prototypes = HypersphericalPrototypes(
        64, NUM_CLASSES, num_balance_steps=num_balance_steps
    )
    modules = torch.nn.ModuleList([model, head, prototypes])
    optimizer = Adam(modules.parameters(), lr=1e-3)
    for _ in range(num_epochs):
        nearest = []
        for batch in DataLoader(data_list, 32, shuffle=True):
            optimizer.zero_grad()
            h = model(batch.x, batch.edge_index)
            h = global_add_pool(h, batch.batch, batch.num_graphs)
            loss, scores = prototypes(h)
            nearest.append(scores[:, 2].long())
            if with_task and regression:
                loss = loss + F.mse_loss(head(h).view(-1), batch.y.view(-1))
            elif with_task:
                loss = loss + F.cross_entropy(head(h), batch.y)
            loss.backward()
            optimizer.step()
    label = torch.cat(nearest) // prototypes.num_prototypes
    return label.bincount(minlength=NUM_CLASSES)


def effective_number(size: Tensor) -> float:
    fraction = size / size.sum()
    return float(torch.special.entr(fraction).sum().exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument(
        '--datasets', nargs='+', default=['ESOL', 'Lipo', 'PROTEINS', 'NCI1']
    )
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--seeds', type=int, default=2)
    args = parser.parse_args()

    print(
        f'{NUM_CLASSES} virtual classes, GIN 3x64, batch size 32, '
        f'{args.epochs} epochs, PyTorch {torch.__version__}'
    )
    print(f'{"":10}{"loss":18}{"steps":>6}{"effective":>11}   sizes in %')
    for name in args.datasets:
        data_list = load(args.root, name)
        for with_task in [True, False]:
            for steps in [0, 3]:
                sizes: List[Tuple[float, Tensor]] = []
                for seed in range(args.seeds):
                    size = train(
                        data_list,
                        name in MOLECULES,
                        with_task,
                        steps,
                        args.epochs,
                        seed,
                    )
                    sizes.append((effective_number(size), size))
                loss = 'task + prototypes' if with_task else 'prototypes'
                numbers = ' '.join(f'{x:.1f}' for x, _ in sizes)
                size = sizes[0][1].sort(descending=True).values
                percent = (100 * size / size.sum()).round().int().tolist()
                print(
                    f'{name:10}{loss:18}{steps:>6}{numbers:>11}   '
                    f'{" ".join(map(str, percent))}',
                    flush=True,
                )


if __name__ == '__main__':
    main()
