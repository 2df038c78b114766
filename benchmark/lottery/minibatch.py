"""Compare a search by mini-batches with plain training by mini-batches.

A SAGE of two layers classifies the nodes of PubMed (1,000 random training
nodes of each class) and of Coauthor Physics (600 of each class). Mini-batches
of 256 nodes come from `NodeLoader` with `NeighborSampler`, five neighbors in
each of two hops. Both methods train for the same number of epochs, and take
the weights of the best accuracy on 500 validation nodes:

* plain: a loop over the loader that trains the dense model,
* search: `GraphLotteryPruner.fit`, all of its stages.

Columns: the number of epochs, CPU seconds of the whole method and their ratio
to plain, the accuracy on 1,000 test nodes, the fraction of weights that
remain, the multiply-adds of a mini-batch, and the CPU milliseconds of a
training step of the model that results. Seeds alternate between the methods.
"""

import argparse
import copy
import itertools
import resource
import statistics
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.datasets import Coauthor, Planetoid
from torch_geometric.loader import NodeLoader
from torch_geometric.nn import GraphSAGE

from benchmark import record
from torch_geometric_ext.loader import NeighborSampler
from torch_geometric_ext.lottery import GraphLotteryPruner
from torch_geometric_ext.utils import count_macs

# Fractions of all epochs:
STAGES = dict(pretrain_epochs=0.2, search_epochs=0.4, retrain_epochs=0.4)
HEADER = (
    'set      method   epochs  seconds   ratio         test  weights'
    '   Mmacs  ms/step'
)


class Loaders(NamedTuple):
    train: NodeLoader
    val: NodeLoader
    test: NodeLoader


def load(root: str, name: str) -> Data:
    torch.manual_seed(0)
    if name == 'PubMed':
        data, size = Planetoid(f'{root}/Planetoid', name)[0], 1000
    else:
        data, size = Coauthor(f'{root}/Coauthor', name)[0], 600
    split = T.RandomNodeSplit(
        'random', num_train_per_class=size, num_val=500, num_test=1000
    )
    data = split(T.NormalizeFeatures()(data))
    return Data(**{key: x for key, x in data if isinstance(x, Tensor)})


def loader(data: Data, mask: Tensor, shuffle: bool = False) -> NodeLoader:
    sampler = NeighborSampler(data, [5, 5], seed=None if shuffle else 0)
    return NodeLoader(data, sampler, mask, batch_size=256, shuffle=shuffle)


def scores(model: Module, batch: Data) -> Tensor:
    out: Tensor = model(
        batch.x,
        batch.edge_index,
        num_sampled_nodes_per_hop=batch.num_sampled_nodes,
        num_sampled_edges_per_hop=batch.num_sampled_edges,
    )
    return out[: batch.batch_size]


def loss_fn(model: Module, batch: Data) -> Tensor:
    return F.cross_entropy(scores(model, batch), batch.y[: batch.batch_size])


@torch.no_grad()
def accuracy(model: Module, batches: Iterable[Data]) -> float:
    hits, total = 0, 0
    for batch in batches:
        pred = scores(model.eval(), batch).argmax(dim=-1)
        hits += int((pred == batch.y[: batch.batch_size]).sum())
        total += batch.batch_size
    return hits / total


def plain(model: Module, loaders: Loaders, num_epochs: int) -> Module:
    model, best = copy.deepcopy(model), -1.0
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=5e-4)
    for _ in range(num_epochs):
        model.train()
        for batch in loaders.train:
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
        metric = accuracy(model, loaders.val)
        if metric > best:
            best, state = metric, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return model


def search(
    model: Module, loaders: Loaders, num_epochs: int, sparsity: float
) -> Module:
    stages: Dict[str, Any] = {
        key: round(x * num_epochs) for key, x in STAGES.items()
    }
    pruner = GraphLotteryPruner(
        model,
        weight_sparsity=sparsity,
        evaluate_every=1,
        log=False,
        **stages,
    )
    # All edges remain, hence mini-batches of other nodes are valid:
    ticket = pruner.fit(
        loaders.train, loss_fn, lambda model, _: accuracy(model, loaders.val)
    )
    data = loaders.train.data
    out: Module = ticket.apply(model, data, sparse=True)[0]
    return out


def step_ms(model: Module, batches: List[Data]) -> float:
    optimizer = torch.optim.Adam(model.parameters())
    times = []
    for batch in batches:
        start = time.process_time()
        optimizer.zero_grad()
        loss_fn(model.train(), batch).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def run(name: str, num_epochs: int, args: argparse.Namespace) -> None:
    data = load(args.root, name)
    masks = data.train_mask, data.val_mask, data.test_mask
    loaders = Loaders(*(loader(data, x, x is masks[0]) for x in masks))
    sparsities = [None, *args.sparsities]
    seconds: Dict[Any, List[float]] = {key: [] for key in sparsities}
    tests: Dict[Any, List[float]] = {key: [] for key in sparsities}
    models: Dict[Any, Module] = {}
    for seed in args.seeds:
        torch.manual_seed(seed)
        size = data.num_features, args.hidden, 2, int(data.y.max()) + 1
        model = GraphSAGE(*size, dropout=0.5)
        for key in sparsities:
            start = time.process_time()
            if key is None:
                models[key] = plain(model, loaders, num_epochs)
            else:
                models[key] = search(model, loaders, num_epochs, key)
            seconds[key].append(time.process_time() - start)
            tests[key].append(100 * accuracy(models[key], loaders.test))
    batches = [batch for _, batch in zip(range(4), loaders.train)]
    for key in sparsities:
        mean = statistics.mean(seconds[key])
        deviation = statistics.stdev(tests[key]) if len(args.seeds) > 1 else 0
        x, edge_index = batches[0].x, batches[0].edge_index
        milliseconds = step_ms(models[key], batches)
        macs = count_macs(models[key].eval(), x, edge_index).forward
        record.write(
            data_set=name,
            method='plain' if key is None else 'search',
            epochs=num_epochs,
            seconds=mean,
            ratio=mean / statistics.mean(seconds[None]),
            test=statistics.mean(tests[key]),
            deviation=deviation,
            weights=1 - (key or 0),
            megamacs=macs / 1e6,
            step_ms=milliseconds,
        )
        print(
            f'{name:<9}{"plain" if key is None else "search":<9}'
            f'{num_epochs:>6}{mean:>9.1f}'
            f'{mean / statistics.mean(seconds[None]):>7.2f}x'
            f'{statistics.mean(tests[key]):>7.1f} ± {deviation:.1f}'
            f'{1 - (key or 0):>9.0%}{macs / 1e6:>8.0f}'
            f'{milliseconds:>9.1f}',
            flush=True,
        )


def machine() -> str:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return 'unknown CPU'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', required=True)
    parser.add_argument('--datasets', nargs='+', default=['PubMed', 'Physics'])
    parser.add_argument('--hidden', type=int, default=128)
    parser.add_argument('--sparsities', nargs='+', type=float, default=[0.95])
    parser.add_argument('--seeds', nargs='+', type=int, default=[10])
    parser.add_argument('--epochs', nargs='+', type=int, default=[10])
    parser.add_argument('--threads', type=int, default=1)
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'{machine()}, {args.threads} thread, PyTorch {torch.__version__}')
    print(HEADER)
    record.start(args.output, args.seeds)
    for name, num_epochs in itertools.product(args.datasets, args.epochs):
        run(name, num_epochs, args)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'peak memory: {memory:.2f} GB')
    record.write(part='process', gigabytes=memory)


if __name__ == '__main__':
    main()
