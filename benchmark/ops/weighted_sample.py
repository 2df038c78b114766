"""Time weighted sampling without replacement against rivals.

Each method draws half of N positions and its own noise. `torch.multinomial`
supports at most 2^24 categories.
"""

import argparse
import time
from typing import Callable, Dict

import numpy as np
import torch
from torch import Tensor

import torch_geometric_ext.typing
from torch_geometric_ext.ops import weighted_sample
from torch_geometric_ext.ops.weighted_sample import weighted_sample_reference


def reference(weight: Tensor, num_samples: int) -> Tensor:
    noise = torch.empty(weight.numel(), dtype=torch.double).exponential_()
    return weighted_sample_reference(weight, noise, num_samples)


def gumbel_top_k(weight: Tensor, num_samples: int) -> Tensor:
    noise = (
        -torch.empty(weight.numel(), dtype=torch.double).exponential_().log()
    )
    return (weight.log() + noise).topk(num_samples, sorted=False).indices


def numpy_choice(weight: Tensor, num_samples: int) -> np.ndarray:
    p = weight.double().numpy()
    generator = np.random.default_rng(0)
    return generator.choice(len(p), num_samples, replace=False, p=p / p.sum())


RIVALS: Dict[str, Callable] = {
    'kernel': weighted_sample,
    'reference': reference,
    'Gumbel + topk': gumbel_top_k,
    'torch.multinomial': torch.multinomial,
    'numpy choice': numpy_choice,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=[10**4, 10**6, 10**7]
    )
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    args = parser.parse_args()

    if not torch_geometric_ext.typing.WITH_EXT:
        raise SystemExit('the kernels are not installed')
    print(f'half of N positions, PyTorch {torch.__version__}')
    print(f'{"threads":8}{"N":>12}  {"":20}{"ms":>10}{"to kernel":>12}')
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in args.sizes:
            weight = torch.rand(size) + 1e-3
            baseline = None
            for name, func in RIVALS.items():
                seconds = []
                for _ in range(5):
                    start = time.perf_counter()
                    func(weight, size // 2)
                    seconds.append(time.perf_counter() - start)
                median = sorted(seconds)[2]
                baseline = baseline or median
                print(
                    f'{threads:<8}{size:>12,}  {name:20}{1e3 * median:>10.2f}'
                    f'{median / baseline:>11.1f}x',
                    flush=True,
                )


if __name__ == '__main__':
    main()
