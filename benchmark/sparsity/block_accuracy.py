"""Measure the accuracy of GCNs whose weights form blocks.

Trains two-layer GCNs on the public splits of Cora, CiteSeer and PubMed with a
fixed pattern ("static") and with RigL, for block sizes of 1, 8, 16 and 32.
Prints the test accuracy at the best validation accuracy (mean and standard
deviation over seeds), and the sparsity of the model, which is rounded to whole
blocks.

The first propagation depends on no weight. The second one and both products
are computed for the nodes that a loss or an accuracy reads, which changes no
result.
"""

import argparse
import statistics
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from benchmark import record
from torch_geometric_ext.nn import sparsify, sparsity_summary
from torch_geometric_ext.sparsity import RigL

BLOCK_SIZES = [1, 8, 16, 32]


class Part(NamedTuple):
    """Some nodes, and what their outputs read."""

    x: Tensor  # Propagated features of their neighbors.
    weight: Tensor  # Normalized edges from their neighbors.
    y: Tensor


def select(data: Data, nodes: Tensor) -> Part:
    edge_index, norm = gcn_norm(data.edge_index, None, data.num_nodes)
    size = (data.num_nodes, data.num_nodes)
    adj = torch.sparse_coo_tensor(edge_index.flip(0), norm, size).coalesce()
    x = adj @ data.x
    rows = adj.index_select(0, nodes).coalesce()
    neighbors, col = rows.indices()[1].unique(return_inverse=True)
    index = torch.stack([rows.indices()[0], col])
    shape = (nodes.numel(), neighbors.numel())
    weight = torch.sparse_coo_tensor(index, rows.values(), shape)
    return Part(x[neighbors], weight.to_sparse_csr(), data.y[nodes])


def run(model: GCN, part: Part) -> Tensor:
    first, second = model.convs  # As the model computes it.
    h = model.act(first.lin(part.x) + first.bias)
    return part.weight @ second.lin(model.dropout(h)) + second.bias


def train(
    parts: List[Part],
    sparsity: float,
    block_size: Optional[int],
    moves: bool,
    seed: int,
    args: argparse.Namespace,
) -> Tuple[float, float]:
    """Return the test accuracy and the sparsity."""
    torch.manual_seed(seed)
    model = GCN(
        parts[0].x.size(1),
        args.hidden,
        num_layers=2,
        out_channels=int(parts[2].y.max()) + 1,
        dropout=0.5,
    )
    if block_size is not None:
        sparsify(model, sparsity, seed=seed, block_size=block_size)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=args.lr, weight_decay=5e-4
    )
    scheduler = None
    if moves:
        scheduler = RigL(
            model, optimizer, num_steps=args.epochs, update_every=10
        )
    best = (-1.0, 0.0)
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(run(model, parts[0]), parts[0].y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if epoch % 10 == 9:
            model.eval()
            with torch.no_grad():
                out = [run(model, part).argmax(1) for part in parts[1:]]
            correct = [
                100 * (x == part.y).float().mean().item()
                for x, part in zip(out, parts[1:])
            ]
            if correct[0] > best[0]:
                best = (correct[0], correct[1])
    return best[1], sparsity_summary(model).sparsity


def report(
    parts: List[Part],
    sparsity: float,
    block_size: Optional[int],
    moves: bool,
    args: argparse.Namespace,
) -> Dict[str, float]:
    """Return the mean and deviation of the accuracy, and the sparsity."""
    results = [
        train(parts, sparsity, block_size, moves, seed, args)
        for seed in range(args.seeds)
    ]
    accuracy, removed = zip(*results)
    return {
        'test': statistics.mean(accuracy),
        'deviation': statistics.stdev(accuracy) if args.seeds > 1 else 0.0,
        'zero_blocks': statistics.mean(removed),
    }


def write(
    data_set: str,
    sparsity: float,
    method: str,
    block_size: int,
    found: Dict[str, float],
) -> str:
    """Record a result, and return its cell of the table."""
    record.write(
        data_set=data_set,
        sparsity=sparsity,
        method=method,
        block_size=block_size,
        **found,
    )
    return (
        f'{found["test"]:5.1f} ± {found["deviation"]:3.1f} '
        f'({found["zero_blocks"]:5.1%})'
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', required=True)
    parser.add_argument('--hidden', type=int, default=128)
    parser.add_argument('--lr', type=float, default=0.01)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=[0.9, 0.95, 0.98]
    )
    parser.add_argument(
        '--datasets', nargs='+', default=['Cora', 'CiteSeer', 'PubMed']
    )
    parser.add_argument('--skip_dense', action='store_true')
    record.add_argument(parser)
    args = parser.parse_args()
    record.start(args.output, range(args.seeds))
    for name in args.datasets:
        root, transform = f'{args.root}/Planetoid', T.NormalizeFeatures()
        data = Planetoid(root, name, transform=transform)[0]
        masks = [data.train_mask, data.val_mask, data.test_mask]
        parts = [select(data, mask.nonzero().flatten()) for mask in masks]
        dense = ''
        if not args.skip_dense:
            found = report(parts, 0.0, None, False, args)
            dense = f'dense {write(name, 0.0, "dense", 1, found)}, '
        print(f'\n{name}: {dense}{args.seeds} seeds')
        print(
            f'{"":16}'
            + ''.join(f'{f"blocks of {x}":>21}' for x in BLOCK_SIZES)
        )
        for sparsity in args.sparsities:
            for moves, method in [(False, 'static'), (True, 'RigL')]:
                print(f'{sparsity:7.0%} {method:8}', end='')
                for size in BLOCK_SIZES:
                    found = report(parts, sparsity, size, moves, args)
                    cell = write(name, sparsity, method, size, found)
                    print(f'{cell:>21}', end='', flush=True)
                print()


if __name__ == '__main__':
    main()
