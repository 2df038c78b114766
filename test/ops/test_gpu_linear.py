import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import torch_geometric_ext.typing
from torch_geometric_ext.ops import block_sparse_linear, sparse_linear
from torch_geometric_ext.ops.gpu_linear import (
    backward,
    backward_dense,
    multiply,
    multiply_dense,
)
from torch_geometric_ext.ops.triton_launch import (
    MAX_GRID,
    NUM_PROGRAMS,
    split_samples,
)
from triton_kernels import DEVICE, make_weight

SIZES = [1, 8, 16, 32]
DTYPES = [torch.double, torch.float, torch.bfloat16, torch.half]
TOLERANCES = {torch.double: 1e-9, torch.float: 1e-5}


def make_inputs(num_rows, size, block_size, dtype, **kwargs):
    """A weight, samples, a bias and a gradient."""
    is_half = dtype in [torch.bfloat16, torch.half]
    kwargs['dtype'] = torch.float if is_half else dtype
    weight = make_weight(size, block_size, **kwargs)
    generator = torch.Generator().manual_seed(1)
    x, grad, bias = (
        torch.randn(shape, generator=generator).to(DEVICE, dtype)
        for shape in [(num_rows, size[1]), (num_rows, size[0]), size[0]]
    )
    return weight, x, bias.to(weight.values.dtype), grad


def assert_close(out, expected):
    assert out.dtype == expected.dtype and out.shape == expected.shape
    # The terms of a sum may cancel, hence scale by the largest output.
    tolerance = TOLERANCES.get(out.dtype, 0.02)
    scale = expected.abs().max().item() if expected.numel() > 0 else 0
    kwargs = dict(rtol=tolerance, atol=tolerance * max(scale, 1))
    torch.testing.assert_close(out, expected, **kwargs)


def assert_equal_to_dense(weight, x, bias, grad):
    for added in [bias, None]:
        expected = multiply_dense(x, added, weight)
        assert_close(multiply(x, added, weight), expected)
    is_half = x.dtype not in TOLERANCES
    for needs in [(True, True, True), *torch.eye(3).bool().tolist()]:
        grads = backward(grad, x, weight, needs)
        expected = backward_dense(grad, x, weight, needs)
        for a, b, needed in zip(grads, expected, needs):
            assert needed or a.numel() == b.numel() == 0
            if is_half:  # Tensor cores round the weights.
                a, b = a.to(x.dtype), b.to(x.dtype)
            assert_close(a, b)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    num_rows=st.one_of(st.integers(0, 6), st.integers(0, 70)),
    size=st.tuples(st.integers(0, 40), st.integers(0, 70)),
    block_size=st.sampled_from(SIZES),
    density=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from(DTYPES),
)
def test_kernels_equal_dense_products(
    triton_kernels, num_rows, size, block_size, density, seed, dtype
):
    kwargs = dict(density=density, seed=seed)
    inputs = make_inputs(num_rows, size, block_size, dtype, **kwargs)
    assert_equal_to_dense(*inputs)


@pytest.mark.parametrize('block_size', SIZES)
def test_rows_of_different_lengths(triton_kernels, block_size):
    mask = torch.zeros(4, 150 // block_size + 1, dtype=torch.bool)
    mask[1] = mask[:, 0] = True
    mask[3] = False
    size = (4 * block_size - block_size // 2, 150)
    for num_rows in [1, 66]:
        args = (num_rows, size, block_size, torch.float)
        kwargs = dict(mask=mask[:, : -(-150 // block_size)])
        assert_equal_to_dense(*make_inputs(*args, **kwargs))


@pytest.mark.parametrize('block_size', SIZES)
def test_small_grids(triton_kernels, block_size, monkeypatch):
    # Programs take several tiles, and sums over samples have several parts.
    for name in ['sparse_linear_triton', 'block_sparse_linear_triton']:
        module = f'torch_geometric_ext.ops.{name}'
        __import__(module)
        monkeypatch.setattr(sys.modules[module], 'MAX_GRID', 2)
    module = sys.modules['torch_geometric_ext.ops.triton_launch']
    monkeypatch.setattr(module, 'MIN_SAMPLES', 100)
    inputs = make_inputs(140, (20, 100), block_size, torch.double)
    assert_equal_to_dense(*inputs)


@pytest.mark.parametrize('block_size', SIZES)
def test_strides(triton_kernels, block_size):
    args = (9, (20, 33), block_size, torch.double)
    weight, x, bias, grad = make_inputs(*args, density=0.9)
    wide = torch.stack([weight.values, weight.values], dim=1)[:, 0]
    assert not wide.is_contiguous()
    weight = weight._replace(values=wide)
    for turn in [
        lambda a: a.t().contiguous().t(),
        lambda a: a[:1].expand_as(a),
        lambda a: torch.cat([a, a], dim=1)[:, : a.size(1)],
    ]:
        assert_equal_to_dense(weight, turn(x), bias, turn(grad))


@pytest.mark.parametrize('dtype', [torch.long, torch.double])
@pytest.mark.parametrize('block_size', SIZES)
def test_gradients_of_another_dtype(triton_kernels, block_size, dtype):
    args = (9, (20, 33), block_size, torch.float)
    weight, x, bias, grad = make_inputs(*args, density=0.9)
    assert_equal_to_dense(weight, x, bias, (3 * grad).to(dtype))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
@pytest.mark.parametrize('block_size', SIZES)
def test_half_precision_is_rounded_once(triton_kernels, block_size, dtype):
    # Exact sums of small integers:
    weight, x, bias, _ = make_inputs(70, (33, 65), block_size, torch.float)
    ints = [(a * 2).round().clamp(-4, 4) for a in (x, weight.values, bias)]
    x, values, bias = ints
    weight = weight._replace(values=values)
    expected = multiply_dense(x, bias, weight)
    out = multiply(x.to(dtype), bias, weight)
    assert torch.equal(out, expected.to(dtype))
    grad = torch.randint(0, 2, expected.shape, device=DEVICE).float()
    args = (weight, (True, True, True))
    grads = backward(grad.to(dtype), x.to(dtype), *args)
    for a, b in zip(grads, backward_dense(grad, x, *args)):
        assert torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize('block_size', SIZES)
def test_operators_without_compiled_kernels(
    triton_kernels, block_size, monkeypatch
):
    monkeypatch.setattr(torch_geometric_ext.typing, 'WITH_EXT', False)
    inputs = make_inputs(3, (9, 10), block_size, torch.double)
    weight, *leaves = inputs[0], *(inputs[i] for i in [1, 2])
    leaves = [x.requires_grad_() for x in (*leaves, weight.values)]
    calls = count_launches(monkeypatch)

    def func(x, bias, values):
        args = (x, values, bias, *weight.pattern)
        if block_size == 1:
            return sparse_linear(*args)
        return block_sparse_linear(*args, weight.size, block_size)

    func(*leaves).sum().backward()
    assert len(calls) == 3
    assert gradcheck(func, leaves, fast_mode=True)
    assert gradgradcheck(func, leaves, fast_mode=True)


def count_launches(monkeypatch, run=True):
    """Records the grids of launches, which are skipped on demand."""
    grids = []
    for name in ['sparse_linear_triton', 'block_sparse_linear_triton']:
        __import__(f'torch_geometric_ext.ops.{name}')
        module = sys.modules[f'torch_geometric_ext.ops.{name}']
        launch = module.launch

        def record(kernel, grid, *args, launch=launch, **meta):
            grids.append(grid)
            if run:
                launch(kernel, grid, *args, **meta)

        monkeypatch.setattr(module, 'launch', record)
    return grids


@pytest.mark.parametrize('num_rows', [0, 1, 1000, 2**33])
@pytest.mark.parametrize('in_channels', [64, 60])
@pytest.mark.parametrize('block_size', SIZES)
def test_launches_do_not_wait(
    triton_kernels, block_size, in_channels, num_rows, monkeypatch
):
    # A meta tensor has no data, hence code that reads it raises an error.
    grids = count_launches(monkeypatch, run=False)
    weight = make_weight((40, in_channels), block_size)
    tensors = [x.to('meta') for x in (weight.values, *weight.pattern)]
    weight = weight._make([*tensors, *weight[6:]])
    x = torch.empty(num_rows, in_channels, device='meta')
    out = multiply(x, torch.empty(40, device='meta'), weight)
    assert out.shape == (num_rows, 40) and out.is_contiguous()
    grads = backward(out, x, weight, (True, True, True))
    sizes = [x.shape for x in (x, weight.values)]
    assert [a.shape for a in grads] == [*sizes, (40,)]
    assert len(grids) == 3
    for grid in grids:
        assert grid[0] < 2**31 and max(grid[1:]) <= MAX_GRID


COMPILE = """
import re, sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import torch_geometric_ext.ops.block_sparse_linear_triton as blocks
import torch_geometric_ext.ops.sparse_linear_triton as singles
from torch_geometric_ext.ops.gpu_linear import backward_sparse, multiply_sparse
from triton_kernels import make_weight

NAMES = {torch.float: 'fp32', torch.double: 'fp64', torch.half: 'fp16'}
NAMES.update({torch.bfloat16: 'bf16', torch.int: 'i32', torch.long: 'i64'})
NARROW = 'arith.muli.*tensor<(1x[0-9]+|[0-9]+x1)xi32>'


def compile(kernel, grid, *args, **meta):
    names, signature, aligned = kernel.arg_names, {}, {}
    for i, (name, arg) in enumerate(zip(names, args)):
        if torch.is_tensor(arg):
            signature[name] = '*' + NAMES[arg.dtype]
            aligned[i,] = [['tt.divisibility', 16]]
        elif arg is None or arg == 1:  # Constants, as of a launch.
            meta[name] = arg
        else:
            signature[name] = 'i32' if arg < 2**31 else 'i64'
    signature.update({name: 'constexpr' for name in meta})
    out = triton.compile(
        ASTSource(kernel, signature, meta, aligned),
        target=GPUTarget('cuda', int(sys.argv[1]), 32),
        options={'enable_fp_fusion': True},
    )
    assert out.asm['cubin']
    assert not re.search(NARROW, out.asm['ttir']), 'offsets of 32 bits'
    print(kernel.fn.__name__, 'mma' in out.asm['ptx'])


blocks.launch = singles.launch = compile
torch.backends.cuda.matmul.allow_tf32 = True
for block_size, dtype in [
    (1, torch.float), (1, torch.double), (1, torch.half),
    (8, torch.float), (16, torch.half), (32, torch.bfloat16),
    (8, torch.double),
]:
    is_half = dtype in [torch.bfloat16, torch.half]
    exact = torch.float if is_half else dtype
    sizes = [(64, 128), (60, 1), (60, 2**33), (1, 1)]
    for size, num_rows in sizes[: int(sys.argv[2])]:
        weight = make_weight((size, size), block_size, 1.0, dtype=exact)
        tensors = [x.to('meta') for x in (weight.values, *weight.pattern)]
        weight = weight._make([*tensors, *weight[6:]])
        x = torch.empty(num_rows, size, dtype=dtype, device='meta')
        bias = torch.empty(size, dtype=exact, device='meta')
        grad = multiply_sparse(x, bias, weight)
        backward_sparse(grad, x, weight, (True, True, False))
"""


@pytest.mark.parametrize('capability, num_sizes', [('80', 4), ('90', 1)])
def test_kernels_compile(triton_kernels, tmp_path, capability, num_sizes):
    # The interpreter accepts code that the compiler rejects.
    path = os.pathsep.join(sys.path)
    process = subprocess.run(
        [sys.executable, '-c', COMPILE, capability, str(num_sizes)],
        env={
            **os.environ,
            'PYTHONPATH': path,
            'TRITON_CACHE_DIR': str(tmp_path),
            'TRITON_INTERPRET': '0',
        },
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    lines = [line.split() for line in process.stdout.splitlines()]
    assert len(lines) == num_sizes * 3 * 7
    # Blocks are multiplied on tensor cores.
    assert {name for name, mma in lines if mma == 'True'} == {
        '_forward_kernel',
        '_backward_x_kernel',
        '_backward_values_kernel',
    }
    assert sum(mma == 'True' for _, mma in lines) == num_sizes * 3 * 4


def test_split_samples():
    for num_samples, num_programs in itertools.product(
        [0, 1, 511, 513, 10**5, 2**33], [0, 1, 100, 10**6]
    ):
        parts, size = split_samples(num_samples, num_programs)
        assert 1 <= parts <= NUM_PROGRAMS and size >= 1
        assert (parts - 1) * size < max(num_samples, 1) <= max(parts * size, 1)
    assert split_samples(10**5, 10**6)[0] == 1
    assert split_samples(10**5, 100)[0] == NUM_PROGRAMS // 100


def test_tf32_follows_either_setting():
    code = """
import torch
from torch_geometric_ext.ops.triton_launch import allows_tf32
matmul = torch.backends.cuda.matmul
assert not allows_tf32()
matmul.allow_tf32 = True
assert allows_tf32()
torch.set_float32_matmul_precision('highest')
assert not allows_tf32()
if hasattr(matmul, 'fp32_precision'):
    matmul.fp32_precision = 'tf32'
    assert allows_tf32()
"""
    subprocess.run([sys.executable, '-c', code], check=True)
