"""Compare a lottery search with the training of the dense model on a GPU.

Networks of 512 hidden channels classify the nodes of a random graph of about
PubMed's size (19,717 nodes, 88,648 edges, 500 sparse features, three classes),
with each method in turn:

* dense: the model of PyG layers, 200 epochs, normalized edges cached,
* search: `GraphLotteryPruner.fit`, whose result is a ticket of 260 epochs in
  three stages.

Both train by Adam and validate in every second epoch. Prints the median
seconds, their ratio (above 1: the search is faster), the accuracy on test
nodes, and the seconds of each part of the search.

Products of sparse weights follow the calibration in the folder that
`TORCH_GEOMETRIC_EXT_CALIBRATION` names, such as that of `sparse_linear.py`,
and are dense without one.
"""

import argparse
import copy
from typing import Any, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN

from benchmark.cuda.timing import Run, make_parser, measure, start
from torch_geometric_ext.utils import GraphLotteryPruner

NUM_NODES, NUM_PAIRS, NUM_FEATURES, NUM_CLASSES = 19_717, 44_324, 500, 3
# Fractions of pruned weights and edges.
GRID = [(0.98, 0.0), (0.98, 0.35), (0.0, 0.35)]
EPOCHS = 200
STAGES = {'pretrain_epochs': 60, 'search_epochs': 100, 'retrain_epochs': 100}


def make_graph(num_nodes: int) -> Data:
    """Return a random graph whose edges and features follow the classes."""
    generator = torch.Generator().manual_seed(0)
    num_pairs = NUM_PAIRS * num_nodes // NUM_NODES
    y = torch.arange(num_nodes) % NUM_CLASSES
    row, col = torch.randint(num_nodes, (2, num_pairs), generator=generator)
    # Four of five neighbors are of the same class.
    same = torch.rand(num_pairs, generator=generator) < 0.8
    col[same] += y[row[same]] - y[col[same]]
    col %= num_nodes
    edge_index = torch.stack([torch.cat([row, col]), torch.cat([col, row])])
    # One of ten words occurs, those of the class more often.
    word = torch.arange(NUM_FEATURES) % NUM_CLASSES
    rate = 0.09 + 0.03 * (word == y.view(-1, 1))
    x = (torch.rand(rate.shape, generator=generator) < rate).float()
    node = torch.randperm(num_nodes, generator=generator)
    return Data(
        x=x / x.sum(dim=1, keepdim=True).clamp(min=1),
        edge_index=edge_index,
        y=y,
        train_mask=node < 60,
        val_mask=(node >= 60) & (node < 560),
        test_mask=node >= num_nodes - 1000,
    )


def make_model(name: str) -> Module:
    args = (NUM_FEATURES, 512, 2, NUM_CLASSES)
    if name == 'GAT':
        return GAT(*args, heads=8, dropout=0.5)
    return GCN(*args, dropout=0.5, cached=True)


@torch.no_grad()
def accuracy(model: Module, data: Data, mask: torch.Tensor) -> float:
    """Return the accuracy in percent. Waits for the device."""
    out = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((out == data.y)[mask].float().mean())


def train_dense(model: Module, data: Data, num_epochs: int) -> Module:
    """Return the trained model at its best validation accuracy."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.01, weight_decay=5e-4
    )
    train, y = data.train_mask, data.y[data.train_mask]
    best, state = -1.0, model.state_dict()
    for epoch in range(1, num_epochs + 1):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(data.x, data.edge_index)[train], y).backward()
        optimizer.step()
        if epoch % 2 == 0:
            metric = accuracy(model, data, data.val_mask)
            if metric > best:
                best, state = metric, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return model


def compare(
    name: str,
    data: Data,
    sizes: Tuple[float, float],
    args: argparse.Namespace,
) -> None:
    """Print a row of the table."""
    torch.manual_seed(0)
    model = make_model(name).to(args.device)
    num_epochs = {k: round(v * args.fraction) for k, v in STAGES.items()}
    results: Dict[str, Any] = {}

    def dense() -> None:
        epochs = round(EPOCHS * args.fraction)
        results['dense'] = train_dense(model, data, epochs)

    def search() -> None:
        results['search'] = GraphLotteryPruner(
            model,
            weight_sparsity=sizes[0],
            edge_sparsity=sizes[1],
            log=False,
            **num_epochs,
        ).fit(data)

    runs = {'dense': Run(dense), 'search': Run(search)}
    times = measure(runs, args.device, args.budget)
    ticket = results['search']
    small, graph = ticket.apply(model, data)
    tests: List[float] = [
        accuracy(results['dense'], data, data.test_mask),
        accuracy(small, graph, graph.test_mask),
    ]
    seconds = [times[x] / 1000 for x in ['dense', 'search']]
    parts = ', '.join(f'{k} {x:.2f}' for k, x in ticket.seconds.items())
    print(
        f'{name:<6}{sizes[0]:>8.0%}{sizes[1]:>7.0%}{seconds[0]:>9.2f}'
        f'{seconds[1]:>9.2f}{seconds[0] / seconds[1]:>8.2f}x{tests[0]:>8.1f}'
        f'{tests[1]:>8.1f}  {parts}',
        flush=True,
    )


def main() -> None:
    parser = make_parser(__doc__, budget=3.0)
    parser.add_argument('--models', nargs='+', default=['GCN', 'GAT'])
    parser.add_argument(
        '--fraction', type=float, default=1.0, help='of all epochs'
    )
    args = parser.parse_args()
    start(args.device)
    data = make_graph(2_000 if args.small else NUM_NODES).to(args.device)
    print(f'\n{data}')
    print(
        f'{"model":<6}{"weights":>8}{"edges":>7}{"dense":>9}{"search":>9}'
        f'{"ratio":>9}{"test":>8}{"ticket":>8}  parts of the search [s]'
    )
    for name in args.models:
        for sizes in GRID:
            compare(name, data, sizes, args)


if __name__ == '__main__':
    main()
