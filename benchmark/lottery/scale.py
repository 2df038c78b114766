"""Measure how the time and memory of a lottery search grow with the graph.

A GCN with two layers of 64 channels classifies the nodes of random undirected
graphs with 32 features and ten edges for each node. 1,000 nodes have labels.
The search prunes 90 % of the weights and 35 % of the edges in 14 epochs, so
that the time outside of its stages dominates.

The columns of the table are, for one process for each row,

* the CPU seconds of all stages (training and evaluation), and of the search
  outside of its stages: checks, equivalence checks, the choice of channels and
  edges, distillation targets, multiply-adds,
* the growth of the latter from row to row,
* the peak memory, of which the graph itself takes `data`.

With `--plain`, the rows show one training epoch of the model as it is written
(`outside` is not used), to compare its time and memory.
"""

import argparse
import resource
import subprocess
import sys
import time
from unittest import mock

import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCN

from benchmark import record
from torch_geometric_ext.utils import GraphLotteryPruner

HEADER = (
    f'{"nodes":>10}{"edges":>12}{"stages":>9}{"outside":>9}{"growth":>9}'
    f'{"peak":>10}{"data":>10}'
)
MODULE = 'benchmark.lottery.scale'
STAGES = ['dense', 'search', 'retrained']


def peak() -> float:
    """Return the peak memory so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_graph(num_nodes: int) -> Data:
    """Return a random graph."""
    generator = torch.Generator().manual_seed(0)
    size = (2, 5 * num_nodes)
    edge_index = torch.randint(num_nodes, size, generator=generator)
    node = torch.arange(num_nodes)
    return Data(
        x=torch.randn(num_nodes, 32, generator=generator),
        edge_index=torch.cat([edge_index, edge_index.flip(0)], dim=1),
        y=torch.randint(8, (num_nodes,), generator=generator),
        train_mask=node < 1000,
        val_mask=(node >= 1000) & (node < 2000),
    )


def measure(num_nodes: int, plain: bool) -> None:
    """Print the seconds inside and outside of stages, and the memory."""
    torch.set_num_threads(1)
    data = make_graph(num_nodes)
    before = peak()
    torch.manual_seed(0)
    model = GCN(32, 64, 2, 8, dropout=0.5)
    inside, start = 0.0, time.process_time()
    if plain:
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        inside = time.process_time() - start
    else:
        pruner = GraphLotteryPruner(
            model,
            weight_sparsity=0.9,
            edge_sparsity=0.35,
            pretrain_epochs=4,
            search_epochs=5,
            retrain_epochs=5,
            update_every=2,
        )
        with mock.patch('time.perf_counter', time.process_time):
            ticket = pruner.fit(data)
        inside = sum(ticket.seconds[name] for name in STAGES)
    outside = time.process_time() - start - inside
    print(data.num_edges, inside, outside, peak(), before)


def main() -> None:
    parser = argparse.ArgumentParser()
    sizes = [100_000, 1_000_000]
    parser.add_argument('--nodes', nargs='+', type=int, default=sizes)
    parser.add_argument('--plain', action='store_true')
    parser.add_argument('--one', action='store_true', help='in this process')
    record.add_argument(parser)
    args = parser.parse_args()
    if args.one:
        return measure(args.nodes[0], args.plain)
    print(HEADER)
    torch.set_num_threads(1)
    record.start(args.output, [0])
    last = None
    for num_nodes in args.nodes:
        options = ['--plain'] if args.plain else []
        command = [sys.executable, '-m', MODULE, '--one', *options]
        out = subprocess.run(
            [*command, '--nodes', str(num_nodes)],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        num_edges, *values = map(float, out.stdout.split())
        inside, outside, memory, before = values
        growth = f'{outside / last:.1f}x' if last else '-'
        print(
            f'{num_nodes:>10,}{num_edges:>12,.0f}{inside:>9.1f}{outside:>9.1f}'
            f'{growth:>9}{memory:>7.2f} GB{before:>7.2f} GB',
            flush=True,
        )
        record.write(
            nodes=num_nodes,
            edges=int(num_edges),
            stages=inside,
            outside=outside,
            growth=outside / last if last else None,
            peak=memory,
            data=before,
        )
        last = outside
    return None


if __name__ == '__main__':
    main()
