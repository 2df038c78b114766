"""Time GCN layers that propagate by messages and by sparse products.

Compares, in one process and one step of each in turn:

* GCNConv: `torch_geometric.nn.GCNConv`,
* by hand: a dense layer and `torch.sparse` matrices in CSR format, one for the
  forward and one for the backward pass, which keep the normalized graph,
* 0 %, 90 %: `MaskedGCNConv` of these sparsities.

A step is the forward pass and the gradients of weights and, in layers after
the first one, of features. Layers cache the graph, or (`cached: no`) normalize
it in each step, which `by hand` never does. Prints medians of the CPU time in
milliseconds, and ratios of GCNConv to the others.

Part `sizes` prints ratios of messages to products that sort random edges in
each step, which tell `MIN_CHANNELS` and `MIN_MESSAGES` of `MaskedGCNConv`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Amazon, Coauthor, Planetoid
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from benchmark import record
from torch_geometric_ext.nn import MaskedGCNConv
from torch_geometric_ext.nn.conv import masked_gcn_conv

DATASETS = {
    'PubMed': (Planetoid, 'Planetoid'),
    'Photo': (Amazon, 'Amazon'),
    'Computers': (Amazon, 'Amazon'),
    'CS': (Coauthor, 'Coauthor'),
    'Physics': (Coauthor, 'Coauthor'),
}
# Inputs (of hidden layers; 0: the features of the graph) and outputs:
SIZES = [(0, 128), (128, 128), (128, 8), (16, 128)]


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, adj: Tensor, adj_t: Tensor) -> Tensor:
        ctx.adj_t = adj_t
        return adj @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.adj_t @ grad, None, None


class ByHand(torch.nn.Module):
    def __init__(self, data: Data, in_channels: int, channels: int) -> None:
        super().__init__()
        self.lin = torch.nn.Linear(in_channels, channels, bias=False)
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        size = data.num_nodes, data.num_nodes
        index, weight = gcn_norm(data.edge_index, num_nodes=data.num_nodes)
        adj = torch.sparse_coo_tensor(index.flip(0), weight, size)
        self.adj = adj.to_sparse_csr()
        self.adj_t = adj.t().to_sparse_csr()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return Product.apply(self.lin(x), self.adj, self.adj_t) + self.bias


def time_in_turn(
    runs: Dict[str, Callable[[], None]], num_rounds: int
) -> Dict[str, float]:
    """Return the median CPU time of each run in milliseconds."""
    times: Dict[str, List[float]] = {name: [] for name in runs}
    for _ in range(num_rounds + 2):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(x[2:]) for name, x in times.items()}


def make_step(conv: Any, x: Tensor, data: Data) -> Callable[[], None]:
    def step() -> None:
        conv(x, data.edge_index).sum().backward()

    return step


def compare_layers(data: Data, name: str, num_rounds: int) -> None:
    for in_channels, channels in SIZES:
        x = data.x
        if in_channels > 0:
            x = torch.randn(data.num_nodes, in_channels, requires_grad=True)
        sizes = x.size(1), channels
        for cached in [True, False]:
            convs = {
                'GCNConv': GCNConv(*sizes, cached=cached),
                'by hand': ByHand(data, *sizes),
                '0 %': MaskedGCNConv(*sizes, cached=cached, sparsity=0.0),
                '90 %': MaskedGCNConv(*sizes, cached=cached, sparsity=0.9),
            }
            runs = {
                key: make_step(conv, x, data) for key, conv in convs.items()
            }
            found = time_in_turn(runs, num_rounds)
            cells = ''.join(f'{ms:>9.1f}' for ms in found.values())
            ratios = ''.join(
                f'{found["GCNConv"] / ms:>8.2f}x'
                for ms in list(found.values())[1:]
            )
            print(
                f'{name:10}{sizes[0]:>6}{channels:>5}'
                f'{"yes" if cached else "no":>8}{cells}{ratios}',
                flush=True,
            )
            keys = ['gcn_conv', 'by_hand', 'dense', 'sparse']
            record.write(
                part='layers',
                data_set=name,
                inputs=sizes[0],
                outputs=channels,
                cached=cached,
                **dict(zip(keys, found.values())),
            )


def compare_sizes(num_rounds: int) -> None:
    print('\nmessages to products that sort the edges, forward and backward')
    print('(forward only); *: `MaskedGCNConv` chooses the product')
    columns = [16, 32, 64, 128]
    print(f'{"edges":>8}' + ''.join(f'{x:>18}' for x in columns))
    chosen = masked_gcn_conv.MIN_CHANNELS, masked_gcn_conv.MIN_MESSAGES
    for num_edges in [1000, 10000, 100000, 1000000]:
        num_nodes = num_edges // 4
        edge_index = torch.randint(num_nodes, (2, num_edges))
        cells = ''
        for channels in columns:
            cells += ' '
            row: Dict[str, Any] = {'edges': num_edges, 'channels': channels}
            for grad in [True, False]:
                x = torch.randn(num_nodes, channels, requires_grad=grad)
                # As many as MaskedGCNConv counts, with its self-loops:
                size = (num_edges + num_nodes) * channels
                wins = channels >= chosen[0] and size >= chosen[1][grad]
                ratio = time_size(x, edge_index, channels, num_rounds)
                cell = f'{ratio:.2f}{"*" if wins else " "}'
                cells += f'{cell:>9}' if grad else f' ({cell})'
                key = 'step' if grad else 'forward'
                row.update({key: ratio, f'{key}_chosen': wins})
            record.write(part='products', **row)
        print(f'{num_edges:>8}{cells}', flush=True)
    masked_gcn_conv.MIN_CHANNELS, masked_gcn_conv.MIN_MESSAGES = chosen


def time_size(
    x: Tensor, edge_index: Tensor, channels: int, num_rounds: int
) -> float:
    conv = MaskedGCNConv(channels, channels, sparsity=0.9)
    conv.requires_grad_(x.requires_grad)

    def make_run(least: int) -> Callable[[], None]:
        def run() -> None:
            masked_gcn_conv.MIN_CHANNELS = min(least, channels)
            masked_gcn_conv.MIN_MESSAGES = {True: least, False: least}
            with torch.set_grad_enabled(x.requires_grad):
                out = conv(x, edge_index).sum()
            if x.requires_grad:
                out.backward()

        return run

    runs = {'messages': make_run(1 << 60), 'products': make_run(0)}
    found = time_in_turn(runs, num_rounds)
    return found['messages'] / found['products']


def cpu_name() -> str:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return 'unknown CPU'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', default='.data')
    parser.add_argument('--datasets', nargs='+', default=['PubMed'])
    parser.add_argument('--num_rounds', type=int, default=7)
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record.start(args.output, [0])
    torch.manual_seed(0)
    print(f'# {cpu_name()}, 1 thread, PyTorch {torch.__version__}')
    head = ''.join(f'{x:>9}' for x in ['GCNConv', 'by hand', '0 %', '90 %'])
    print(f'{"data set":12}in  out  cached{head}{"ratios":>11}')
    for name in args.datasets:
        cls, folder = DATASETS[name]
        data = cls(str(Path(args.root) / folder), name)[0]
        print(f'{name}: {data.num_nodes} nodes, {data.num_edges} edges')
        compare_layers(data, name, args.num_rounds)
    compare_sizes(args.num_rounds)


if __name__ == '__main__':
    main()
