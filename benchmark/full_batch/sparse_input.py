"""Time products of sparse features and a dense weight.

Compares forward and backward passes (of the weight alone, since features need
no gradient) of `torch.nn.functional.linear` and of `SparseInput` in turn, over
densities and over sizes of the blocks of its backward pass. Prints the ratio
of medians of the CPU time, above one where the sparse product is faster.

With `--aggregate`, it does so for the aggregation of sparse features along
random edges, over numbers of edges for each node.
"""

import argparse
import statistics
import time
from typing import Callable, Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.full_batch import aggregated_input, sparse_input
from torch_geometric_ext.full_batch.sparse_input import SparseInput
from torch_geometric_ext.ops.csr_product import csr_matrix
from torch_geometric_ext.ops.machine import cpu_model

SIZES = [
    (2708, 1433, 64),
    (2708, 1433, 512),
    (19717, 500, 64),
    (19717, 500, 512),
    (34493, 2048, 128),
]
DENSITIES = [0.01, 0.05, 0.1, 0.15, 0.2]
BLOCK_SIZES = [512, 2048, 8192, 1 << 30]
AGGREGATED_SIZES = [(2708, 1433), (4096, 4096), (16384, 8192)]
AGGREGATED_DENSITIES = [0.002, 0.004, 0.008, 0.016, 0.032]
DEGREES = [4, 16]


def medians(
    runs: Dict[int, Callable[[], None]], num_rounds: int
) -> Dict[int, float]:
    times: Dict[int, List[float]] = {key: [] for key in runs}
    for i in range(num_rounds + 1):
        for key, run in runs.items():
            start = time.process_time()
            run()
            if i > 0:  # The first round warms up.
                times[key].append(time.process_time() - start)
    return {key: statistics.median(x) for key, x in times.items()}


def dense_product(x: Tensor, weight: Tensor) -> Callable[[], None]:
    return lambda: F.linear(x, weight).sum().backward()


def sparse_product(x: Tensor, weight: Tensor, size: int) -> Callable[[], None]:
    sparse_input.BLOCK_SIZE = size
    found = SparseInput(x)
    assert len(found.transposed_blocks) == -(-len(x) // size)

    def run() -> None:
        sparse_input.BLOCK_SIZE = size
        found.matmul(weight.t()).sum().backward()

    return run


def aggregation(
    found: SparseInput, edges: Tensor, max_density: float
) -> Callable[[], None]:
    def run() -> None:
        aggregated_input.MAX_PRODUCT_DENSITY = max_density
        aggregated_input.aggregate_sparse(found, edges)

    return run


def aggregate(num_rounds: int) -> None:
    """Print the table of aggregations."""
    head = ''.join(f'{x:>8}' for x in DEGREES)
    print(f'{"rows x features":<18} density{head}')
    for num_rows, num_features in AGGREGATED_SIZES:
        for density in AGGREGATED_DENSITIES:
            x = torch.rand(num_rows, num_features)
            x = x.masked_fill(torch.rand_like(x) >= density, 0)
            found, ratios = SparseInput(x), ''
            for degree in DEGREES:
                source = torch.randint(num_rows, (num_rows * degree,))
                ptr = degree * torch.arange(num_rows + 1)
                value = torch.rand(source.numel())
                edges = csr_matrix(ptr, source, value, num_rows)
                runs = {i: aggregation(found, edges, i) for i in [0, 1]}
                times = medians(runs, num_rounds)
                ratios += f'{times[0] / times[1]:8.2f}'
            shape = f'{num_rows} x {num_features}'
            print(f'{shape:<18}{density:8.3f}{ratios}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--num_rounds', type=int, default=5)
    parser.add_argument(
        '--aggregate',
        action='store_true',
        help='time the aggregation of features instead of products',
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f'# {cpu_model()}, 1 thread, PyTorch {torch.__version__}')
    if args.aggregate:
        return aggregate(args.num_rounds)
    names = ['whole' if x == 1 << 30 else x for x in BLOCK_SIZES]
    head = ''.join(f'{x:>8}' for x in names)
    print(f'{"rows x features x outputs":<26} density{head}')
    for num_rows, in_channels, out_channels in SIZES:
        weight = torch.randn(out_channels, in_channels, requires_grad=True)
        for density in DENSITIES:
            x = torch.rand(num_rows, in_channels)
            x = x.masked_fill(torch.rand_like(x) >= density, 0)
            runs = {0: dense_product(x, weight)}
            for size in BLOCK_SIZES:
                runs[size] = sparse_product(x, weight, size)
            times = medians(runs, args.num_rounds)
            ratios = ''.join(
                f'{times[0] / times[x]:8.2f}' for x in BLOCK_SIZES
            )
            shape = f'{num_rows} x {in_channels} x {out_channels}'
            print(f'{shape:<26}{density:8.2f}{ratios}', flush=True)
    return None


if __name__ == '__main__':
    main()
