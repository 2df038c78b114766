import os
import subprocess
import sys

import pytest
import torch

import accelerator
from torch_geometric_ext.ops import triton_launch

pytest.importorskip('triton')

# Calls all products with a function in place of `launch`, for each dtype.
CALL_PRODUCTS = """
import sys
import torch
from torch_geometric_ext.ops import block_sparse_linear_triton as blocks
from torch_geometric_ext.ops import sparse_linear_triton as weights
from torch_geometric_ext.ops import sparse_pattern
from torch_geometric_ext.ops.gpu_linear import (
    Weight, backward_sparse, multiply_sparse
)

def call_products(launch, device):
    blocks.launch = weights.launch = launch
    for dtype in [torch.double, torch.float, torch.bfloat16, torch.half]:
        # Kernels are compiled apart for sizes that are multiples of 16.
        for size, i, o in [(1, 16, 16), (1, 7, 7), (8, 16, 16), (32, 63, 63)]:
            call_product(device, dtype, size, i, o)

def call_product(device, dtype, size, i, o):
    wide = torch.double if dtype == torch.double else torch.float
    rows, cols = -(-o // size), -(-i // size)
    pattern = sparse_pattern(torch.arange(rows * cols), rows, cols)
    pattern = [y.to(device, non_blocking=True) for y in pattern]
    values = torch.ones(i * o, dtype=wide, device=device)
    weight = Weight(values, *pattern, (o, i), size)
    x, grad = (torch.ones(64, n, dtype=dtype, device=device) for n in (i, o))
    for bias in [torch.ones(o, dtype=wide, device=device), None]:
        multiply_sparse(x, bias, weight)
    backward_sparse(grad, x, weight, (True, True, True))
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.double: '*fp64', torch.float: '*fp32', torch.bfloat16: '*bf16',
    torch.half: '*fp16', torch.int: '*i32', torch.long: '*i64',
}
target = GPUTarget('cuda', int(sys.argv[1]), 32)
sizes = {}

def compile_kernel(kernel, grid, *args, num_warps=4, num_stages=3, **meta):
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = args[i] if i < len(args) else meta[name]
        if value is None or name in meta:
            signature[name], constants[name] = 'constexpr', value
        elif torch.is_tensor(value):
            signature[name] = TYPES[value.dtype]
        else:
            signature[name] = 'i64'
        is_size = signature[name] == 'i64'
        if name not in constants and (not is_size or value % 16 == 0):
            attributes[i,] = [['tt.divisibility', 16]]
    key = (kernel.__name__, *signature.values(), *constants.values())
    key += (len(attributes),)
    if key not in sizes:
        source = ASTSource(kernel, signature, constants, attributes)
        options = {'num_warps': num_warps, 'num_stages': num_stages}
        options['enable_fp_fusion'] = True
        compiled = triton.compile(source, target=target, options=options)
        sizes[key] = len(compiled.asm['cubin'])

call_products(compile_kernel, 'cpu')
assert all(sizes.values())
print(len(sizes))
"""


@pytest.mark.parametrize('capability', [80, 90])
def test_kernels_compile_without_a_gpu(capability, tmp_path):
    out = subprocess.run(
        [sys.executable, '-c', CALL_PRODUCTS + COMPILE, str(capability)],
        env={
            **os.environ,
            'TRITON_CACHE_DIR': str(tmp_path),
            'TRITON_INTERPRET': '0',
        },
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) > 30


def test_products_never_wait_for_the_device(monkeypatch):
    names = {}
    exec(CALL_PRODUCTS, names)
    for module in [names['blocks'], names['weights']]:
        monkeypatch.setattr(module, 'launch', module.launch)  # Restored.
    launched = []

    def launch(kernel, grid, *args, **meta):
        launched.append(kernel)

    with accelerator.record_syncs() as syncs:
        names['call_products'](launch, accelerator.device())
    assert len(launched) > 30
    assert syncs == []


@pytest.mark.parametrize('grid', [(0,), (3, 0)])
def test_nothing_is_launched_without_programs(grid):
    triton_launch.launch(None, grid, torch.ones(1))
