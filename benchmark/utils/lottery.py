"""What tickets reach, and what it costs to find them.

Two-layer networks classify the nodes of Cora, CiteSeer and PubMed (public
split), with a share of their weights and of the edges:

* dense: the network on the whole graph, 200 epochs,
* narrow: a dense network with as many weights, the rival of pruned weights,
* random, one_shot, imp, fast: the methods of `GraphLotteryPruner`.

A `+` marks training against the predictions of the dense network as well
(`distill=0.8`), which `fast` always does: its rivals are shown with it and
without.

Printed are the test accuracy at the best validation accuracy (mean and
standard deviation over seeds), the multiply-adds saved in the forward pass,
the CPU seconds it took, training of the dense network included, and how many
times that is of `fast`. `--epochs` prints what an epoch of each step costs,
and what IMP would take in a plain loop with masks on dense weights: the
measured time of an epoch times the number of its epochs.
"""

import argparse
import copy
import statistics
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GAT, GCN, GINConv

from torch_geometric_ext.utils import GraphLotteryPruner, count_macs

EPOCHS = 200
DISTILL = 0.8
METHODS = ['narrow', 'narrow+', 'random', 'random+', 'one_shot', 'one_shot+']


class GIN(Module):
    """Sums of neighbors, with one linear layer each: with more, or with
    batch normalization, networks do not train on so few labels.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int):
        super().__init__()
        self.conv1 = GINConv(Linear(in_channels, hidden))
        self.conv2 = GINConv(Linear(hidden, out_channels))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.conv1(x, edge_index).relu()
        return self.conv2(F.dropout(h, 0.5, self.training), edge_index)


def network(name: str, data: Data, share: float = 1.0) -> Module:
    """A network with a share of its channels."""
    size = (data.num_features, int(data.y.max()) + 1)
    if name == 'GIN':
        return GIN(size[0], max(round(share * 512), 1), size[1])
    if name == 'GAT':
        heads = 8 if share == 1 else 1
        hidden = 64 if share == 1 else max(round(share * 64), 1)
        return GAT(size[0], hidden, 2, size[1], heads=heads, dropout=0.5)
    hidden = max(round(share * 512), 1)
    return GCN(size[0], hidden, 2, size[1], dropout=0.5)


class Result(NamedTuple):
    """Of one run."""

    test: float
    macs: int
    seconds: float


def accuracy(model: Module, data: Data, mask: Tensor) -> float:
    with torch.no_grad():
        out = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((out == data.y)[mask].float().mean())


def train(
    model: Module, data: Data, teacher: Optional[Module] = None
) -> Tuple[Module, Result]:
    """A plain training loop, and the model at its best validation."""
    start = time.process_time()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.01, weight_decay=5e-4
    )
    best, out = -1.0, model
    if teacher is not None:
        with torch.no_grad():
            targets = teacher.eval()(data.x, data.edge_index).softmax(dim=-1)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        optimizer.zero_grad()
        h = model(data.x, data.edge_index)
        loss = F.cross_entropy(h[data.train_mask], data.y[data.train_mask])
        if teacher is not None:
            loss = (1 - DISTILL) * loss + DISTILL * F.cross_entropy(h, targets)
        loss.backward()
        optimizer.step()
        if epoch % 2 == 0:
            valid = accuracy(model, data, data.val_mask)
            if valid > best:
                best, out = valid, copy.deepcopy(model)
    seconds = time.process_time() - start
    macs = count_macs(out.eval(), data.x, data.edge_index).forward
    return out, Result(accuracy(out, data, data.test_mask), macs, seconds)


def prune(
    model: Module,
    data: Data,
    method: str,
    weights: float,
    edges: float,
    seed: int,
) -> Result:
    start = time.process_time()
    pruner = GraphLotteryPruner(
        model,
        weight_sparsity=weights,
        edge_sparsity=edges,
        method=method.rstrip('+'),
        edge_score='learned' if method == 'imp' else 'degree',
        distill=DISTILL if method.endswith('+') or method == 'fast' else 0.0,
        seed=seed,
    )
    ticket = pruner.fit(data)
    seconds = time.process_time() - start
    small, graph = ticket.apply(model, data)
    test = accuracy(small, graph, graph.test_mask)
    return Result(test, ticket.macs[1], seconds)


def row(
    head: str, method: str, results: List[Result], macs: int, fast: float
) -> None:
    tests = [x.test for x in results]
    error = statistics.stdev(tests) if len(tests) > 1 else 0.0
    seconds = statistics.mean(x.seconds for x in results)
    saved = 1 - statistics.mean(x.macs for x in results) / macs
    print(
        f'{head}{method:<11}{statistics.mean(tests):>6.1f} ± {error:.1f}'
        f'{saved:>9.1%}{seconds:>9.1f}{seconds / fast:>8.2f}x'
        f'{len(tests):>6}',
        flush=True,
    )


def table(name: str, kind: str, args: argparse.Namespace) -> None:
    data = Planetoid(args.root, name, transform=T.NormalizeFeatures())[0]
    models: Dict[int, Module] = {}
    dense: Dict[int, Tuple[Module, Result]] = {}
    for seed in args.seeds:
        torch.manual_seed(seed)
        models[seed] = network(kind, data)
        torch.manual_seed(seed)
        dense[seed] = train(copy.deepcopy(models[seed]), data)
    macs = dense[args.seeds[0]][1].macs
    head = f'{name:<10}{kind:<6}'
    results = [x for _, x in dense.values()]
    mean = statistics.mean(x.seconds for x in results)
    row(f'{head}{"-":>8}{"-":>8}  ', 'dense', results, macs, mean)
    for weights, edges in args.grid:
        cells = f'{head}{weights:>8.1%}{edges:>8.1%}  '
        fast = 1.0
        for method in ['fast', *args.methods]:
            seeds = args.seeds
            if method == 'imp':
                seeds = seeds[: args.imp_seeds]
            results = []
            for seed in seeds:
                if method.startswith('narrow'):
                    if weights == 0 or edges > 0:
                        continue
                    torch.manual_seed(seed)
                    narrow = network(kind, data, 1 - weights)
                    teacher = dense[seed][0] if method[-1] == '+' else None
                    results.append(train(narrow, data, teacher)[1])
                    continue
                results.append(
                    prune(models[seed], data, method, weights, edges, seed)
                )
            if method == 'fast':
                fast = statistics.mean(x.seconds for x in results)
            if results:
                row(cells, method, results, macs, fast)


def pair(text: str) -> Tuple[float, float]:
    weights, edges = text.split(',')
    return float(weights), float(edges)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', default='/tmp/pyg')
    parser.add_argument('--datasets', nargs='+', default=['Cora'])
    parser.add_argument('--models', nargs='+', default=['GCN'])
    parser.add_argument(
        '--grid',
        nargs='+',
        type=pair,
        default=[(0.95, 0), (0.98, 0), (0.99, 0), (0, 0.2), (0, 0.35)],
        help='weight and edge sparsities, such as 0.98,0.35',
    )
    parser.add_argument('--methods', nargs='*', default=METHODS)
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[10, 11, 12, 13, 14]
    )
    parser.add_argument('--imp_seeds', type=int, default=1)
    args = parser.parse_args()
    print(
        f'{"set":<10}{"model":<6}{"weights":>8}{"edges":>8}  {"method":<11}'
        f'{"test":>6}{"":6}{"saved":>9}{"seconds":>9}{"ratio":>9}{"runs":>6}'
    )
    for name in args.datasets:
        for kind in args.models:
            table(name, kind, args)


if __name__ == '__main__':
    main()
