"""Measure the accuracy of lottery tickets and the time of their search.

Two-layer networks classify the nodes of Cora, CiteSeer and PubMed (public
split) or of a larger graph (twenty random training nodes of each class) with
pruned weights and edges:

* dense: the network on the whole graph, 200 epochs,
* narrow: a dense network of as many weights, the baseline of pruned weights,
* random, one_shot, imp, fast: the methods of `GraphLotteryPruner` (imp with
  rounds of 200 epochs, as in its paper),
* learned: one_shot with learned scores of edges.

A `+` marks distillation of the dense network, which `fast` always uses: with
80 % of the loss, or all of it if only edges are pruned. The table shows the
baselines with and without distillation. All networks, dense and narrow ones
included, train with full-batch acceleration; `--epochs` shows the cost of
plain loops.

The columns of the table are

* the test accuracy at the best validation accuracy (mean and standard
  deviation over seeds),
* its difference to the dense network of the same seed (mean and standard
  error),
* the fraction of multiply-adds saved in the forward pass,
* the CPU seconds, including the training of the dense network, and their ratio
  to the seconds of `fast`.

With `--unseen`, training uses the graph without its test nodes, and the test
uses the whole graph.

`--epochs` prints other columns:

* the milliseconds of an epoch of a plain loop, of a plain loop with masks on
  dense weights, and of the stages of a search (98 % of weights and 35 % of
  edges pruned; `learned` is the dense stage with learned scores of edges),
* the ratio of the slowest stage of `fast` to the plain loop,
* the seconds, projected from these epochs, of `fast` with its default numbers
  of epochs, and of iterative pruning to 99 % in plain loops (22 trainings of
  200 epochs with masks).
"""

import argparse
import copy
import itertools
import resource
import statistics
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
import torch_geometric.transforms as T
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.data import Data
from torch_geometric.datasets import Amazon, Coauthor, Planetoid
from torch_geometric.nn import GAT, GCN, GINConv

from benchmark import record
from torch_geometric_ext.lottery.node_task import NodeTask
from torch_geometric_ext.lottery.stage import Stage
from torch_geometric_ext.lottery.task import Task
from torch_geometric_ext.utils import GraphLotteryPruner, count_macs

EPOCHS = 200
DISTILL = 0.8
METHODS = ['narrow', 'narrow+', 'random', 'random+', 'one_shot', 'one_shot+']

TABLE_HEADER = (
    f'{"set":<10}{"model":<6}{"weights":>8}{"edges":>8}  {"method":<11}'
    f'{"test":>6}{"":6}{"to dense":>14}{"saved":>9}{"seconds":>9}{"ratio":>9}'
    f'{"runs":>6}'
)
STAGES = ['dense', 'search', 'retrained']
COLUMNS = ['plain', 'masked', 'dense', 'learned', 'search', 'retrain']
EPOCHS_HEADER = (
    f'{"set":<10}{"model":<6}'
    + ''.join(f'{x:>10}' for x in COLUMNS)
    + f'{"highest":>10}{"fast":>8}{"imp":>9}{"ratio":>8}'
)


class GIN(Module):
    """A GIN of one linear layer per convolution. With more linear layers or
    batch normalization, training on few labels fails.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int):
        super().__init__()
        self.conv1 = GINConv(Linear(in_channels, hidden))
        self.conv2 = GINConv(Linear(hidden, out_channels))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.conv1(x, edge_index).relu()
        return self.conv2(F.dropout(h, 0.5, self.training), edge_index)


def network(name: str, data: Data, width: float = 1.0) -> Module:
    """Return a network with a fraction of its channels."""
    size = (data.num_features, int(data.y.max()) + 1)
    hidden = max(round(width * 512), 1)
    if name == 'GIN':
        return GIN(size[0], hidden, size[1])
    if name == 'GAT':
        heads = 8 if width == 1 else 1
        return GAT(size[0], hidden, 2, size[1], heads=heads, dropout=0.5)
    return GCN(size[0], hidden, 2, size[1], dropout=0.5)


def load(root: str, name: str) -> Data:
    """Return a graph of bags of words with its public split, or with twenty
    random training nodes of each class.
    """
    if name in ['Cora', 'CiteSeer', 'PubMed']:
        transform = T.NormalizeFeatures()
        return Planetoid(f'{root}/Planetoid', name, transform=transform)[0]
    torch.manual_seed(0)
    split = T.RandomNodeSplit('test_rest', num_val=500)
    transform = T.Compose([T.NormalizeFeatures(), split])
    if name in ['CS', 'Physics']:
        return transform(Coauthor(f'{root}/Coauthor', name)[0])
    return transform(Amazon(f'{root}/Amazon', name)[0])


class Result(NamedTuple):
    """The result of one run."""

    test: float
    macs: int
    seconds: float


def accuracy(model: Module, data: Data, mask: Tensor) -> float:
    with torch.no_grad():
        out = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((out == data.y)[mask].float().mean())


def train(
    model: Module,
    data: Data,
    whole: Optional[Data] = None,
    teacher: Optional[Module] = None,
) -> Tuple[Module, Result]:
    """Return a trained network at its best validation accuracy, and its
    result on `whole` (default: `data`).
    """
    start = time.process_time()
    task: Task = NodeTask(data)
    if teacher is not None:
        task = task.distilled(teacher, DISTILL, torch.Generator())
    out = copy.deepcopy(model)
    task = task.accelerate(out)
    optimizer = torch.optim.Adam(out.parameters(), lr=0.01, weight_decay=5e-4)
    stage = Stage('dense', out, task, optimizer, EPOCHS, evaluate_every=2)
    out.load_state_dict(stage.run(lambda stage: None).best.state)
    seconds = time.process_time() - start
    macs = count_macs(out.eval(), data.x, data.edge_index).forward
    whole = data if whole is None else whole
    return out, Result(accuracy(out, whole, whole.test_mask), macs, seconds)


def prune(
    model: Module,
    data: Data,
    whole: Optional[Data],
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
        method='one_shot' if method == 'learned+' else method.rstrip('+'),
        edge_score='learned' if method in ['imp', 'learned+'] else 'degree',
        retrain_epochs=EPOCHS if method == 'imp' else 100,
        distill=None if method.endswith('+') or method == 'fast' else 0.0,
        seed=seed,
    )
    ticket = pruner.fit(data)
    seconds = time.process_time() - start
    small, graph = ticket.apply(model, data)
    graph = graph if whole is None else whole
    test = accuracy(small, graph, graph.test_mask)
    return Result(test, ticket.macs[1], seconds)


def row(
    setting: Tuple[str, str, float, float],
    method: str,
    results: List[Result],
    dense: List[Result],
    fast: float,
) -> None:
    name, kind, weights, edges = setting
    pruned = ['-' if method == 'dense' else f'{x:.1%}' for x in setting[2:]]
    tests = [x.test for x in results]
    gaps = [x.test - y.test for x, y in zip(results, dense)]
    deviations = [
        statistics.stdev(x) if len(x) > 1 else 0.0 for x in [tests, gaps]
    ]
    error = deviations[1] / len(gaps) ** 0.5
    seconds = statistics.mean(x.seconds for x in results)
    saved = 1 - statistics.mean(x.macs for x in results) / dense[0].macs
    print(
        f'{name:<10}{kind:<6}{pruned[0]:>8}{pruned[1]:>8}  {method:<11}'
        f'{statistics.mean(tests):>6.1f} ± '
        f'{deviations[0]:.1f}{statistics.mean(gaps):>+8.1f} ± {error:.1f}'
        f'{saved:>9.1%}{seconds:>9.1f}{seconds / fast:>8.2f}x'
        f'{len(tests):>6}',
        flush=True,
    )
    record.write(
        data_set=name,
        model=kind,
        weights=weights,
        edges=edges,
        method=method,
        test=statistics.mean(tests),
        deviation=deviations[0],
        to_dense=statistics.mean(gaps),
        error=error,
        saved=saved,
        seconds=seconds,
        ratio=seconds / fast,
        runs=len(tests),
    )


def table(name: str, kind: str, args: argparse.Namespace) -> None:
    data, whole = load(args.root, name), None
    if args.unseen:
        data, whole = data.subgraph(~data.test_mask), data
    models: Dict[int, Module] = {}
    dense: Dict[int, Tuple[Module, Result]] = {}
    for seed in args.seeds:
        torch.manual_seed(seed)
        models[seed] = network(kind, data)
        torch.manual_seed(seed)
        dense[seed] = train(copy.deepcopy(models[seed]), data, whole)
    rivals = [x for _, x in dense.values()]
    mean = statistics.mean(x.seconds for x in rivals)
    row((name, kind, 0, 0), 'dense', rivals, rivals, mean)
    for weights, edges in args.grid:
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
                    results.append(train(narrow, data, whole, teacher)[1])
                    continue
                model = models[seed]
                results.append(
                    prune(model, data, whole, method, weights, edges, seed)
                )
            if method == 'fast':
                fast = statistics.mean(x.seconds for x in results)
            if results:
                setting = (name, kind, weights, edges)
                row(setting, method, results, rivals, fast)


def plain_epoch(model: Module, data: Data) -> float:
    """Return the mean seconds of an epoch, with validation in every second
    epoch.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    times = []
    for epoch in range(13):
        start = time.perf_counter()
        model.train()
        optimizer.zero_grad()
        h = model(data.x, data.edge_index)
        F.cross_entropy(h[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
        if epoch % 2 == 0:
            accuracy(model, data, data.val_mask)
        times.append(time.perf_counter() - start)
    return statistics.mean(times[3:])


def masked(model: Module) -> Module:
    """Multiply the dense weights of a model by random masks, in-place."""
    for module in list(model.modules()):
        weight = getattr(module, 'weight', None)
        if isinstance(weight, torch.nn.Parameter) and weight.dim() == 2:
            mask = torch.rand_like(weight) < 0.02
            torch.nn.utils.prune.custom_from_mask(module, 'weight', mask)
    return model


def epochs(name: str, kind: str, args: argparse.Namespace) -> None:
    """Print the times of an epoch of plain loops and of each stage."""
    data = load(args.root, name)
    torch.manual_seed(0)
    model = network(kind, data)
    plain = plain_epoch(copy.deepcopy(model), data)
    loop = plain_epoch(masked(copy.deepcopy(model)), data)
    num = 10
    times = {}
    for edge_score in ['learned', 'degree']:
        ticket = GraphLotteryPruner(
            model,
            weight_sparsity=0.98,
            edge_sparsity=0.35,
            edge_score=edge_score,
            pretrain_epochs=num,
            search_epochs=num,
            retrain_epochs=num,
        ).fit(data)
        times[edge_score] = {k: ticket.seconds[k] / num for k in STAGES}
    fast = times['degree']
    whole = 60 * fast['dense'] + 100 * (fast['search'] + fast['retrained'])
    imp = 22 * EPOCHS * loop  # The dense network and 21 rounds, to 99 %.
    cells = {
        'plain': plain,
        'masked': loop,
        'dense': fast['dense'],
        'learned': times['learned']['dense'],
        'search': fast['search'],
        'retrain': fast['retrained'],
    }
    highest = max(fast.values()) / plain
    print(
        f'{name:<10}{kind:<6}'
        + ''.join(f'{1e3 * x:>10.1f}' for x in cells.values())
        + f'{highest:>9.2f}x'
        f'{whole:>8.1f}{imp:>9.1f}{imp / whole:>7.0f}x',
        flush=True,
    )
    record.write(
        part='epochs',
        data_set=name,
        model=kind,
        **{key: 1e3 * x for key, x in cells.items()},
        highest=highest,
        fast=whole,
        imp=imp,
        ratio=imp / whole,
    )


def pair(text: str) -> Tuple[float, float]:
    weights, edges = text.split(',')
    return float(weights), float(edges)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', default='.data')
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
    parser.add_argument('--imp_seeds', type=int, default=None)
    parser.add_argument('--unseen', action='store_true')
    parser.add_argument('--epochs', action='store_true')
    parser.add_argument('--threads', type=int, default=1)
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeds = [0] if args.epochs else args.seeds
    record.start(args.output, seeds, unseen=args.unseen)
    run = epochs if args.epochs else table
    print(EPOCHS_HEADER if args.epochs else TABLE_HEADER)
    for name, kind in itertools.product(args.datasets, args.models):
        run(name, kind, args)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'peak memory: {memory:.2f} GB')
    record.write(part='process', gigabytes=memory)


if __name__ == '__main__':
    main()
