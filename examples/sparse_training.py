"""Train a dense and a sparse GraphSAGE on handwritten digits.

Two lines make an existing model sparse: `sparsify` replaces its linear layers
with sparse ones, and `RigL` drops and grows their weights during training. The
rest of the training loop does not change.
"""

import argparse
import time
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import densify, sparsify
from torch_geometric_ext.sparsity import RigL
from torch_geometric_ext.utils import count_macs


def train(
    model: torch.nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    step: Optional[Callable] = None,
) -> float:
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)[data.train_mask]
    loss = F.cross_entropy(out, data.y[data.train_mask])
    loss.backward()
    optimizer.step()
    if step is not None:
        step()
    return float(loss.detach())


@torch.no_grad()
def test(model: torch.nn.Module, data: Data) -> float:
    model.eval()
    pred = model(data.x, data.edge_index).argmax(dim=-1)
    correct = (pred == data.y)[data.test_mask]
    return 100 * float(correct.float().mean())


def run(sparsity: float, data: Data, args: argparse.Namespace) -> None:
    seed_everything(0)
    model = GraphSAGE(
        data.num_features,
        args.hidden_channels,
        num_layers=3,
        out_channels=int(data.y.max()) + 1,
        dropout=0.5,
    )
    scheduler = None
    if sparsity > 0:
        sparsify(model, sparsity)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    if sparsity > 0:
        scheduler = RigL(
            model, optimizer, num_steps=args.epochs, update_every=5
        )
    macs = count_macs(model, data.x, data.edge_index, optimizer=optimizer)

    seconds = 0.0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        step = None if scheduler is None else scheduler.step
        loss = train(model, data, optimizer, step)
        seconds += time.perf_counter() - start
        if epoch % 20 == 0 or epoch == args.epochs:
            accuracy = test(model, data)
            print(f'Epoch: {epoch:03d}, Loss: {loss:.4f}, {accuracy:.1f} %')

    explored = '' if scheduler is None else f'{scheduler.explored:.0%} of all'
    print(
        f'Sparsity {sparsity:.0%}: {macs.num_parameters:,} parameters'
        f'{explored and f" ({explored} explored)"}, '
        f'{macs.training / 1e9:.2f} GMACs and '
        f'{1000 * seconds / args.epochs:.1f} ms a step'
    )
    if sparsity > 0:  # Convert to a plain PyG model for deployment.
        expected = test(model, data)
        assert abs(test(densify(model), data) - expected) < 0.2
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data/DigitsKNN')
    parser.add_argument('--hidden_channels', type=int, default=512)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--lr', type=float, default=0.005)
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=[0, 0.9, 0.95]
    )
    args = parser.parse_args()

    data = DigitsKNN(args.root)[0]
    for sparsity in args.sparsities:
        run(sparsity, data, args)


if __name__ == '__main__':
    main()
