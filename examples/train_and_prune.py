"""Prune a GraphSAGE after training, or train it sparse, on handwritten digits.

Train-and-prune trains the dense model, prunes it (after reweighting, with ADMM
and SLR), and fine-tunes what remains. RigL trains a sparse model from the
first step: once for as many epochs as the dense model, and once for as many as
all phases of SLR.
"""

import argparse
import copy
import time
from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import sparsify
from torch_geometric_ext.sparsity import ADMM, SLR, MagnitudePruner, RigL
from torch_geometric_ext.utils import count_macs


class Trainer:
    """Train models on one graph, and add up the costs."""

    def __init__(self, data: Data, epochs: int, lr: float) -> None:
        self.data, self.epochs, self.lr = data, epochs, lr
        self.macs, self.seconds = 0, 0.0

    def fit(
        self,
        model: torch.nn.Module,
        make: Optional[Callable] = None,
        epochs: Optional[int] = None,
        lr: Optional[float] = None,
    ) -> Any:
        """Train a model, with the pruner or scheduler that `make` returns."""
        data, epochs = self.data, epochs or self.epochs
        optimizer = torch.optim.Adam(model.parameters(), lr=lr or self.lr)
        helper = make(model, optimizer) if make is not None else None
        model.train()
        start = time.perf_counter()
        for _ in range(epochs):
            optimizer.zero_grad()
            out = model(data.x, data.edge_index)[data.train_mask]
            loss = F.cross_entropy(out, data.y[data.train_mask])
            if isinstance(helper, (ADMM, SLR)):
                loss = helper.regularize(loss)
            loss.backward()
            optimizer.step()
            if helper is not None:
                helper.step()
        self.seconds += time.perf_counter() - start
        macs = count_macs(model, data.x, data.edge_index)
        self.macs += epochs * macs.training
        return helper

    @torch.no_grad()
    def test(self, model: torch.nn.Module) -> float:
        model.eval()
        pred = model(self.data.x, self.data.edge_index).argmax(dim=-1)
        correct = (pred == self.data.y)[self.data.test_mask]
        return 100 * float(correct.float().mean())

    def costs(self) -> Tuple[int, float]:
        """Return the MACs and seconds since the last call."""
        out = self.macs, self.seconds
        self.macs, self.seconds = 0, 0.0
        return out


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
        '--epochs', type=int, default=30, help='epochs of each phase'
    )
    parser.add_argument(
        '--lr', type=float, default=0.005, help='learning rate'
    )
    parser.add_argument(
        '--sparsity', type=float, default=0.98, help='weights to prune'
    )
    args = parser.parse_args()

    data = DigitsKNN(args.root)[0]
    seed_everything(0)
    size = data.num_features, args.hidden_channels, 3, int(data.y.max()) + 1
    initial = GraphSAGE(*size, dropout=0.5)
    trainer = Trainer(data, args.epochs, args.lr)

    def report(name: str, model: torch.nn.Module, *before: float) -> None:
        costs = [x + y for x, y in zip(trainer.costs(), before or (0, 0))]
        num_weights = sum(x.numel() for x in model.parameters())
        print(
            f'{name:12}{trainer.test(model):>14.1f}{num_weights:>12,}'
            f'{costs[0] / 1e9:>10.1f}{costs[1]:>10.1f}'
        )

    print(
        f'{"method":12}{"accuracy [%]":>14}{"parameters":>12}{"GMACs":>10}'
        f'{"time [s]":>10}'
    )
    dense = copy.deepcopy(initial)
    trainer.fit(dense)
    before = trainer.macs, trainer.seconds
    report('dense', dense)

    model = MagnitudePruner(copy.deepcopy(dense), None, args.sparsity)
    pruned = model.finalize()
    trainer.fit(pruned)
    report('magnitude', pruned, *before)

    for Pruner in [ADMM, SLR]:
        pruner = trainer.fit(
            copy.deepcopy(dense),
            lambda *x: Pruner(*x, args.sparsity),  # noqa: B023
            lr=args.lr / 4,
        )
        pruned = pruner.finalize()
        trainer.fit(pruned)
        report(Pruner.__name__, pruned, *before)

    for name, epochs in [('RigL', args.epochs), ('RigL 3x', 3 * args.epochs)]:
        sparse = sparsify(copy.deepcopy(initial), args.sparsity)
        trainer.fit(
            sparse,
            lambda *x: RigL(*x, num_steps=epochs, update_every=5),  # noqa: B023
            epochs,
        )
        report(name, sparse)


if __name__ == '__main__':
    main()
