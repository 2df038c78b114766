"""Time the prototype losses against plain PyTorch.

A step is the forward and the backward pass: losses, scores, and the gradients
of embeddings, projector and prototypes. Steps run in a loop of their own,
hence on warm caches. Prints medians. `benchmark/loader/overhead.py` measures
the cost within training.
"""

import argparse
import time
from typing import Callable, List

import torch
from torch import Tensor

import torch_geometric_ext.typing
from torch_geometric_ext.ops import prototype_loss
from torch_geometric_ext.ops.prototype_loss import prototype_loss_reference

SHAPES = [(32, 2), (128, 2), (32, 10), (128, 10), (128, 100)]


def step(op: Callable, inputs: List[Tensor], y: Tensor) -> None:
    for x in inputs:
        x.grad = None
    h, *parameters = inputs
    op(h, y, *parameters, 0.1, 0.1, 0.1)[0].backward()


def median_time(op: Callable, inputs: List[Tensor], y: Tensor) -> float:
    seconds = []
    for i in range(330):
        start = time.perf_counter()
        step(op, inputs, y)
        if i >= 30:  # Warm-up.
            seconds.append(time.perf_counter() - start)
    return 1e6 * sorted(seconds)[len(seconds) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    args = parser.parse_args()

    if not torch_geometric_ext.typing.WITH_EXT:
        raise SystemExit('the kernels are not installed')

    print(f'in_channels 64, embedding_dim 32, PyTorch {torch.__version__}')
    print(f'{"[us]":35}{"kernel":>7}{"PyTorch":>18}{"compiled":>18}')
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch_size, num_classes in SHAPES:
            torch.manual_seed(0)
            sizes = [
                (batch_size, 64),
                (32, 64),
                (32, 32),
                (num_classes, 2, 32),
            ]
            inputs = [torch.randn(*x, requires_grad=True) for x in sizes]
            y = torch.randint(num_classes, (batch_size,))
            torch._dynamo.reset()
            compiled = torch.compile(prototype_loss_reference, dynamic=False)
            rivals: List[Callable] = [
                prototype_loss,
                prototype_loss_reference,
                compiled,
            ]
            ours, *others = [median_time(op, inputs, y) for op in rivals]
            label = f'{batch_size} graphs, {num_classes} classes'
            print(
                f'{label:24}{threads} thread(s){ours:7.0f}'
                + ''.join(f'{x:10.0f} ({x / ours:4.1f}x)' for x in others),
                flush=True,
            )


if __name__ == '__main__':
    main()
