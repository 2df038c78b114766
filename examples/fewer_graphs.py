"""Train a GIN on fewer molecules in each epoch.

Compares training on all molecules with a new random half in each epoch
(`SoftRandomSampler`) and with the half that `GDeRSampler` draws. The task is
the class of solubility of a data set with few molecules of the third class
(macro F1-score), or a regression of the solubility (mean absolute error in
log10 mol/l), for which graphs have no labels and belong to virtual classes.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool
from torch_geometric.utils.smiles import x_map

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import (
    DynamicSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

SIZES = torch.tensor([len(values) for values in x_map.values()])


class Net(torch.nn.Module):
    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.register_buffer('offset', SIZES.cumsum(0) - SIZES)
        self.atom = torch.nn.EmbeddingBag(int(SIZES.sum()), 64, mode='sum')
        self.gnn = GIN(64, 64, num_layers=3, norm='batch_norm')
        self.head = torch.nn.Linear(64, out_channels)

    def forward(self, batch: Data) -> Tensor:
        x = self.atom(batch.x + self.offset)
        h = self.gnn(x, batch.edge_index)
        return global_add_pool(h, batch.batch, batch.num_graphs)


def train(
    method: str, dataset: IndexedDataset, args: argparse.Namespace, seed: int
) -> Tuple[Net, int, float]:
    """Return the trained model, the number of graphs it was trained on and the
    seconds of the training.
    """
    seed_everything(seed)
    regression = args.task == 'regression'
    model = Net(1 if regression else 3)
    prototypes = HypersphericalPrototypes(64, num_classes=3)
    sampler: Optional[DynamicSampler] = None
    if method == 'soft random':
        sampler = SoftRandomSampler(dataset, args.keep_ratio, args.epochs)
    elif method == 'GDeR':
        sampler = GDeRSampler(
            dataset, prototypes, args.keep_ratio, args.epochs, seed=seed
        )
    loader = DataLoader(
        dataset, batch_size=32, shuffle=sampler is None, sampler=sampler
    )
    optimizer = torch.optim.Adam(
        [*model.parameters(), *prototypes.parameters()], lr=args.lr
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * len(loader)
    )
    num_graphs, start = 0, time.perf_counter()
    for _ in range(args.epochs):
        for batch in loader:
            optimizer.zero_grad()
            h = model(batch)
            out = model.head(h)
            if regression:
                loss = F.l1_loss(out.view(-1), batch.log_s)
            else:
                loss = F.cross_entropy(out, batch.y)
            if isinstance(sampler, GDeRSampler):
                y = None if regression else batch.y
                loss = loss + sampler.update(h, y, batch.graph_idx)
            loss.backward()
            optimizer.step()
            scheduler.step()
            num_graphs += batch.num_graphs
    return model.eval(), num_graphs, time.perf_counter() - start


@torch.no_grad()
def test(model: Net, batch: Data, task: str) -> float:
    out = model.head(model(batch))
    if task == 'regression':
        return float((out.view(-1) - batch.log_s).abs().mean())
    pred = out.argmax(dim=-1)
    return 100 * f1_score(batch.y, pred, average='macro')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--root', default='.data/Solubility', help='folder of the data set'
    )
    parser.add_argument(
        '--task',
        choices=['classes', 'regression'],
        default='classes',
        help='what to predict',
    )
    parser.add_argument(
        '--keep_ratio',
        type=float,
        default=0.5,
        help='fraction of graphs in each epoch',
    )
    parser.add_argument(
        '--epochs', type=int, default=30, help='epochs of each training'
    )
    parser.add_argument(
        '--seeds', type=int, default=3, help='trainings of each method'
    )
    parser.add_argument(
        '--lr', type=float, default=0.005, help='learning rate'
    )
    args = parser.parse_args()

    molecules = Solubility(str(Path(args.root)), 'train')
    if args.task == 'classes':  # Only 20 molecules of the third class remain.
        rare = (molecules.y == 2).nonzero().view(-1)
        others = (molecules.y != 2).nonzero().view(-1)
        molecules = molecules[torch.cat([others, rare[::8][:20]])]
    dataset = IndexedDataset(molecules)
    test_dataset = Solubility(str(Path(args.root)), 'test')
    batch = next(iter(DataLoader(test_dataset, len(test_dataset))))

    rows: Dict[str, List[Tuple[float, ...]]] = defaultdict(list)
    for seed in range(args.seeds):
        for method in ['all graphs', 'soft random', 'GDeR']:
            model, *costs = train(method, dataset, args, seed)
            rows[method].append((*costs, test(model, batch, args.task)))
    metric = 'F1 [%]' if args.task == 'classes' else 'MAE'
    print(f'{"method":14}{"graphs":>10}{"time [s]":>10}{metric:>10}')
    for method, values in rows.items():
        num_graphs, seconds, mean = map(statistics.mean, zip(*values))
        print(f'{method:14}{num_graphs:>10,.0f}{seconds:>10.1f}{mean:>10.2f}')


if __name__ == '__main__':
    main()
