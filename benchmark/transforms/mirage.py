"""Test accuracy of models trained on condensed data sets, against bytes.

Each data set is split at random (80/10/10, one split for each seed). Its
training graphs are condensed to a fraction of the bytes of their tensors:

* mirage-shared: `MirageCondense(share=True)`, herded graphs with computation
  trees that are stored once,
* mirage: `MirageCondense()`, the same order of graphs, with the distinct trees
  of each graph as nodes,
* patterns: `MirageCondense(selection='patterns')`, the recipe of the paper,
* random-shared: random graphs, stored as in mirage-shared,
* herded: the same order of graphs as in mirage, stored as plain graphs,
* random: random plain graphs.

Three rivals need no graphs: an untrained model (validation graphs choose the
assignment of its outputs to classes), and the number of nodes or of edges
alone (logistic regression on it and its logarithm, all training graphs).

Models have two layers of 64 channels, a pooling and a hidden layer. They take
`--num_steps` steps of Adam on every data set. The table holds ROC-AUC
(accuracy for more than two classes) on test graphs, at the best validation
result and after the last step. The gain is 0 for the best rival and 1 for full
training. Training runs on shared trees, since other ways to store the same
trees have the same gradients. GPS is the exception, which reads plain graphs.
"""

import argparse
import itertools
import statistics
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import Linear, ReLU, Sequential
from torch_geometric.datasets import MoleculeNet, TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATConv, GCNConv, GINConv, GPSConv, SAGEConv
from torch_geometric.utils import degree

from benchmark import record
from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.trees_to_graphs import trees_to_graphs
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import RootAggregation
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)

NUM_LAYERS = 2
EVERY = 20  # Steps between evaluations.
SELF_LOOPS = {'GAT': 'remove', 'GCN': 'remove'}
MOLECULES = ['BACE', 'BBBP', 'HIV']
METHODS = [
    'mirage-shared',
    'mirage',
    'patterns',
    'random-shared',
    'herded',
    'random',
]


class Split(NamedTuple):
    """Trees of the training, validation and test graphs."""

    train: SharedTrees
    valid: SharedTrees
    test: SharedTrees


class Result(NamedTuple):
    """The result of a training run."""

    test: float
    last: float
    seconds: float


class Encoder(torch.nn.Module):
    """A linear layer for one-hot features, embeddings for integers."""

    def __init__(self, x: Tensor, channels: int) -> None:
        super().__init__()
        self.lin = Linear(x.size(1), channels)
        size = x.long().amax(dim=0) + 1
        self.offset = size.cumsum(0) - size
        self.emb = torch.nn.EmbeddingBag(int(size.sum()), channels, mode='sum')

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return self.lin(x)
        return self.emb(x + self.offset)


class Net(torch.nn.Module):
    """A graph classifier."""

    def __init__(
        self,
        kind: str,
        pooling: str,
        x: Tensor,
        num_classes: int,
        channels: int = 64,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(x, channels)
        self.kind = kind
        self.convs = torch.nn.ModuleList(
            self.conv(channels) for _ in range(NUM_LAYERS)
        )
        self.aggr = RootAggregation(pooling)
        self.lin1 = Linear(channels, channels)
        self.lin2 = Linear(channels, num_classes)

    def conv(self, channels: int) -> torch.nn.Module:
        mlp = Sequential(
            Linear(channels, channels), ReLU(), Linear(channels, channels)
        )
        if self.kind == 'GIN':
            return GINConv(mlp)
        if self.kind == 'SAGE':
            return SAGEConv(channels, channels)
        if self.kind == 'GAT':
            return GATConv(channels, channels // 4, heads=4)
        if self.kind == 'GPS':
            return GPSConv(channels, GINConv(mlp), heads=4, norm=None)
        return GCNConv(
            channels, channels, normalize=False, add_self_loops=False
        )

    def forward(self, batch: Any) -> Tensor:
        h = self.encoder(batch.x)
        for conv in self.convs:
            if self.kind == 'GPS':
                h = conv(h, batch.edge_index, batch.batch).relu()
            elif self.kind == 'GCN':
                weight = batch.edge_weight.to(h.dtype)
                h = conv(h, batch.edge_index, weight).relu()
            else:
                h = conv(h, batch.edge_index).relu()
        return self.lin2(self.lin1(self.aggr(h, batch)).relu())


def load(root: str, name: str) -> Any:
    if name in MOLECULES:
        dataset = MoleculeNet(f'{root}/MoleculeNet', name)
        dataset._data.y = dataset._data.y.view(-1).long()
        return dataset
    return TUDataset(f'{root}/TUDataset', name)


def share(dataset: Any, kind: str) -> SharedTrees:
    """Return the trees that a kind of layer reads. The attributes of graphs
    are their position, their size, and their bytes as plain graphs.
    """
    transform = ShareComputationTrees(
        NUM_LAYERS,
        gcn_norm=kind == 'GCN',
        self_loops=SELF_LOOPS.get(kind, 'keep'),
        edge_attr=False,
        degree_labels=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Some data sets share little.
        shared = transform(dataset)
    num_nodes = torch.tensor([data.num_nodes for data in dataset])
    num_edges = torch.tensor([data.num_edges for data in dataset])
    x = dataset[0].x
    node_bytes = 0 if x is None else x[0].numel() * x.element_size()
    graph_attrs = {
        'y': shared.graph_attrs['y'],
        'idx': torch.arange(len(shared)),
        'num_nodes': num_nodes,
        'num_edges': num_edges,
        'num_bytes': num_nodes * node_bytes + num_edges * 16 + 8,
    }
    return replace(shared, graph_attrs=graph_attrs)


def split(shared: SharedTrees, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(shared), generator=generator)
    sizes = (len(order) * 8 // 10, len(order) * 9 // 10)
    return Split(*map(shared.index_select, order.tensor_split(sizes)))


def condense(
    train: SharedTrees, kind: str, method: str, budget: int, seed: int
) -> SharedTrees:
    """Return the graphs that fit into the budget as the method stores them,
    here as shared trees.
    """
    y, position = train.graph_attrs['y'], torch.arange(len(train))

    def run(attrs: Dict[str, Tensor], **kwargs: Any) -> Any:
        condense = MirageCondense(
            NUM_LAYERS,
            gcn_norm=kind == 'GCN',
            self_loops=SELF_LOOPS.get(kind, 'keep'),
            edge_attr=False,
            seed=seed,
            **kwargs,
        )
        return condense(replace(train, graph_attrs=attrs))

    if method == 'random':  # The split is random.
        order = position
    elif method == 'herded':
        attrs = {'y': y, 'position': position}
        herded = run(attrs, num_graphs=len(train), share=True)
        order = herded.graph_attrs['position']
    else:
        selection = 'herding'
        if method in ['patterns', 'random-shared']:
            selection = method.split('-')[0]
        attrs = {'y': y}  # The budget counts all attributes.
        if method.endswith('-shared'):
            return run(
                attrs, num_bytes=budget, selection=selection, share=True
            )
        size = len(run(attrs, num_bytes=budget, selection=selection))
        return run(attrs, num_graphs=size, selection=selection, share=True)
    size = int(
        (train.graph_attrs['num_bytes'][order].cumsum(0) <= budget).sum()
    )
    return train.index_select(order[:size])


def measure(out: Tensor, y: Tensor) -> float:
    """Return ROC-AUC for two classes, accuracy for more."""
    if out.size(1) > 2:
        return float((out.argmax(dim=1) == y).double().mean())
    score = out.double().softmax(dim=1)[:, 1]
    return float(roc_auc_score(y, score)) if y.unique().numel() > 1 else 0.5


class Batches:
    """Mini-batches of `batch_size` graphs, epoch after epoch."""

    def __init__(self, size: int, batch_size: int, num_steps: int, seed: int):
        self.size, self.num_steps = size, num_steps
        self.batch_size = min(batch_size, size)
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[List[int]]:
        left = torch.empty(0, dtype=torch.long)
        for _ in range(self.num_steps):
            if left.numel() < self.batch_size:
                left = torch.randperm(self.size, generator=self.generator)
            yield left[: self.batch_size].tolist()
            left = left[self.batch_size :]


class Task:
    """A random split of a data set, for a kind of layer."""

    def __init__(
        self, dataset: Any, shared: SharedTrees, kind: str, seed: int
    ):
        self.dataset, self.kind, self.seed = dataset, kind, seed
        self.x = shared.node_attrs['x']
        self.num_classes = int(shared.graph_attrs['y'].max()) + 1
        self.data = split(shared, seed)
        loader = self.plain_loader if kind == 'GPS' else self.shared_loader
        self.valid, self.test = (
            next(iter(loader(part, [list(range(len(part)))])))
            for part in [self.data.valid, self.data.test]
        )

    def shared_loader(self, part: SharedTrees, batches: Any) -> Any:
        return SharedTreeLoader(part, batch_sampler=batches)

    def plain_loader(self, part: SharedTrees, batches: Any) -> Any:
        plain = [self.dataset[i] for i in part.graph_attrs['idx'].tolist()]
        for data in plain:
            if data.x is None:  # The features of shared trees:
                num = degree(data.edge_index[1], data.num_nodes, torch.long)
                data.x = num.view(-1, 1)
        return DataLoader(plain, batch_sampler=batches)

    def network(self, pooling: str) -> Net:
        torch.manual_seed(self.seed)
        return Net(self.kind, pooling, self.x, self.num_classes)

    def train(self, part: SharedTrees, method: str, args: Any) -> Result:
        net = self.network(args.pooling)
        optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
        batches = Batches(len(part), 128, args.num_steps, self.seed)
        loader = self.shared_loader(part, batches)
        if self.kind == 'GPS' and method in ['full', 'herded', 'random']:
            loader = self.plain_loader(part, batches)
        elif self.kind == 'GPS':
            loader = DataLoader(trees_to_graphs(part), batch_sampler=batches)
        best, test, seconds = -1.0, 0.0, 0.0
        start = time.perf_counter()
        for step, batch in enumerate(loader, 1):
            optimizer.zero_grad()
            F.cross_entropy(net(batch), batch.y).backward()
            optimizer.step()
            if step % EVERY == 0 or step == args.num_steps:
                seconds += time.perf_counter() - start
                valid = self.evaluate(net, self.valid)
                last = self.evaluate(net, self.test)
                if valid > best:
                    best, test = valid, last
                start = time.perf_counter()
        return Result(test, last, seconds)

    @torch.no_grad()
    def evaluate(self, net: Net, batch: Any) -> float:
        return measure(net(batch), batch.y)

    @torch.no_grad()
    def untrained(self, pooling: str) -> float:
        net = self.network(pooling)
        outs = [net(batch) for batch in [self.valid, self.test]]
        orders = itertools.permutations(range(self.num_classes))
        best = max(
            (list(order) for order in orders),
            key=lambda order: measure(outs[0][:, order], self.valid.y),
        )
        return measure(outs[1][:, best], self.test.y)

    def size_alone(self, key: str) -> float:
        """Return the result of the number of nodes or edges alone."""
        model = make_pipeline(StandardScaler(), LogisticRegression())
        x, y = [], []
        for part in [self.data.train, self.data.test]:
            size = part.graph_attrs[key].double()
            x.append(torch.stack([size, size.log1p()], dim=1).numpy())
            y.append(part.graph_attrs['y'])
        model.fit(x[0], y[0].numpy())
        return measure(torch.tensor(model.predict_log_proba(x[1])), y[1])


def run(dataset: Any, name: str, kind: str, args: Any) -> None:
    shared = share(dataset, kind)
    results: Dict[Any, List[Result]] = defaultdict(list)
    sizes: Dict[Any, List[int]] = defaultdict(list)
    for seed in args.seeds:
        task = Task(dataset, shared, kind, seed)
        train = task.data.train
        total = int(train.graph_attrs['num_bytes'].sum())
        full = task.train(train, 'full', args)
        results['full', 1.0].append(full)
        sizes['full', 1.0].append(len(train))
        for rival, value in [
            ('untrained', task.untrained(args.pooling)),
            ('node count', task.size_alone('num_nodes')),
            ('edge count', task.size_alone('num_edges')),
        ]:
            results[rival, 0.0].append(Result(value, value, 0.0))
            sizes[rival, 0.0].append(0)
        for method, ratio in itertools.product(args.methods, args.budgets):
            key = (method, ratio)
            try:
                part = condense(train, kind, method, int(ratio * total), seed)
            except ValueError:  # Too small for one graph of each class.
                continue
            if len(part) == 0:
                continue
            everything = len(part) == len(train) and method != 'patterns'
            if kind == 'GPS':  # Attention reads all nodes of plain graphs.
                everything = False
            results[key].append(
                full if everything else task.train(part, method, args)
            )
            sizes[key].append(len(part))
    print_rows((name, kind, args.pooling), results, sizes)


def print_rows(
    setting: Tuple[str, str, str], results: Any, sizes: Any
) -> None:
    name, kind, pooling = setting
    mean = {
        key: statistics.mean(r.test for r in runs)
        for key, runs in results.items()
    }
    full = mean['full', 1.0]
    rival = max(value for key, value in mean.items() if key[1] == 0)
    for (method, ratio), runs in results.items():
        test = mean[method, ratio]
        error = 0.0
        if len(runs) > 1:
            error = statistics.stdev(r.test for r in runs) / len(runs) ** 0.5
        last = statistics.mean(r.last for r in runs)
        seconds = statistics.mean(r.seconds for r in runs)
        gain = (test - rival) / max(full - rival, 1e-9)
        size = statistics.mean(sizes[method, ratio])
        budget = f'{ratio:.1%}' if ratio > 0 else '-'
        print(
            f'{name:<13}{kind:<6}{pooling:<6}{method:<16}{budget:>7}'
            f'{size:>8.0f}{100 * test:>8.1f} ± '
            f'{100 * error:<4.1f}{100 * last:>7.1f}{gain:>7.2f}{seconds:>9.2f}'
            f'{len(runs):>6}',
            flush=True,
        )
        record.write(
            data_set=name,
            model=kind,
            pooling=pooling,
            method=method,
            bytes=ratio or None,
            graphs=size,
            test=100 * test,
            error=100 * error,
            last=100 * last,
            gain=gain,
            seconds=seconds,
            runs=len(runs),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument('--datasets', nargs='+', default=['NCI1'])
    parser.add_argument('--models', nargs='+', default=['GIN'])
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument('--pooling', default='sum')
    parser.add_argument(
        '--budgets', nargs='+', type=float, default=[0.001, 0.01, 0.05, 0.1]
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[10, 11, 12, 13, 14]
    )
    parser.add_argument('--num_steps', type=int, default=400)
    parser.add_argument('--lr', type=float, default=0.001)
    record.add_argument(parser)
    args = parser.parse_args()
    record.start(args.output, args.seeds)
    print(
        f'{"set":<13}{"model":<6}{"pool":<6}{"method":<16}{"bytes":>7}'
        f'{"graphs":>8}{"test":>8}{"":7}{"last":>7}{"gain":>7}{"seconds":>9}'
        f'{"runs":>6}'
    )
    for name in args.datasets:
        dataset = load(args.root, name)
        for kind in args.models:
            run(dataset, name, kind, args)


if __name__ == '__main__':
    main()
