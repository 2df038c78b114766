"""Add an operator: schema, reference, fake kernel, gradient and checks."""

from typing import Any, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.ragged import row_index
from torch_geometric_ext.ops.register import register_operator
from torch_geometric_ext.typing import WITH_EXT


def segment_energy(x: Tensor, ptr: Tensor) -> Tensor:
    """Sum the squares of each segment of rows, such as those of a graph:
    `segment_energy(h, batch.ptr)`.
    """
    out: Tensor = _SegmentEnergy.apply(x, ptr)
    return out


class _SegmentEnergy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ptr: Tensor) -> Tensor:
        ctx.save_for_backward(x, ptr)
        return _segment_energy(x, ptr)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None]:
        x, ptr = ctx.saved_tensors
        row = row_index(ptr, x.size(0))
        return 2 * x * grad[row].unsqueeze(1), None


def segment_energy_reference(x: Tensor, ptr: Tensor) -> Tensor:
    """Compute `segment_energy` in plain PyTorch, on any device."""
    if x.dim() != 2:
        raise ValueError(
            f"segment_energy: 'x' needs to be two-dimensional (got {x.dim()} "
            f'dimensions)'
        )
    out = x.new_zeros(ptr.numel() - 1)
    row = row_index(ptr, x.size(0))
    return out.index_add_(0, row, x.square().sum(dim=1))


def _fake(x: Tensor, ptr: Tensor) -> Tensor:
    """Return a result of the right shape, dtype and device."""
    return x.new_empty(ptr.numel() - 1)


# The C++ file of an operator declares its schema and its CPU kernel. This
# script has none:
library = torch.library.Library('torch_geometric_ext', 'FRAGMENT')
library.define('segment_energy(Tensor x, Tensor ptr) -> Tensor')
library.impl('segment_energy', segment_energy_reference, 'CPU')

_segment_energy = register_operator(
    'segment_energy', segment_energy_reference, _fake
)


def main() -> None:
    x = torch.randn(6, 3, dtype=torch.double)
    ptr = torch.tensor([0, 2, 2, 6])  # The second segment is empty.
    out = segment_energy(x, ptr)
    print(f'Segments: {[round(value, 2) for value in out.tolist()]}')

    if WITH_EXT:  # Otherwise, the reference is called directly.
        kernel = torch.ops.torch_geometric_ext.segment_energy.default
        print(f'opcheck: {torch.library.opcheck(kernel, (x, ptr))}')
    x.requires_grad_()
    correct = torch.autograd.gradcheck(segment_energy, (x, ptr))
    print(f'gradcheck: {correct}')
    compiled = torch.compile(
        segment_energy, backend='aot_eager', fullgraph=True
    )
    print(f'torch.compile: {torch.equal(compiled(x, ptr), out)}')


if __name__ == '__main__':
    main()
