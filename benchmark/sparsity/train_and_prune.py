"""Compare train-and-prune with sparse training for GCNs.

Trains two-layer GCNs on Cora, CiteSeer and PubMed (public split) and on
Coauthor Physics (20 training and 30 validation nodes per class):

* dense,
* narrow: a dense GCN with as many weights as the sparse ones,
* magnitude: dense training, pruning by magnitude, fine-tuning,
* ADMM and SLR: dense training, reweighting, pruning, fine-tuning,
* SET and RigL: sparse training for as many epochs as one of these phases,
* RigL 3x: sparse training for as many epochs as all phases of SLR.

All methods run through `accelerate`, with the same cached first aggregation,
and share the dense training of a seed. The first layer skips zeros of the
features where that pays.

Appends a JSON line for each run to `--out`: the test accuracy at the best
validation accuracy of the last phase, the multiply-adds of all training steps
on dense features (including the dense phase and dense gradients of RigL), the
CPU seconds of all training steps, and the bytes of weights, gradients,
optimizer and pruner at their peak. `train_and_prune_report.py` makes the
tables and the figures.
"""

import argparse
import copy
import time
from functools import partial
from typing import Any, Callable, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.datasets import Coauthor, Planetoid
from torch_geometric.nn import GCN

from benchmark import record
from torch_geometric_ext.full_batch import StaticGraph, accelerate
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.sparsity import (
    ADMM,
    SET,
    SLR,
    LagrangianPruner,
    MagnitudePruner,
    RigL,
)
from torch_geometric_ext.utils import count_macs

PRUNERS = {'magnitude': MagnitudePruner, 'ADMM': ADMM, 'SLR': SLR}
SCHEDULERS = {'SET': SET, 'RigL': RigL, 'RigL 3x': RigL}
METHODS = ['narrow', *PRUNERS, *SCHEDULERS]


class Cost(NamedTuple):
    macs: int = 0
    seconds: float = 0.0
    num_bytes: int = 0

    def __add__(self, other: 'Cost') -> 'Cost':  # type: ignore
        return Cost(
            self.macs + other.macs,
            self.seconds + other.seconds,
            max(self.num_bytes, other.num_bytes),
        )


class Result(NamedTuple):
    model: Module
    accuracy: float
    cost: Cost


class Study:
    """One data set and one seed."""

    def __init__(self, name: str, seed: int, args: argparse.Namespace) -> None:
        self.args = args
        self.seed = seed
        self.data = load(args.root, name, seed)
        self.graph = StaticGraph(self.data)
        torch.manual_seed(seed)
        self.initial = self.gcn(args.hidden)
        self.dense = self.fit(copy.deepcopy(self.initial), args.epochs)

    def gcn(self, hidden: int) -> GCN:
        size = self.data.num_features, hidden, 2, int(self.data.y.max()) + 1
        return GCN(*size, dropout=0.5)

    def run(self, method: str, sparsity: float) -> Result:
        torch.manual_seed(self.seed)
        args = self.args
        if method == 'narrow':  # The size is proportional to the width.
            hidden = max(round((1 - sparsity) * args.hidden), 1)
            return self.fit(self.gcn(hidden), args.epochs)
        if method in SCHEDULERS:
            model = sparsify(
                copy.deepcopy(self.initial),
                sparsity,
                seed=self.seed,
                min_fan_in=args.min_fan_in,
            )
            epochs = args.epochs * (3 if method == 'RigL 3x' else 1)
            make = partial(
                SCHEDULERS[method],
                num_steps=epochs,
                update_every=args.update_every,
                drop_fraction=args.drop_fraction,
                seed=self.seed,
            )
            return self.fit(model, epochs, make)
        make = partial(
            PRUNERS[method],
            sparsity=sparsity,
            distribution=args.distribution,
            min_fan_in=args.min_fan_in,
        )
        if method != 'magnitude':
            make = partial(make, rho=args.rho)
        if method == 'SLR' and args.step_size is not None:
            make = partial(make, step_size=args.step_size)
        model, cost = copy.deepcopy(self.dense.model), self.dense.cost
        if method == 'magnitude':
            model = make(model).finalize()
        else:
            pruned = self.fit(model, args.epochs, make, args.lr / 4)
            model, cost = pruned.model, cost + pruned.cost
        out = self.fit(model, args.epochs)
        return out._replace(cost=cost + out.cost)

    def fit(
        self,
        model: Module,
        epochs: int,
        make: Optional[Callable] = None,
        lr: Optional[float] = None,
    ) -> Result:
        """Train a model, with a scheduler or a pruner, and return the test
        accuracy at the first best validation accuracy.
        """
        args, y = self.args, self.data.y
        fast = accelerate(model, self.graph, verify=False)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=lr or args.lr, weight_decay=5e-4
        )
        helper = make(model, optimizer) if make else None
        pruner = helper if isinstance(helper, LagrangianPruner) else None
        best, accuracy, seconds, state = -1.0, 0.0, 0.0, None
        for _ in range(epochs):
            start = time.process_time()
            fast.train()
            optimizer.zero_grad()
            out = fast(self.data.train_mask)
            loss = F.cross_entropy(out, y[self.data.train_mask])
            if pruner is not None:
                loss = pruner.regularize(loss)
            loss.backward()
            optimizer.step()
            if helper is not None:
                helper.step()
            seconds += time.process_time() - start
            if pruner is not None:
                continue
            validated = self.test(fast, self.data.val_mask)
            if validated > best:
                best, state = validated, copy.deepcopy(model.state_dict())
        if state is not None:
            last = copy.deepcopy(model.state_dict())
            model.load_state_dict(state)
            accuracy = self.test(fast, self.data.test_mask)
            model.load_state_dict(last)
        macs, num_bytes = self.costs(model, optimizer, epochs, helper)
        if pruner is not None:
            model = pruner.finalize()
        return Result(model, accuracy, Cost(macs, seconds, num_bytes))

    @torch.no_grad()
    def test(self, fast: Module, mask: Tensor) -> float:
        fast.eval()
        correct = fast(mask).argmax(dim=-1) == self.data.y[mask]
        return 100 * correct.float().mean().item()

    def costs(
        self, model: Module, optimizer: Any, epochs: int, helper: Any
    ) -> List[int]:
        data = self.data
        count = count_macs(model, data.x, data.edge_index, optimizer=optimizer)
        macs = epochs * count.training
        if isinstance(helper, RigL):  # Computes dense gradients.
            num_updates = int(0.75 * epochs - 1) // helper.update_every
            for layer in model.modules():
                if isinstance(layer, SparseLinear):
                    size = layer.in_channels * layer.out_channels
                    macs += num_updates * data.num_nodes * size
        num_bytes = 2 * count.parameter_bytes + count.optimizer_bytes
        num_bytes += count.index_bytes
        if isinstance(helper, LagrangianPruner):
            copies = 4 if isinstance(helper, SLR) else 3
            size = sum(x.weight.numel() for x in helper.layers.values())
            num_bytes += 4 * copies * size
        return [macs, num_bytes]


def load(root: str, name: str, seed: int) -> Data:
    if name != 'Physics':
        return Planetoid(
            f'{root}/Planetoid', name, transform=T.NormalizeFeatures()
        )[0]
    data = Coauthor(f'{root}/Coauthor', name, transform=T.NormalizeFeatures())[
        0
    ]
    torch.manual_seed(seed)
    num_classes = int(data.y.max()) + 1
    return T.RandomNodeSplit(
        'test_rest', num_train_per_class=20, num_val=30 * num_classes
    )(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', required=True)
    record.add_argument(parser)
    parser.add_argument(
        '--datasets',
        nargs='+',
        default=['Cora', 'CiteSeer', 'PubMed', 'Physics'],
    )
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument(
        '--sparsities',
        type=float,
        nargs='+',
        default=[0.8, 0.9, 0.95, 0.98, 0.99, 0.995],
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--hidden', type=int, default=512)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--lr', type=float, default=0.015)
    parser.add_argument('--min_fan_in', type=int, default=16)
    parser.add_argument('--distribution', default='erk')
    parser.add_argument('--update_every', type=int, default=5)
    parser.add_argument('--drop_fraction', type=float, default=0.5)
    parser.add_argument('--rho', type=float, default=1e-2)
    parser.add_argument('--step_size', type=float, help='of SLR')
    args = parser.parse_args()

    record.start(args.output, args.seeds, settings=tag(args))
    for name in args.datasets:
        for seed in args.seeds:
            study = Study(name, seed, args)
            write(name, seed, 0.0, 'dense', study.dense)
            for sparsity in args.sparsities:
                for method in args.methods:
                    result = study.run(method, sparsity)
                    write(name, seed, sparsity, method, result)


def write(
    dataset: str, seed: int, sparsity: float, method: str, result: Result
) -> None:
    """Record and print a result."""
    row = dict(
        dataset=dataset,
        method=method,
        sparsity=sparsity,
        seed=seed,
        accuracy=round(result.accuracy, 2),
        **result.cost._asdict(),
    )
    record.write(**row)
    print(', '.join(f'{key}: {value}' for key, value in row.items()))


def tag(args: argparse.Namespace) -> str:
    options = ['distribution', 'min_fan_in', 'update_every', 'drop_fraction']
    options += ['rho', 'step_size']
    return ', '.join(f'{key}={getattr(args, key)}' for key in options)


if __name__ == '__main__':
    main()
