"""Time ways to aggregate hidden features on a static graph.

Compares, in turn, the forward and backward pass of

* messages: gather and scatter, as PyG passes messages,
* EdgeIndex: `torch_geometric.EdgeIndex.matmul`, sorted, with filled caches,
* torch CSR: `torch.sparse` matrices of both directions (`Adjacency.matmul`),
* kernel: `csr_matmul`, whose values may change in each step.

Values are constant, but those of `kernel`, and with several heads those of
`messages`, get gradients, as the values of attention do. Prints medians of the
CPU time in milliseconds, on random edges as many as those of known graphs.
"""

import argparse
import statistics
import time
from typing import Callable, Dict, List

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import scatter

from torch_geometric_ext.full_batch.adjacency import Adjacency
from torch_geometric_ext.ops.machine import cpu_model

# Nodes, edges, heads and channels of a head:
SIZES = [
    (2708, 13264, 1, 512),
    (2708, 13264, 8, 64),
    (19717, 108365, 1, 64),
    (19717, 108365, 1, 512),
    (19717, 108365, 8, 8),
    (19717, 108365, 8, 64),
    (34493, 530417, 1, 64),
    (34493, 530417, 8, 8),
]


def ways(
    num_nodes: int, num_edges: int, heads: int, channels: int
) -> Dict[str, Callable[[Tensor], Tensor]]:
    edge_index = torch.randint(num_nodes, (2, num_edges))
    value = torch.rand(num_edges, heads)
    adj = Adjacency(edge_index, value[:, 0], num_nodes)
    row, col = edge_index
    changing = value.clone().requires_grad_()

    def messages(x: Tensor) -> Tensor:
        x_j = x.view(num_nodes, heads, channels)[row]
        factor = value if heads == 1 else changing
        return scatter(factor.unsqueeze(-1) * x_j, col, 0, num_nodes)

    def kernel(x: Tensor) -> Tensor:
        return adj.weighted_matmul(
            changing, x.view(num_nodes, heads, channels)
        )

    out: Dict[str, Callable[[Tensor], Tensor]] = {'messages': messages}
    if heads == 1:
        size = (num_nodes, num_nodes)
        index, perm = EdgeIndex(edge_index, sparse_size=size).sort_by('col')
        index.fill_cache_()
        weight = value[perm, 0]
        out['EdgeIndex'] = lambda x: index.matmul(x, weight, transpose=True)
        out['torch CSR'] = adj.matmul
    out['kernel'] = kernel
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--num_rounds', type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f'# {cpu_model()}, 1 thread, PyTorch {torch.__version__}')
    names = ['messages', 'EdgeIndex', 'torch CSR', 'kernel']
    head = ''.join(f'{name:>11}' for name in names)
    print(f'{"nodes":>8}{"edges":>8}{"heads":>7}{"channels":>10}{head}')
    for size in SIZES:
        x = torch.randn(size[0], size[2] * size[3], requires_grad=True)
        times: Dict[str, List[float]] = {}
        runs = ways(*size)
        for _ in range(args.num_rounds):
            for name, run in runs.items():
                start = time.process_time()
                run(x).sum().backward()
                seconds = time.process_time() - start
                times.setdefault(name, []).append(1e3 * seconds)
        cells = ''.join(
            f'{statistics.median(times[name]):>11.1f}'
            if name in times
            else f'{"-":>11}'
            for name in names
        )
        nodes, edges, heads, channels = size
        print(
            f'{nodes:>8}{edges:>8}{heads:>7}{channels:>10}{cells}', flush=True
        )


if __name__ == '__main__':
    main()
