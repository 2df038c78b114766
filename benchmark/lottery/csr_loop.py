"""Compare the time of a lottery search with the loop that a careful user
writes to train the dense model.

The loop trains a GCN of 512 channels for 200 epochs (Adam, as the search) and
validates it every second epoch, as the search does. It is written for speed:

* edges are normalized once, and aggregated by sparse matrix products (CSR)
  forward and backward,
* features are a CSR matrix too, and their transpose is at hand for gradients,
* the first layer multiplies before it aggregates: the aggregated features hold
  about ten times as many nonzero values (the loop picks the cheaper way by
  their number).

The columns of the table are

* the CPU seconds of the loop and of the search, whole calls on one thread,
  interleaved, as medians over repetitions,
* the ratio of both,
* the seconds of each part of the search (wall time of the last repetition),
* the test accuracies at the best validation accuracy.
"""

import argparse
import copy
import resource
import statistics
import time
from typing import Any, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from benchmark import record
from benchmark.lottery.lottery import accuracy, load, network, pair
from torch_geometric_ext.utils import GraphLotteryPruner

HEADER = (
    f'{"set":<10}{"weights":>8}{"edges":>8}{"loop":>9}{"search":>9}'
    f'{"ratio":>8}{"test":>7}{"ticket":>8}  parts'
)


class Product(torch.autograd.Function):
    """The product of a constant sparse matrix, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, other: Tensor) -> Tensor:
        ctx.transpose = other
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.transpose @ grad, None, None


def both(matrix: Tensor) -> Tuple[Tensor, Tensor]:
    """Return a CSR matrix and its transpose."""
    return matrix, matrix.t().to_sparse_csr()


def train_loop(model: Module, data: Data, num_epochs: int) -> Module:
    """Return the trained model at its best validation accuracy."""
    num_nodes = data.num_nodes
    (row, col), weight = gcn_norm(data.edge_index, None, num_nodes)
    adj = torch.sparse_coo_tensor(
        torch.stack([col, row]), weight, (num_nodes, num_nodes)
    ).to_sparse_csr()
    edges = both(adj)
    features = data.x.to_sparse_csr()
    aggregated = adj @ features
    num_values = [x.values().numel() for x in [adj, features, aggregated]]
    is_cached = num_values[2] <= num_values[0] + num_values[1]
    x = both(aggregated if is_cached else features)
    del aggregated, features
    out = copy.deepcopy(model)
    convs: Any = out.convs
    first, second = convs
    optimizer = torch.optim.Adam(out.parameters(), lr=0.01, weight_decay=5e-4)

    def forward() -> Tensor:
        h = Product.apply(first.lin.weight.t(), *x)
        if not is_cached:
            h = Product.apply(h, *edges)
        h = F.dropout((h + first.bias).relu(), 0.5, out.training)
        return Product.apply(second.lin(h), *edges) + second.bias

    train, y = data.train_mask, data.y
    best, state = -1.0, out.state_dict()
    for epoch in range(1, num_epochs + 1):
        out.train()
        optimizer.zero_grad()
        F.cross_entropy(forward()[train], y[train]).backward()
        optimizer.step()
        if epoch % 2 == 0:
            out.eval()
            with torch.no_grad():
                pred = forward()[data.val_mask].argmax(dim=-1)
            metric = float((pred == y[data.val_mask]).float().mean())
            if metric > best:
                best, state = metric, copy.deepcopy(out.state_dict())
    out.load_state_dict(state)
    return out


def compare(
    name: str, data: Data, sizes: Tuple[float, float], args: Any
) -> None:
    """Print a row of the table."""
    seconds: List[List[float]] = [[], []]
    for i in range(args.repeats):
        torch.manual_seed(i)
        model = network('GCN', data)
        start = time.process_time()
        dense = train_loop(model, data, round(200 * args.fraction))
        seconds[0].append(time.process_time() - start)
        start = time.process_time()
        ticket = GraphLotteryPruner(
            model,
            weight_sparsity=sizes[0],
            edge_sparsity=sizes[1],
            pretrain_epochs=round(60 * args.fraction),
            search_epochs=round(100 * args.fraction),
            retrain_epochs=round(100 * args.fraction),
            seed=i,
        ).fit(data)
        seconds[1].append(time.process_time() - start)
    small, graph = ticket.apply(model, data)
    tests = [
        accuracy(dense, data, data.test_mask),
        accuracy(small, graph, graph.test_mask),
    ]
    loop, search = (statistics.median(x) for x in seconds)
    parts = ', '.join(f'{k} {x:.1f}' for k, x in ticket.seconds.items())
    print(
        f'{name:<10}{sizes[0]:>8.1%}{sizes[1]:>8.1%}{loop:>9.1f}'
        f'{search:>9.1f}{loop / search:>7.2f}x{tests[0]:>7.1f}{tests[1]:>8.1f}'
        f'  {parts}',
        flush=True,
    )
    record.write(
        data_set=name,
        weights=sizes[0],
        edges=sizes[1],
        loop=loop,
        search=search,
        ratio=loop / search,
        test=tests[0],
        ticket=tests[1],
        parts=ticket.seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', default='.data')
    parser.add_argument('--datasets', nargs='+', default=['Physics'])
    parser.add_argument(
        '--grid',
        nargs='+',
        type=pair,
        default=[(0.98, 0), (0.98, 0.65), (0, 0.35)],
        help='weight and edge sparsities, such as 0.98,0.35',
    )
    parser.add_argument('--repeats', type=int, default=1)
    parser.add_argument(
        '--fraction', type=float, default=1.0, help='of all epochs'
    )
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER)
    record.start(args.output, range(args.repeats))
    for name in args.datasets:
        data = load(args.root, name)
        for sizes in args.grid:
            compare(name, data, sizes, args)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'peak memory: {memory:.2f} GB')
    record.write(part='process', gigabytes=memory)


if __name__ == '__main__':
    main()
