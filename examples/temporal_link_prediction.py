"""Predict the messages of a temporal network with dense and sparse heads.

Node embeddings are learned from the first 60 % of all events, by skip-gram on
random walks along edges of ascending time. A head then predicts from the
embeddings of two nodes whether they interact. It learns from the next 15 %,
and the best of four checkpoints on further 5 % is tested on the last 20 %.
Three heads are trained from the same initialization:

* dense,
* pruned: the dense head, pruned by `SLR` and retrained,
* sparse: `sparsify` and `RigL`, without a dense head.
"""

import argparse
import copy
import time
from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential
from torch_geometric import seed_everything
from torch_geometric.data import TemporalData

from torch_geometric_ext.datasets import TemporalEdgeList
from torch_geometric_ext.nn import sparsify
from torch_geometric_ext.sparsity import SLR, RigL
from torch_geometric_ext.utils import (
    count_macs,
    skip_gram_embeddings,
    temporal_random_walks,
)

OUTPUT = '2'  # The output layer of a head stays dense.
OPTIONS = [
    ('root', '.data/TemporalEdgeList', 'folder of the data set'),
    ('embedding_dim', 64, 'width of node embeddings'),
    ('hidden_channels', 128, 'width of the heads'),
    ('sparsity', 0.95, 'fraction of weights to prune'),
    ('steps', 300, 'steps of each training'),
    ('lr', 0.003, 'learning rate'),
]


class Task:
    """Embeddings of the history, and the later events between its nodes."""

    def __init__(self, data: TemporalData, embedding_dim: int) -> None:
        data = data[data.src != data.dst]
        train, val, test = data.train_val_test_split(0.05, 0.2)
        history, head, _ = train.train_val_test_split(0.2, 0.0)
        self.nodes = torch.cat([history.src, history.dst]).unique()
        self.head, self.val, self.test = (
            x[torch.isin(x.src, self.nodes) & torch.isin(x.dst, self.nodes)]
            for x in [head, val, test]
        )
        walks = temporal_random_walks(
            history.src,
            history.dst,
            history.t,
            walk_length=20,
            undirected=True,
            num_nodes=data.num_nodes,
        )
        x = skip_gram_embeddings(walks, data.num_nodes, embedding_dim)
        std, mean = torch.std_mean(x[self.nodes], dim=0)
        self.x = (x - mean) / std

    def features(self, events: TemporalData) -> Tuple[Tensor, Tensor]:
        """Return the features and labels of events, and as many negatives."""
        src, size = events.src.repeat(2), events.num_events
        negative = self.nodes[torch.randint(self.nodes.numel(), (size,))]
        x, y = self.x[src], self.x[torch.cat([events.dst, negative])]
        label = torch.arange(2 * size) < size
        return torch.cat([x, y, x * y], dim=1), label.float()


@torch.no_grad()
def test(head: Module, task: Task, events: TemporalData) -> float:
    with torch.random.fork_rng():
        torch.manual_seed(1)  # All heads are tested on the same negatives.
        x, y = task.features(events)
    return 100 * float(roc_auc_score(y, head(x).view(-1)))


def train(
    head: Module,
    task: Task,
    steps: int,
    lr: float,
    method: Optional[Callable] = None,
) -> Tuple[Module, int]:
    """Return the trained head and the multiply-adds of its training."""
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    pruner = None if method is None else method(head, optimizer)
    index = torch.randint(task.head.num_events, (512,))
    macs = count_macs(head, task.features(task.head[index])[0]).training
    best, best_auc = head, 0.0
    for step in range(1, steps + 1):
        index = torch.randint(task.head.num_events, (512,))
        x, y = task.features(task.head[index])
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(head(x).view(-1), y)
        if isinstance(pruner, SLR):
            loss = pruner.regularize(loss)
        loss.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
        if step % max(steps // 4, 1) == 0:
            auc = test(head, task, task.val)
            if auc > best_auc:
                best, best_auc = copy.deepcopy(head), auc
    if isinstance(pruner, SLR):
        best = pruner.finalize()
    return best, steps * macs


def run(name: str, task: Task, args: argparse.Namespace) -> None:
    seed_everything(0)
    steps, lr, sparsity = args.steps, args.lr, args.sparsity
    head: Module = Sequential(
        Linear(3 * args.embedding_dim, args.hidden_channels),
        ReLU(),
        Linear(args.hidden_channels, 1),
    )
    start = time.perf_counter()
    if name == 'sparse':
        head = sparsify(head, sparsity, ignored=[OUTPUT])

        def rigl(*args: Any) -> RigL:
            return RigL(*args, num_steps=steps, update_every=20)

        head, macs = train(head, task, steps, lr, rigl)
    else:
        head, macs = train(head, task, steps, lr)
    if name == 'pruned':

        def slr(*args: Any) -> SLR:
            return SLR(*args, sparsity=sparsity, ignored=[OUTPUT])

        head, more = train(head, task, steps, lr / 4, slr)
        macs += more
        head, more = train(head, task, steps, lr)
        macs += more
    seconds = time.perf_counter() - start
    weights = sum(x.numel() for x in head.parameters())
    row = f'{name:8}{weights:12,}{macs / 1e9:10.1f}{seconds:10.1f}'
    print(f'{row}{test(head, task, task.test):10.1f}')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--dataset',
        default='CollegeMsg',
        choices=TemporalEdgeList.names,
        help='network to download',
    )
    for name, default, text in OPTIONS:
        parser.add_argument(
            f'--{name}', type=type(default), default=default, help=text
        )
    args = parser.parse_args()

    data = TemporalEdgeList(args.root, args.dataset)[0]
    start = time.perf_counter()
    task = Task(data, args.embedding_dim)
    print(f'{data}\nEmbedded in {time.perf_counter() - start:.1f} s\n')
    print(f'{"head":8}{"parameters":>12}{"GMACs":>10}', end='')
    print(f'{"seconds":>10}{"test AUC":>10}')
    for name in ['dense', 'pruned', 'sparse']:
        run(name, task, args)


if __name__ == '__main__':
    main()
