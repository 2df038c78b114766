"""Find a winning ticket of a GCN and its graph.

Compares the dense model, the ticket, and the rival to beat: a narrow dense
model of as many weights, trained for as many epochs as the whole search. Each
model is tested at its best validation accuracy. The ticket is saved to a file
and loaded again, as in a deployment.
"""

import argparse
import time
from pathlib import Path
from typing import Tuple

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.transforms import NormalizeFeatures

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.utils import GraphLotteryPruner, Ticket, count_macs

OPTIONS = [
    (
        'dataset',
        'DigitsKNN',
        "graph, or 'Cora', 'CiteSeer' and 'PubMed' of PyG",
    ),
    ('root', '.data', 'folder of data sets'),
    ('path', '.data/ticket.pt', 'file of the ticket'),
    ('hidden_channels', 256, 'width of the dense model'),
    ('dropout', 0.5, 'dropout of the dense model'),
    ('narrow_dropout', 0.0, 'dropout of the narrow dense model'),
    ('weight_sparsity', 0.95, 'fraction of weights to prune'),
    ('edge_sparsity', 0.2, 'fraction of edges to prune'),
    ('method', 'fast', "search, or 'one_shot', 'imp' and 'random'"),
    ('pretrain_epochs', 60, 'epochs of the dense model'),
    ('search_epochs', 100, 'epochs in which weights move'),
    ('retrain_epochs', 100, 'epochs of the ticket'),
    ('seed', 0, 'seed of all methods'),
]


def load(name: str, root: str) -> Data:
    if name == 'DigitsKNN':
        return DigitsKNN(f'{root}/{name}')[0]
    return Planetoid(root, name, transform=NormalizeFeatures())[0]


def gcn(data: Data, hidden_channels: int, dropout: float) -> GCN:
    num_classes = int(data.y.max()) + 1
    size = (data.num_features, hidden_channels, 2, num_classes)
    return GCN(*size, dropout=dropout)


@torch.no_grad()
def test(model: torch.nn.Module, data: Data) -> Tuple[float, float]:
    """Return the accuracy on validation and test nodes."""
    pred = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    correct = (pred == data.y).float()
    val, out = correct[data.val_mask].mean(), correct[data.test_mask].mean()
    return 100 * float(val), 100 * float(out)


def train(model: GCN, data: Data, epochs: int) -> Tuple[float, float]:
    """Return the test accuracy at the best validation accuracy, and the
    seconds of the training.
    """
    start, results = time.perf_counter(), []
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.01, weight_decay=5e-4
    )
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
        if epoch % 2 == 0 or epoch == epochs:
            results.append(test(model, data))
    best = max(results, key=lambda accuracy: accuracy[0])
    return best[1], time.perf_counter() - start


def print_row(
    name: str, accuracy: float, seconds: float, model: GCN, data: Data
) -> None:
    macs = count_macs(model, data.x, data.edge_index)
    print(
        f'{name:14}{accuracy:>10.1f}{macs.num_parameters:>12,}'
        f'{data.num_edges:>10,}{macs.forward / 1e6:>10.2f}{seconds:>10.1f}'
    )


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

    data = load(args.dataset, args.root)
    seed_everything(args.seed)
    model = gcn(data, args.hidden_channels, args.dropout)
    pruner = GraphLotteryPruner(
        model,
        weight_sparsity=args.weight_sparsity,
        edge_sparsity=args.edge_sparsity,
        method=args.method,
        seed=args.seed,
        pretrain_epochs=args.pretrain_epochs,
        search_epochs=args.search_epochs,
        retrain_epochs=args.retrain_epochs,
        log=True,
    )
    start = time.perf_counter()
    ticket = pruner.fit(data)
    seconds = time.perf_counter() - start
    Path(args.path).parent.mkdir(parents=True, exist_ok=True)
    ticket.save(args.path)

    # In another process, with the file, the model and the graph:
    ticket = Ticket.load(args.path, model)
    print(ticket)
    narrow = ticket.narrow_index is not None  # Channels can be removed.
    small_model, small_data = ticket.apply(
        model, data, sparse=True, narrow=narrow
    )
    _, accuracy = test(small_model, small_data)

    print(
        f'\n{"":14}{"test [%]":>10}{"parameters":>12}{"edges":>10}'
        f'{"MMACs":>10}{"time [s]":>10}'
    )
    dense = train(model, data, args.pretrain_epochs)
    print_row('dense', *dense, model, data)
    plain_model, _ = ticket.apply(model)  # Linear layers with zeros.
    assert abs(test(plain_model, small_data)[1] - accuracy) < 0.2
    print_row('ticket', accuracy, seconds, small_model, small_data)
    width = round((1 - args.weight_sparsity) * args.hidden_channels)
    model = gcn(data, max(width, 1), args.narrow_dropout)
    epochs = args.pretrain_epochs + args.search_epochs + args.retrain_epochs
    print_row('narrow dense', *train(model, data, epochs), model, data)


if __name__ == '__main__':
    main()
