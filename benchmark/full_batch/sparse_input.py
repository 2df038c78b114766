"""Time products of sparse features and a dense weight.

Compares forward and backward passes (of the weight alone, since features need
no gradient) of `torch.nn.functional.linear` and of `SparseInput` in turn, over
densities and over sizes of the blocks of its backward pass. Prints the ratio
of medians of the CPU time, above one where the sparse product is faster.
"""

import argparse
import statistics
import time
from typing import Callable, Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.full_batch import sparse_input
from torch_geometric_ext.full_batch.sparse_input import SparseInput
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--num_rounds', type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f'# {cpu_model()}, 1 thread, PyTorch {torch.__version__}')
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


if __name__ == '__main__':
    main()
