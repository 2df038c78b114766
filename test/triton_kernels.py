"""Run Triton kernels in tests: on a GPU, or by Triton's interpreter on CPU.

Without a GPU, the environment needs to hold `TRITON_INTERPRET=1` before Triton
is imported, which PyG does.
"""

import contextlib
from unittest.mock import patch

import torch

import torch_geometric_ext.ops.gpu_linear as gpu_linear
from torch_geometric_ext.nn.dense.pattern import compress
from torch_geometric_ext.ops.block_weights import count_columns
from torch_geometric_ext.ops.gpu_linear import Weight
from torch_geometric_ext.ops.triton_launch import has_triton

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


@contextlib.contextmanager
def by_triton(is_sparse=True):
    """Compute sparse products by Triton, or dense ones, on any device."""
    with contextlib.ExitStack() as stack:
        chosen = patch.object(
            gpu_linear, 'prefers_sparse', lambda *args: is_sparse
        )
        stack.enter_context(chosen)
        if DEVICE.type == 'cpu' and has_triton():
            stack.enter_context(bfloat16_products())
        yield


def bfloat16_products():
    """The interpreter multiplies the bits of bfloat16, hence casts them."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    create_dot = interpreter.InterpreterBuilder.create_dot

    def cast(x):
        bits = x.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def call(self, a, b, *args):
        if a.dtype.scalar == tl.bfloat16:
            a, b = cast(a), cast(b)
        return create_dot(self, a, b, *args)

    return patch.object(interpreter.InterpreterBuilder, 'create_dot', call)


def make_weight(
    size, block_size=1, density=0.4, seed=0, dtype=torch.float, mask=None
):
    """A sparse weight whose values are drawn."""
    generator = torch.Generator().manual_seed(seed)
    grid = tuple(-(-x // block_size) for x in size)
    if mask is None:
        mask = torch.rand(grid, generator=generator) < density
    pattern = compress(mask.flatten().nonzero().flatten(), grid)
    num_weights = pattern.col.numel()
    if block_size > 1:
        columns = count_columns(*pattern[:2], size, block_size)
        num_weights = int(columns.sum())
    values = torch.randn(num_weights, generator=generator, dtype=dtype)
    tensors = [x.to(DEVICE) for x in (values, *pattern)]
    return Weight(*tensors, size, block_size)
