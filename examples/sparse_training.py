"""Train a dense and two sparse GraphSAGE models on handwritten digits.

Two lines make an existing model sparse: `sparsify` replaces its linear layers
with sparse ones, and `RigL` drops and grows their weights during training. The
rest of the training loop does not change. The models take turns, so that other
work of the machine slows down all of them.
"""

import argparse
import statistics
import time
from typing import List, Optional

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import densify, sparsify
from torch_geometric_ext.sparsity import RigL
from torch_geometric_ext.utils import count_macs


class Run:
    """The training of a model of a given sparsity."""

    def __init__(
        self, sparsity: float, data: Data, args: argparse.Namespace
    ) -> None:
        seed_everything(0)
        self.sparsity, self.data = sparsity, data
        self.model: torch.nn.Module = GraphSAGE(
            data.num_features,
            args.hidden_channels,
            num_layers=3,
            out_channels=int(data.y.max()) + 1,
            dropout=0.5,
        )
        if sparsity > 0:
            sparsify(self.model, sparsity)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr)
        self.optimizer = optimizer
        self.scheduler: Optional[RigL] = None
        if sparsity > 0:
            self.scheduler = RigL(
                self.model, optimizer, num_steps=args.epochs, update_every=5
            )
        self.macs = count_macs(
            self.model, data.x, data.edge_index, optimizer=optimizer
        )
        self.seconds: List[float] = []

    def train(self) -> None:
        data, start = self.data, time.perf_counter()
        self.model.train()
        self.optimizer.zero_grad()
        out = self.model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def test(self) -> float:
        data = self.data
        pred = self.model.eval()(data.x, data.edge_index).argmax(dim=-1)
        correct = (pred == data.y)[data.test_mask]
        return 100 * float(correct.float().mean())


def print_row(run: Run, dense: Run) -> None:
    accuracy, explored = run.test(), ''
    if run.scheduler is not None:
        explored = f'{run.scheduler.explored:.0%}'
        densify(run.model)  # A plain PyG model for deployment.
        assert abs(run.test() - accuracy) < 0.2
    seconds, reference = map(statistics.median, [run.seconds, dense.seconds])
    print(
        f'{f"{run.sparsity:.0%}":>8}{run.macs.num_parameters:>12,}'
        f'{explored:>10}{run.macs.training / 1e9:>10.2f}'
        f'{1000 * seconds:>10.1f}{reference / seconds:>9.1f}x'
        f'{accuracy:>14.1f}'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--root', default='.data/DigitsKNN', help='folder of the data set'
    )
    parser.add_argument(
        '--hidden_channels', type=int, default=512, help='width of the model'
    )
    parser.add_argument(
        '--epochs', type=int, default=100, help='steps of each model'
    )
    parser.add_argument(
        '--lr', type=float, default=0.005, help='learning rate'
    )
    parser.add_argument(
        '--sparsities',
        type=float,
        nargs='+',
        default=[0.9, 0.95],
        help='fractions of inactive weights to compare with the dense model',
    )
    args = parser.parse_args()

    data = DigitsKNN(args.root)[0]
    runs = [Run(sparsity, data, args) for sparsity in [0, *args.sparsities]]
    for _ in range(args.epochs):
        for run in runs:
            run.train()
    print(
        f'{"sparsity":>8}{"parameters":>12}{"explored":>10}{"GMACs":>10}'
        f'{"ms/step":>10}{"speed-up":>10}{"accuracy [%]":>14}'
    )
    for run in runs:
        print_row(run, runs[0])


if __name__ == '__main__':
    main()
