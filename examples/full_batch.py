"""Train a node classifier on the whole graph, plain and accelerated.

Both loops train the same model from the same weights. The accelerated loop
computes only what the loss and the validation accuracy depend on. The report
lists how.
"""

import argparse
import copy
import time
from typing import Callable, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.full_batch import StaticGraph, accelerate

MODELS = {'GCN': GCN, 'SAGE': GraphSAGE, 'GIN': GIN, 'GAT': GAT}

Forward = Callable[..., Tensor]


def load(name: str, root: str) -> Data:
    if name == 'DigitsKNN':
        return DigitsKNN(f'{root}/{name}')[0]
    return Planetoid(root, name)[0]


def train(
    model: Module, forward: Forward, data: Data, epochs: int
) -> Tuple[float, float]:
    """Return the best validation accuracy and the seconds of an epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    best, start = 0.0, time.perf_counter()
    for _ in range(epochs):
        model.train()
        optimizer.zero_grad()
        out = forward(data.train_mask)
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
        with torch.no_grad():
            model.eval()
            pred = forward(data.val_mask).argmax(dim=-1)
        correct = (pred == data.y[data.val_mask]).float().mean()
        best = max(best, 100 * float(correct))
    return best, (time.perf_counter() - start) / epochs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--dataset',
        default='DigitsKNN',
        choices=['DigitsKNN', 'Cora', 'CiteSeer', 'PubMed'],
        help='graph, of which PyG downloads all but the first',
    )
    parser.add_argument('--root', default='.data', help='folder of data sets')
    parser.add_argument(
        '--model', default='GCN', choices=list(MODELS), help='kind of layers'
    )
    parser.add_argument(
        '--hidden_channels', type=int, default=256, help='width of the model'
    )
    parser.add_argument(
        '--epochs', type=int, default=50, help='epochs of each training'
    )
    args = parser.parse_args()

    seed_everything(0)
    data = load(args.dataset, args.root)
    num_classes = int(data.y.max()) + 1
    size = (data.num_features, args.hidden_channels, 2, num_classes)
    model = MODELS[args.model](*size, dropout=0.5)
    other = copy.deepcopy(model)

    start = time.perf_counter()
    fast = accelerate(other, StaticGraph(data))
    setup = time.perf_counter() - start
    print(f'{fast.report()}\nSet up in {setup:.2f} s\n')

    def plain(mask: Tensor) -> Tensor:
        return model(data.x, data.edge_index)[mask]

    print(f'{"":12}{"validated":>10}{"ms/epoch":>10}')
    rows: List[Tuple[str, Module, Forward]] = [
        ('plain', model, plain),
        ('accelerated', other, fast),
    ]
    for name, net, forward in rows:
        accuracy, seconds = train(net, forward, data, args.epochs)
        print(f'{name:12}{accuracy:>10.1f}{1e3 * seconds:>10.1f}')


if __name__ == '__main__':
    main()
