"""Train a GIN on molecules that are condensed to a twentieth of their bytes.

The data sets are all training molecules, the result of `MirageCondense` as
shared trees and as plain graphs, and random molecules of the same bytes.
Further rivals are an untrained model and the majority class.

Every model takes the same number of steps on mini-batches of the same number
of graphs, so that the methods differ in bytes and not in time. A fifth of the
molecules are validation molecules for all methods. Test accuracies are those
of the step with the best validation accuracy.
"""

import argparse
import itertools
import time
from collections import defaultdict
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, ReLU, Sequential
from torch.optim import Adam
from torch.utils.data import RandomSampler
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN
from torch_geometric.utils.smiles import x_map

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import RootAggregation
from torch_geometric_ext.transforms import MirageCondense

NUM_LAYERS = 2
OPTIONS = [
    ('root', '.data/Solubility', 'folder of the data set'),
    ('ratio', 0.05, 'fraction of bytes to keep'),
    ('seeds', 3, 'trainings of each method'),
    ('num_steps', 150, 'steps of each training'),
    ('batch_size', 128, 'graphs of a mini-batch'),
    ('hidden_channels', 64, 'width of the model'),
    ('lr', 0.003, 'learning rate'),
]


class Net(torch.nn.Module):
    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        sizes = torch.tensor([len(values) for values in x_map.values()])
        self.register_buffer('offset', sizes.cumsum(0) - sizes)
        self.atom = torch.nn.EmbeddingBag(
            int(sizes.sum()), hidden_channels, mode='sum'
        )
        self.gnn = GIN(hidden_channels, hidden_channels, NUM_LAYERS)
        self.aggr = RootAggregation('sum')  # Pools all nodes of plain graphs.
        self.head = Sequential(
            Linear(hidden_channels, hidden_channels),
            ReLU(),
            Linear(hidden_channels, 3),
        )

    def forward(self, batch: Any) -> Tensor:
        h = self.gnn(self.atom(batch.x + self.offset), batch.edge_index)
        return self.head(self.aggr(h, batch))


def load(root: str, split: str) -> List[Data]:
    """Return molecules with the attributes that a GIN reads."""
    return [
        Data(x=data.x, edge_index=data.edge_index, y=data.y)
        for data in Solubility(root, split)
    ]


def num_bytes(graphs: List[Data]) -> int:
    return sum(x.nbytes for data in graphs for _, x in data)


def train(
    model: Net, part: Any, valid: Batch, test: Batch, args: argparse.Namespace
) -> Tuple[float, float]:
    size, num_draws = len(part), args.num_steps * args.batch_size
    kind = SharedTreeLoader if isinstance(part, SharedTrees) else DataLoader
    sampler = RandomSampler(range(size), num_samples=num_draws)
    loader = kind(part, args.batch_size, sampler=sampler)
    optimizer = Adam(model.parameters(), lr=args.lr)
    best, out, seconds, start = -1.0, 0.0, 0.0, time.perf_counter()
    for step, batch in enumerate(loader, 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), batch.y, reduction='none')
        if 'weight' in batch:  # Condensed classes have equal sizes.
            loss = loss * batch.weight * size
        loss.mean().backward()
        optimizer.step()
        if step % 10 == 0 or step == args.num_steps:
            seconds += time.perf_counter() - start
            accuracy = evaluate(model, valid)
            if accuracy > best:
                best, out = accuracy, evaluate(model, test)
            start = time.perf_counter()
    return out, seconds


@torch.no_grad()
def evaluate(model: Net, batch: Batch) -> float:
    return 100 * float((model(batch).argmax(dim=1) == batch.y).float().mean())


@torch.no_grad()
def untrained(model: Net, valid: Batch, test: Batch) -> float:
    """Return the accuracy of the best assignment of outputs to classes."""
    pred, test_pred = model(valid).argmax(dim=1), model(test).argmax(dim=1)
    orders = torch.tensor(list(itertools.permutations(range(3))))
    best = (orders[:, pred] == valid.y).sum(dim=1).argmax()
    return 100 * float((orders[best][test_pred] == test.y).float().mean())


def run(seed: int, args: argparse.Namespace) -> Dict[str, List[float]]:
    """Return graphs, bytes, seconds and accuracy of each method."""
    graphs = load(args.root, 'train')
    size = len(graphs) * 4 // 5
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(graphs), generator=generator).tolist()
    graphs = [graphs[i] for i in order]
    graphs, valid = graphs[:size], Batch.from_data_list(graphs[size:])
    test = Batch.from_data_list(load(args.root, 'test'))
    parts: Dict[str, Tuple[Any, int]] = {
        'all molecules': (graphs, num_bytes(graphs))
    }
    for name, share in [('mirage, shared', True), ('mirage, plain', False)]:
        condense = MirageCondense(NUM_LAYERS, ratio=args.ratio, share=share)
        small = condense(graphs)
        parts[name] = (small, condense.report().num_condensed_bytes)
        if seed == 0:
            print(f'{condense}\n{condense.report()}\n')
    used = torch.tensor([num_bytes([data]) for data in graphs]).cumsum(0)
    num_random = int((used <= args.ratio * used[-1]).sum())
    head = graphs[:num_random]
    parts['random molecules'] = (head, num_bytes(head))

    results = {}
    for name, (part, total) in parts.items():
        seed_everything(seed)
        model = Net(args.hidden_channels)
        accuracy, seconds = train(model, part, valid, test, args)
        results[name] = [len(part), total, seconds, accuracy]
    seed_everything(seed)
    accuracy = untrained(Net(args.hidden_channels), valid, test)
    results['untrained network'] = [0, 0, 0, accuracy]
    majority = torch.cat([data.y for data in graphs]).mode().values
    accuracy = 100 * float((test.y == majority).float().mean())
    results['majority class'] = [0, 0, 0, accuracy]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, default, text in OPTIONS:
        parser.add_argument(
            f'--{name}', type=type(default), default=default, help=text
        )
    args = parser.parse_args()

    table = defaultdict(list)
    for seed in range(args.seeds):
        for name, row in run(seed, args).items():
            table[name].append(row)
    print(
        f'{"trained on":20}{"graphs":>8}{"bytes":>12}{"time [s]":>10}'
        f'{"test accuracy [%]":>20}'
    )
    for name, rows in table.items():
        x = torch.tensor(rows, dtype=torch.double)
        graphs, total, seconds, accuracy = x.mean(dim=0).tolist()
        error = float(x[:, 3].std(correction=0)) / max(len(rows) - 1, 1) ** 0.5
        print(
            f'{name:20}{graphs:>8.0f}{total:>12,.0f}{seconds:>10.2f}'
            f'{f"{accuracy:.1f} ± {error:.1f}":>20}'
        )


if __name__ == '__main__':
    main()
