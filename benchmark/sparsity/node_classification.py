"""Measure the accuracy and the cost of sparse training for GCNs.

Trains two-layer GCNs on the public split of Cora, CiteSeer and PubMed:

* dense,
* narrow: a dense GCN with as many weights as the sparse ones,
* static: a sparse GCN with a fixed random pattern,
* SET and RigL, which drop and grow weights every `--update_every` steps.

Prints the test accuracy at the best validation accuracy (mean and standard
deviation over seeds) and the multiply-adds of the whole training. The first
propagation depends on no weight and is cached. Then prints the milliseconds of
a training step, measured in one process and in turn, and the fraction of the
highest possible speed ("ceiling"), at which the product with the weights of
the first layer is free. Edges are given as edge indices and as a matrix in CSR
format.
"""

import argparse
import statistics
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.sparsity import SET, RigL, TopologyScheduler
from torch_geometric_ext.utils import count_macs

METHODS = ['dense', 'narrow', 'static', 'SET', 'RigL']


def load(root: str, name: str) -> Tuple[Data, Tensor]:
    transform = T.NormalizeFeatures()
    data = Planetoid(f'{root}/Planetoid', name, transform=transform)[0]
    csr = T.ToSparseTensor(layout=torch.sparse_csr)(data.clone())
    return data, csr.adj_t


def gcn(data: Data, hidden: int) -> GCN:
    num_classes = int(data.y.max()) + 1
    return GCN(
        data.num_features,
        hidden,
        num_layers=2,
        out_channels=num_classes,
        dropout=0.5,
        cached=True,
    )


class Training:
    """A model, its optimizer and its scheduler, if any."""

    def __init__(
        self,
        data: Data,
        method: str,
        density: float,
        seed: int,
        args: argparse.Namespace,
    ) -> None:
        torch.manual_seed(seed)
        hidden = args.hidden
        if method == 'narrow':  # The size is proportional to the width.
            hidden = max(round(density * hidden), 1)
        self.model = gcn(data, hidden)
        if method in ['static', 'SET', 'RigL']:
            sparsify(self.model, 1 - density, seed=seed)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=args.lr, weight_decay=5e-4
        )
        self.scheduler: Optional[TopologyScheduler] = None
        if method in ['SET', 'RigL']:
            self.scheduler = {'SET': SET, 'RigL': RigL}[method](
                self.model,
                self.optimizer,
                num_steps=args.epochs,
                update_every=args.update_every,
                drop_fraction=args.drop_fraction,
                seed=seed,
            )

    def __call__(self, data: Data, edges: Tensor) -> Tensor:
        if 'propagated' not in data:
            return self.model(data.x, edges)
        first, second = self.model.convs  # As `self.model` computes it.
        h = first.lin(data.propagated) + first.bias
        return second(self.model.dropout(self.model.act(h)), edges)

    def step(self, data: Data, edges: Tensor) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        out = self(data, edges)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    @torch.no_grad()
    def test(self, data: Data, edges: Tensor) -> List[float]:
        self.model.eval()
        correct = self(data, edges).argmax(dim=-1) == data.y
        masks = [data.val_mask, data.test_mask]
        return [100 * correct[mask].float().mean().item() for mask in masks]


def train(data: Data, edges: Tensor, training: Training, epochs: int) -> float:
    """Return the test accuracy at the first best validation accuracy."""
    best = [-1.0, 0.0]
    for _ in range(epochs):
        training.step(data, edges)
        accuracy = training.test(data, edges)
        if accuracy[0] > best[0]:
            best = accuracy
    return best[1]


def training_macs(
    data: Data, edges: Tensor, training: Training, args: argparse.Namespace
) -> int:
    out = args.epochs * count_macs(training.model, data.x, edges).training
    if isinstance(training.scheduler, RigL):  # Computes dense gradients.
        num_updates = int(0.75 * args.epochs - 1) // args.update_every
        for layer in training.model.modules():
            if isinstance(layer, SparseLinear):
                size = layer.in_channels * layer.out_channels
                out += num_updates * data.num_nodes * size
    return out


def accuracies(
    name: str, data: Data, edges: Tensor, args: argparse.Namespace
) -> None:
    print(
        f'\n{name}: test accuracy, {args.seeds} seeds (giga-MACs of all steps)'
    )
    data = data.clone()
    data.propagated = gcn_norm(edges)[0] @ data.x
    methods = [x for x in args.methods if x != 'dense']
    print(f'{"density":>8}' + ''.join(f'{x:>21}' for x in methods))
    rows = [(1.0, ['dense'])] if 'dense' in args.methods else []
    rows += [(density, methods) for density in args.densities]
    for density, row in rows:
        print(f'{density:8g}', end='')
        for method in row:
            accuracy, macs = [], 0
            for seed in range(args.seeds):
                training = Training(data, method, density, seed, args)
                accuracy.append(train(data, edges, training, args.epochs))
                macs = training_macs(data, edges, training, args)
            mean, std = statistics.mean(accuracy), statistics.pstdev(accuracy)
            cell = f'{mean:.1f} ± {std:.1f} ({macs / 1e9:,.0f})'
            print(f'{cell:>21}', end='', flush=True)
        print()


class Free(torch.nn.Module):
    """Return a constant in place of the product with the weights."""

    def __init__(self, data: Data, hidden: int) -> None:
        super().__init__()
        self.out = torch.randn(data.num_nodes, hidden).requires_grad_()

    def forward(self, x: Tensor) -> Tensor:
        return self.out


def timings(
    name: str, data: Data, csr: Tensor, args: argparse.Namespace
) -> None:
    threads = torch.get_num_threads()
    print(f'\n{name}: milliseconds of a step, {threads} thread(s)')
    print(f'{"":22}{"step":>8}{"to dense":>10}{"of ceiling":>12}', end='')
    print(f'{"(CSR) step":>14}{"to dense":>10}{"of ceiling":>12}')
    rows = [('dense', 1.0), ('ceiling', 1.0)]
    rows += [(x, d) for d in args.densities for x in ['static', 'RigL']]
    runs: Dict[Any, Tuple[Training, List[float]]] = {}
    for method, density in rows:
        for edges in ['indices', 'CSR']:
            training = Training(data, method, density, 0, args)
            if method == 'ceiling':
                training.model.convs[0].lin = Free(data, args.hidden)
            runs[method, density, edges] = training, []
    for _ in range(args.num_steps):
        for (_, _, edges), (training, seconds) in runs.items():
            graph = csr if edges == 'CSR' else data.edge_index
            seconds.append(measure(lambda: training.step(data, graph)))  # noqa: B023
    for method, density in rows:
        print(f'{method:10}{density:12g}', end='')
        for edges in ['indices', 'CSR']:
            own, dense, ceiling = (
                summary(runs[key][1], args.update_every)
                for key in [
                    (method, density, edges),
                    ('dense', 1.0, edges),
                    ('ceiling', 1.0, edges),
                ]
            )
            width = 8 if edges == 'indices' else 14
            print(f'{own:{width}.1f}{dense / own:9.2f}x', end='')
            print(f'{100 * ceiling / own:10.0f} %', end='')
        print()


def measure(func: Callable) -> float:
    start = time.perf_counter()
    func()
    return 1000 * (time.perf_counter() - start)


def summary(times: List[float], period: int) -> float:
    """Return the median over periods of the mean time of a step.

    A period has one update of the active weights. The first one is skipped.
    """
    chunks = [times[i : i + period] for i in range(0, len(times), period)]
    return statistics.median(statistics.mean(chunk) for chunk in chunks[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', required=True)
    parser.add_argument(
        '--datasets', nargs='+', default=['Cora', 'CiteSeer', 'PubMed']
    )
    parser.add_argument('--hidden', type=int, default=512)
    parser.add_argument(
        '--densities', type=float, nargs='+', default=[0.1, 0.05, 0.02, 0.01]
    )
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--lr', type=float, default=0.015)
    parser.add_argument('--update_every', type=int, default=5)
    parser.add_argument('--drop_fraction', type=float, default=0.5)
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--num_steps', type=int, default=60)
    parser.add_argument('--only', choices=['accuracy', 'timing'])
    args = parser.parse_args()
    print(f'hidden {args.hidden}, Adam with lr {args.lr}, {args.epochs} steps')
    for name in args.datasets:
        data, csr = load(args.root, name)
        if args.only != 'timing':
            torch.set_num_threads(args.threads[0])
            accuracies(name, data, csr, args)
        for threads in args.threads if args.only != 'accuracy' else []:
            torch.set_num_threads(threads)
            timings(name, data, csr, args)


if __name__ == '__main__':
    main()
