"""Measure the accuracy and the cost of sparse heads for link prediction.

A head predicts whether a pair of nodes of a temporal network interacts, from
embeddings of both nodes. Events are split by time:

* history (60 %): embeddings by skip-gram on random walks, and heuristics,
* head (15 %): training of the head,
* validation (5 %) and test (20 %).

Self-loops are dropped, and only events between nodes of the history count.
Each event has one negative pair with the same source. Its destination is a
random node of the history ("random"), or the destination of a random event of
the history ("matched"), so that negative destinations have high degrees, too.

Two heads are measured: "paper" has 8-dimensional embeddings and the sizes
16-128-1, "product" has 64-dimensional embeddings, their elementwise product as
further inputs, and the sizes 192-128-1. The output layer stays dense, and
sparsity refers to the other layer. The methods are the functions in `METHODS`:

* narrow: a dense head with as many weights as the sparse ones,
* magnitude, ADMM, SLR: prune the trained dense head, and retrain it,
* SET, RigL: sparse from the first step.

A "budget" has three times the steps, as many as those of dense training,
pruning and retraining. All methods run in turn in one process, once per seed.
Methods that prune start from copies of one trained dense head, whose cost
counts for each of them.

Prints the test AUC in percent of all events and of pairs that are new to the
history (mean and standard deviation over seeds), the multiply-adds of the
training, its CPU seconds without embeddings, and the peak of the memory for
weights, gradients, optimizer and pruner.
"""

import argparse
import copy
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import Linear, ReLU, Sequential
from torch_geometric.data import TemporalData

from benchmark import record
from torch_geometric_ext.datasets import TemporalEdgeList
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.ops.machine import cpu_model
from torch_geometric_ext.sparsity import (
    ADMM,
    SET,
    SLR,
    LagrangianPruner,
    MagnitudePruner,
    RigL,
)
from torch_geometric_ext.utils import (
    count_macs,
    skip_gram_embeddings,
    temporal_random_walks,
)

Features = Dict[str, np.ndarray]
HEADS = {'paper': 8, 'product': 64}
PARTS = ['head', 'val', 'test']
OUTPUT = '2'  # The name of the output layer.
SPARSITIES = [0.8, 0.9, 0.95, 0.98, 0.99, 0.995]


@dataclass
class Pairs:
    """Positive pairs, followed by one negative pair for each."""

    src: Tensor
    dst: Tensor
    new: np.ndarray  # Whether the history lacks the positive pair.

    def auc(self, score: Any, new: bool = False) -> float:
        y = np.arange(self.src.numel()) < self.src.numel() // 2
        if new:
            y, score = y[self.new], np.asarray(score)[self.new]
        return 100 * float(roc_auc_score(y, score))


class Task:
    """The events of a network, with negative pairs of one kind."""

    def __init__(self, data: TemporalData, negatives: str, seed: int) -> None:
        self.num_nodes = data.num_nodes
        data = data[data.src != data.dst]
        train, val, test = data.train_val_test_split(0.05, 0.2)
        self.history, head, _ = train.train_val_test_split(0.2, 0.0)
        seen = torch.zeros(self.num_nodes, dtype=torch.bool)
        seen[self.history.src] = True
        seen[self.history.dst] = True
        self.nodes = seen.nonzero().view(-1)
        self.negatives = negatives
        generator = torch.Generator().manual_seed(seed)
        self.pairs = {
            name: self._pairs(part[seen[part.src] & seen[part.dst]], generator)
            for name, part in zip(PARTS, [head, val, test])
        }

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw destinations of negative pairs."""
        random = self.negatives == 'random'
        pool = self.nodes if random else self.history.dst
        index = torch.randint(pool.numel(), (size,), generator=generator)
        return pool[index]

    def _pairs(self, part: TemporalData, generator: torch.Generator) -> Pairs:
        known = self.history.src * self.num_nodes + self.history.dst
        key = part.src * self.num_nodes + part.dst
        negative = self.draw(part.num_events, generator)
        return Pairs(
            src=part.src.repeat(2),
            dst=torch.cat([part.dst, negative]),
            new=(~torch.isin(key, known)).repeat(2).numpy(),
        )


class Heuristics:
    """Degrees, recency and counts of pairs in the history."""

    def __init__(self, history: TemporalData, num_nodes: int) -> None:
        src, dst = history.src.numpy(), history.dst.numpy()
        t = history.t.numpy() - int(history.t[0])
        self.num_nodes = num_nodes
        self.in_degree = np.bincount(dst, minlength=num_nodes)
        self.out_degree = np.bincount(src, minlength=num_nodes)
        # Times ascend, and the last assignment counts:
        self.last_in = np.full(num_nodes, -1)
        self.last_out = np.full(num_nodes, -1)
        self.last_in[dst] = t
        self.last_out[src] = t
        self.keys, last, self.counts = np.unique(
            (src * num_nodes + dst)[::-1],
            return_index=True,
            return_counts=True,
        )
        self.last = t[::-1][last]
        both = np.concatenate([src, dst]), np.concatenate([dst, src])
        ones = np.ones(2 * src.size, dtype=np.float32)
        self.adj = csr_matrix((ones, both), shape=(num_nodes, num_nodes))
        self.adj.sum_duplicates()
        self.adj.data[:] = 1

    def _pair(self, src: np.ndarray, dst: np.ndarray) -> List[np.ndarray]:
        key = src * self.num_nodes + dst
        pos = np.searchsorted(self.keys, key).clip(max=self.keys.size - 1)
        found = self.keys[pos] == key
        count = np.where(found, self.counts[pos], 0)
        return [count, np.where(found, self.last[pos], -1)]

    def _common(self, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
        out = [
            self.adj[src[i : i + 8192]].multiply(self.adj[dst[i : i + 8192]])
            for i in range(0, src.size, 8192)
        ]
        return np.concatenate([np.asarray(x.sum(axis=1))[:, 0] for x in out])

    def __call__(self, pairs: Pairs) -> Features:
        src, dst = pairs.src.numpy(), pairs.dst.numpy()
        degree = self.in_degree + self.out_degree
        count, last = self._pair(src, dst)
        reverse_count, reverse_last = self._pair(dst, src)
        return {
            'in-degree': self.in_degree[dst],
            'out-degree': self.out_degree[dst],
            'in-degree of source': self.in_degree[src],
            'out-degree of source': self.out_degree[src],
            'recency of destination': self.last_in[dst],
            'activity of destination': self.last_out[dst],
            'activity of source': self.last_out[src],
            'pair count': count,
            'pair recency': last,
            'reverse pair count': reverse_count,
            'reverse pair recency': reverse_last,
            'pair count, both ways': count + reverse_count,
            'pair recency, both ways': np.maximum(last, reverse_last),
            'common neighbors': self._common(src, dst),
            'preferential attachment': degree[src] * degree[dst],
        }


def run_baselines(task: Task) -> Iterator[Dict[str, Any]]:
    """Yield the results of heuristics and of boosted trees."""
    start = time.perf_counter()
    heuristics = Heuristics(task.history, task.num_nodes)
    features = {name: heuristics(task.pairs[name]) for name in PARTS}
    seconds = time.perf_counter() - start
    test = task.pairs['test']

    def make_record(method: str, score: np.ndarray, **kwargs: Any) -> Dict:
        auc, new = test.auc(score), test.auc(score, new=True)
        return dict(method=method, auc=auc, new=new, **kwargs)

    yield make_record('in-degree', features['test']['in-degree'])
    val_aucs = {
        k: task.pairs['val'].auc(x) for k, x in features['val'].items()
    }
    best = max(val_aucs, key=val_aucs.__getitem__)
    yield make_record('best heuristic', features['test'][best], heuristic=best)
    # Trees learn from degrees, recency and pair counts:
    columns = [x for x in features['test'] if x != 'common neighbors']
    x = {
        name: np.stack([features[name][key] for key in columns], axis=1)
        for name in PARTS
    }
    start = time.perf_counter()
    trees = HistGradientBoostingClassifier(random_state=0)
    y = np.arange(len(x['head'])) < len(x['head']) // 2
    trees.fit(x['head'], y)
    seconds += time.perf_counter() - start
    score = trees.predict_proba(x['test'])[:, 1]
    yield make_record('boosted trees', score, seconds=seconds)


def embed(
    task: Task, dim: int, static: bool, seed: int, args: argparse.Namespace
) -> Tuple[Tensor, float]:
    """Return the standardized embeddings of all nodes, and the seconds."""
    start = time.perf_counter()
    t = task.history.t
    walks = temporal_random_walks(
        task.history.src,
        task.history.dst,
        # With equal times, every edge may follow every edge:
        torch.zeros_like(t) if static else t,
        walk_length=args.walk_length,
        walks_per_node=args.walks_per_node,
        start='node',
        undirected=True,
        strict=not static,
        num_nodes=task.num_nodes,
        seed=seed,
    )
    x = skip_gram_embeddings(walks, task.num_nodes, dim, seed=seed)
    std, mean = torch.std_mean(x[task.nodes], dim=0)
    return (x - mean) / std, time.perf_counter() - start


class Training:
    """A task with embeddings, and the cost of a training so far."""

    def __init__(
        self,
        task: Task,
        x: Tensor,
        head: str,
        seed: int,
        args: argparse.Namespace,
    ) -> None:
        self.task, self.x, self.seed = task, x, seed
        self.product = head == 'product'
        self.in_channels = (3 if self.product else 2) * x.size(1)
        self.lr, self.steps = args.lr, args.steps
        self.batch_size = args.batch_size
        self.restart()
        self._dense: Optional[Tuple[torch.nn.Module, int, float, int]] = None

    def restart(self) -> None:
        """Reset the cost and the draw of mini-batches."""
        self.macs = 0
        self.seconds = 0.0
        self.num_bytes = 0
        self.generator = torch.Generator().manual_seed(self.seed)

    def new_head(self, hidden: int = 128) -> Sequential:
        torch.manual_seed(self.seed)
        return Sequential(
            Linear(self.in_channels, hidden), ReLU(), Linear(hidden, 1)
        )

    def features(self, src: Tensor, dst: Tensor) -> Tensor:
        x, y = self.x[src], self.x[dst]
        return torch.cat([x, y, x * y] if self.product else [x, y], dim=1)

    def batch(self) -> Tuple[Tensor, Tensor]:
        pairs, size = self.task.pairs['head'], self.batch_size
        num_positives = pairs.src.numel() // 2
        index = torch.randint(num_positives, (size,), generator=self.generator)
        dst = torch.cat(
            [pairs.dst[index], self.task.draw(size, self.generator)]
        )
        y = torch.arange(2 * size) < size
        return self.features(pairs.src[index].repeat(2), dst), y.float()

    @torch.no_grad()
    def score(self, head: torch.nn.Module, part: str) -> np.ndarray:
        pairs = self.task.pairs[part]
        chunks = zip(pairs.src.split(16_384), pairs.dst.split(16_384))
        out = [head(self.features(*chunk)) for chunk in chunks]
        return torch.cat(out).view(-1).numpy()

    def fit(
        self,
        head: torch.nn.Module,
        steps: int,
        pruner: Any = None,
        make_scheduler: Optional[Callable] = None,
        select: bool = True,
    ) -> torch.nn.Module:
        """Train a head and return the best of four checkpoints by validation
        AUC, or the last one.
        """
        start = time.process_time()
        optimizer = getattr(pruner, 'optimizer', None)
        if optimizer is None:
            optimizer = torch.optim.Adam(head.parameters(), lr=self.lr)
        if make_scheduler is not None:
            pruner = make_scheduler(optimizer)
        count = count_macs(head, self.batch()[0])
        self.macs += steps * count.training
        size = 2 * count.parameter_bytes + count.optimizer_bytes
        size += count.index_bytes
        if isinstance(pruner, LagrangianPruner):
            copies = 4 if isinstance(pruner, SLR) else 3
            size += (
                copies * 4 * sum(x.numel() for x in pruner.targets.values())
            )
        self.num_bytes = max(self.num_bytes, size)
        best, best_auc = head, -1.0
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            x, y = self.batch()
            loss = F.binary_cross_entropy_with_logits(head(x).view(-1), y)
            if hasattr(pruner, 'regularize'):
                loss = pruner.regularize(loss)
            loss.backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()
            if select and step % (steps // 4) == 0:
                auc = self.task.pairs['val'].auc(self.score(head, 'val'))
                if auc > best_auc:
                    best, best_auc = copy.deepcopy(head), auc
        self.seconds += time.process_time() - start
        return best

    def trained(self) -> torch.nn.Module:
        """Return a copy of the trained dense head, and add its cost."""
        if self._dense is None:
            before = self.macs, self.seconds
            head = self.fit(self.new_head(), self.steps)
            seconds = self.seconds - before[1]
            cost = self.macs - before[0], seconds, self.num_bytes
            self._dense = head, *cost
        else:
            self.macs += self._dense[1]
            self.seconds += self._dense[2]
            self.num_bytes = max(self.num_bytes, self._dense[3])
        return copy.deepcopy(self._dense[0])


def dense(run: Training, sparsity: float) -> torch.nn.Module:
    return run.trained()


def dense_longer(run: Training, sparsity: float) -> torch.nn.Module:
    return run.fit(run.new_head(), 3 * run.steps)


def narrow(run: Training, sparsity: float) -> torch.nn.Module:
    """Train a dense head with as many weights as the sparse ones."""
    num_weights = (1 - sparsity) * run.in_channels * 128 + 128
    hidden = max(round(num_weights / (run.in_channels + 1)), 1)
    return run.fit(run.new_head(hidden), 3 * run.steps)


def magnitude(run: Training, sparsity: float) -> torch.nn.Module:
    head = MagnitudePruner(
        run.trained(), sparsity=sparsity, ignored=[OUTPUT]
    ).finalize()
    return run.fit(head, 2 * run.steps)


def reweight(
    pruner_cls: Callable, run: Training, sparsity: float
) -> torch.nn.Module:
    head = run.trained()
    optimizer = torch.optim.Adam(head.parameters(), lr=run.lr / 4)
    pruner = pruner_cls(
        head,
        optimizer,
        sparsity=sparsity,
        rho=1e-2,
        update_every=20,
        ignored=[OUTPUT],
    )
    run.fit(head, run.steps, pruner, select=False)
    return run.fit(pruner.finalize(), run.steps)


def admm(run: Training, sparsity: float) -> torch.nn.Module:
    return reweight(ADMM, run, sparsity)


def slr(run: Training, sparsity: float) -> torch.nn.Module:
    return reweight(SLR, run, sparsity)


def set_(run: Training, sparsity: float) -> torch.nn.Module:
    head = sparsify(run.new_head(), sparsity, ignored=[OUTPUT], seed=run.seed)
    return run.fit(
        head,
        run.steps,
        make_scheduler=lambda optimizer: SET(
            head, optimizer, num_steps=run.steps, update_every=20
        ),
    )


def rigl(run: Training, sparsity: float, budget: int = 1) -> torch.nn.Module:
    head = sparsify(run.new_head(), sparsity, ignored=[OUTPUT], seed=run.seed)
    steps, every = budget * run.steps, 20
    # Updates compute dense gradients:
    num_updates = int(0.75 * steps - 1) // every
    for layer in head.modules():
        if isinstance(layer, SparseLinear):
            size = layer.in_channels * layer.out_channels
            run.macs += num_updates * 2 * run.batch_size * size
    return run.fit(
        head,
        steps,
        make_scheduler=lambda optimizer: RigL(
            head, optimizer, num_steps=steps, update_every=every
        ),
    )


def rigl_longer(run: Training, sparsity: float) -> torch.nn.Module:
    return rigl(run, sparsity, budget=3)


Method = Callable[[Training, float], torch.nn.Module]
DENSE_METHODS: Dict[str, Method] = {
    'dense': dense,
    'dense, budget': dense_longer,
}
METHODS: Dict[str, Method] = {
    'narrow, budget': narrow,
    'magnitude': magnitude,
    'ADMM': admm,
    'SLR': slr,
    'SET': set_,
    'RigL': rigl,
    'RigL, budget': rigl_longer,
}


def make_record(
    training: Training, method: str, sparsity: float, head: torch.nn.Module
) -> Dict[str, Any]:
    test = training.task.pairs['test']
    score = training.score(head, 'test')
    return dict(
        method=method,
        sparsity=sparsity,
        weights=sum(
            x.numel() for k, x in head.named_parameters() if 'bias' not in k
        ),
        auc=test.auc(score),
        new=test.auc(score, new=True),
        macs=training.macs,
        seconds=training.seconds,
        num_bytes=training.num_bytes,
    )


def run_heads(
    training: Training, args: argparse.Namespace
) -> Iterator[Dict[str, Any]]:
    """Yield the results of all methods."""
    for sparsity in [0.0, *args.sparsities]:
        methods = METHODS if sparsity > 0 else DENSE_METHODS
        for method, func in methods.items():
            training.restart()
            head = func(training, sparsity)
            yield make_record(training, method, sparsity, head)


def run(
    name: str, seed: int, args: argparse.Namespace
) -> Iterator[Dict[str, Any]]:
    """Yield the results on a network for a seed."""
    data = TemporalEdgeList(args.root, name)[0]
    tasks = {kind: Task(data, kind, seed) for kind in args.negatives}
    first = next(iter(tasks.values()))
    embeddings = {
        key: embed(first, HEADS[key], False, seed, args) for key in HEADS
    }
    static = embed(first, HEADS['product'], True, seed, args)
    for kind, task in tasks.items():
        base = dict(dataset=name, negatives=kind, seed=seed)
        for result in run_baselines(task):
            yield dict(base, head='none', **result)
        base['head'] = 'static walks'
        training = Training(task, static[0], 'product', seed, args)
        head = dense(training, 0.0)
        out = make_record(training, 'dense', 0.0, head)
        yield dict(base, embedding_seconds=static[1], **out)
        for key, (x, seconds) in embeddings.items():
            base['head'] = key
            training = Training(task, x, key, seed, args)
            for result in run_heads(training, args):
                yield dict(base, embedding_seconds=seconds, **result)


def cell(records: List[Dict[str, Any]], key: str) -> str:
    values = [x[key] for x in records if key in x]
    if key in ['auc', 'new']:
        spread = statistics.pstdev(values)
        return f'{statistics.mean(values):.1f} ± {spread:.1f}'
    if len(values) == 0:
        return ''
    if key == 'num_bytes':
        return f'{statistics.mean(values) / 1e3:.0f}'
    if key == 'macs':
        return f'{statistics.mean(values) / 1e9:.2f}'
    return f'{statistics.mean(values):.{0 if key == "weights" else 2}f}'


def print_table(records: List[Dict[str, Any]]) -> None:
    groups: Dict[Tuple, Dict[Tuple, List]] = defaultdict(
        lambda: defaultdict(list)
    )
    for x in records:
        row = x['head'], x.get('sparsity', 0.0), x['method']
        groups[x['dataset'], x['negatives']][row].append(x)
    columns = ['auc', 'new', 'weights', 'macs', 'seconds', 'num_bytes']
    titles = ['AUC', 'AUC (new)', 'weights', 'GMACs', 'seconds', 'kB']
    for (dataset, negatives), rows in groups.items():
        print(f'\n{dataset}, {negatives} negatives')
        print(f'{"head":14}{"sparsity":>9}  {"method":17}', end='')
        print(''.join(f'{x:>13}' for x in titles))
        for (head, sparsity, method), group in rows.items():
            cells = ''.join(f'{cell(group, key):>13}' for key in columns)
            print(f'{head:14}{sparsity:9g}  {method:17}{cells}')
        best = {
            x['heuristic']
            for x in records
            if 'heuristic' in x
            and (x['dataset'], x['negatives']) == (dataset, negatives)
        }
        print(f'best heuristic: {", ".join(sorted(best))}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--root', required=True)
    parser.add_argument(
        '--datasets', nargs='+', default=TemporalEdgeList.names
    )
    parser.add_argument(
        '--negatives', nargs='+', default=['random', 'matched']
    )
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=SPARSITIES
    )
    parser.add_argument('--walk_length', type=int, default=20)
    parser.add_argument('--walks_per_node', type=int, default=10)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--batch_size', type=int, default=512)
    parser.add_argument('--lr', type=float, default=3e-3)
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    cpu, threads = cpu_model(), torch.get_num_threads()
    print(
        f'{cpu}, {threads} thread(s), {args.seeds} seeds, {args.steps} steps '
        f'of {args.batch_size} events, Adam with lr {args.lr}'
    )
    record.start(args.output, range(args.seeds))
    start = time.perf_counter()
    records = []
    for seed in range(args.seeds):
        for name in args.datasets:
            for result in run(name, seed, args):
                records.append(result)
                record.write(**result)
            seconds = time.perf_counter() - start
            print(f'{name}, seed {seed}: {seconds:.0f} s', flush=True)
    print_table(records)


if __name__ == '__main__':
    main()
