"""Measure the time of a sampled edge.

Compares `NeighborSampler` with what one would write by hand in PyTorch: all
neighbors of a hop get random keys, a sort by node and key leaves the first
ones, and an array of all nodes numbers those that `torch.unique` finds.
Mini-batches have 1,024 random seed nodes; methods alternate. Columns: the
number of sampled edges of a mini-batch, the median CPU milliseconds, the
nanoseconds of an edge, and the ratio to `NeighborSampler`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Coauthor, Planetoid
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.utils import cumsum

from benchmark import record
from torch_geometric_ext.loader import NeighborSampler

SIZES = [[10, 10], [25, 10], [15, 10, 5], [-1, -1]]


class ByHand:
    """Sample neighbors by a sort of random keys."""

    def __init__(self, data: Data, num_neighbors: List[int]) -> None:
        self.col, self.perm = data.edge_index[1].sort()
        self.row = data.edge_index[0][self.perm]
        self.ptr = cumsum(torch.bincount(self.col, minlength=data.num_nodes))
        self.num_neighbors = num_neighbors
        self.position = torch.full((data.num_nodes,), -1)

    def sample(self, seed: Tensor) -> Tuple[Tensor, Tensor]:
        frontier, nodes, edges = seed, [seed], []
        self.position[seed] = torch.arange(seed.numel())
        num_nodes = seed.numel()
        for size in self.num_neighbors:
            start = self.ptr[frontier]
            count = self.ptr[frontier + 1] - start
            first = cumsum(count)[:-1]
            target = torch.arange(count.numel()).repeat_interleave(count)
            edge = torch.arange(target.numel()) + (start - first)[target]
            if size >= 0:
                key = target + torch.rand(target.numel(), dtype=torch.double)
                rank = torch.arange(target.numel()) - first[target]
                edge = edge[key.argsort()[rank < size]]
            edges.append(edge)
            source = self.row[edge]
            frontier = source[self.position[source] < 0].unique()
            end = num_nodes + frontier.numel()
            self.position[frontier] = torch.arange(num_nodes, end)
            nodes.append(frontier)
            num_nodes = end
        edge = torch.cat(edges)
        ends = torch.stack([self.row[edge], self.col[edge]])
        edge_index = self.position[ends]
        self.position[torch.cat(nodes)] = -1
        return edge_index, self.perm[edge]


def measure(name: str, data: Data, sizes: List[int], rounds: int) -> None:
    sampler, by_hand = NeighborSampler(data, sizes), ByHand(data, sizes)
    methods = {
        'NeighborSampler': lambda seed: sampler.sample_from_nodes(
            NodeSamplerInput(None, seed)
        ),
        'by hand': by_hand.sample,
    }
    times: Dict[str, List[float]] = {key: [] for key in methods}
    num_edges = []
    for _ in range(rounds):
        seed = torch.randperm(data.num_nodes)[:1024]
        for key, method in methods.items():
            start = time.process_time()
            out = method(seed)
            times[key].append(time.process_time() - start)
        num_edges.append(out[1].numel())
    edges, ours = statistics.mean(num_edges), times['NeighborSampler']
    for key, seconds in times.items():
        median = statistics.median(seconds)
        ratio = statistics.median(x / y for x, y in zip(seconds, ours))
        print(
            f'{name:<9}{str(sizes):<13}{key:<17}{edges:>8.0f}'
            f'{1e3 * median:>8.2f}{1e9 * median / edges:>9.0f}{ratio:>8.2f}x'
        )
        record.write(
            data_set=name,
            neighbors=sizes,
            method=key,
            edges=edges,
            milliseconds=1e3 * median,
            nanoseconds_an_edge=1e9 * median / edges,
            ratio=ratio,
        )


def machine() -> str:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return 'unknown CPU'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', required=True)
    parser.add_argument('--rounds', type=int, default=50)
    parser.add_argument('--threads', type=int, default=1)
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record.start(args.output)
    print(f'{machine()}, {args.threads} thread, PyTorch {torch.__version__}')
    print('set      neighbors    method              edges      ms  ns/edge')
    for name, data in [
        ('PubMed', Planetoid(f'{args.root}/Planetoid', 'PubMed')[0]),
        ('Physics', Coauthor(f'{args.root}/Coauthor', 'Physics')[0]),
    ]:
        data = Data(edge_index=data.edge_index, num_nodes=data.num_nodes)
        for sizes in SIZES:
            measure(name, data, sizes, args.rounds)


if __name__ == '__main__':
    main()
