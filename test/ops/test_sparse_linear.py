import contextlib
import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.nn.dense.pattern import compress
from torch_geometric_ext.ops import sparse_linear, sparse_linear_crossover
from torch_geometric_ext.ops.sparse_linear import (
    _sparse_linear,
    sparse_linear_backward_reference,
    sparse_linear_reference,
)


def make_inputs(N=5, I=7, O=6, density=0.4, seed=0, **kwargs):  # noqa: E741
    kwargs = {'dtype': torch.double, **kwargs}
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(O, I, generator=generator) < density
    index = mask.flatten().nonzero().flatten().to(kwargs.get('device'))
    x, values, bias = (
        torch.randn(size, generator=generator).to(**kwargs).requires_grad_()
        for size in [(N, I), (index.numel(),), (O,)]
    )
    return index, (x, values, bias, *compress(index, (O, I)))


def oracle(index, x, values, bias, rowptr, *args):
    weight = values.new_zeros((rowptr.numel() - 1) * x.size(-1))
    weight = weight.scatter(0, index, values).view(-1, x.size(-1))
    return F.linear(x, weight, bias)


def assert_close(out, expected):
    # The terms of a sum may cancel, hence scale by the largest output.
    tolerance = 1e-9 if out.dtype == torch.double else 1e-5
    scale = expected.abs().max().item() if expected.numel() > 0 else 0
    kwargs = dict(rtol=tolerance, atol=tolerance * max(scale, 1))
    torch.testing.assert_close(out, expected, **kwargs)


def assert_equal_to_oracle(index, inputs):
    out = sparse_linear(*inputs)
    expected = oracle(index, *inputs)
    assert_close(out, expected)
    torch.manual_seed(0)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs[:3], grad)
    for a, b in zip(grads, torch.autograd.grad(expected, inputs[:3], grad)):
        assert_close(a, b)


@given(
    N=st.one_of(st.integers(0, 6), st.integers(0, 300)),
    I=st.integers(1, 70),
    O=st.integers(0, 70),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.double, torch.float]),
    dense=st.sampled_from([None, False, True]),
)
def test_sparse_linear_matches_dense_mask(
    N,
    I,  # noqa: E741
    O,  # noqa: E741
    density,
    seed,
    dtype,
    dense,
):
    with forced(dense):
        assert_matches_dense_mask(N, I, O, density, seed, dtype)


@contextlib.contextmanager
def forced(dense):
    """Forces sparse or dense products."""
    force = lambda dense: None  # noqa: E731
    if torch_geometric_ext.typing.WITH_EXT:
        force = torch.ops.torch_geometric_ext.sparse_linear_force_dense
    force(dense)
    try:
        yield
    finally:
        force(None)


def assert_matches_dense_mask(N, I, O, density, seed, dtype):  # noqa: E741
    index, inputs = make_inputs(N, I, O, density, seed, dtype=dtype)
    assert_equal_to_oracle(index, inputs)

    # Compute a single gradient:
    out = sparse_linear(inputs[0].detach(), *inputs[1:])
    for x, y in [
        (out, inputs[1]),
        (sparse_linear(inputs[0], inputs[1].detach(), *inputs[2:]), inputs[0]),
    ]:
        grad = torch.autograd.grad(x.square().sum(), y)[0]
        expected = oracle(index, *inputs).square().sum()
        expected = torch.autograd.grad(expected, y)[0]
        assert_close(grad, expected)


@pytest.mark.parametrize('shape', [(1000, 40, 300), (70, 500, 33), (3, 4, 5)])
@pytest.mark.parametrize('num_threads', [1, 2, 3])
def test_sparse_linear_is_deterministic(ext, shape, num_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        index, inputs = make_inputs(*shape, density=0.2, dtype=torch.float)
        assert_equal_to_oracle(index, inputs)
        outs = []
        for _ in range(3):
            out = sparse_linear(*inputs)
            grads = torch.autograd.grad(out.square().sum(), inputs[:3])
            outs.append([out, *grads])
        for out in outs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(out, outs[0]))
    finally:
        torch.set_num_threads(before)


def test_sparse_linear_strides_and_leading_dimensions(ext):
    index, (x, *rest) = make_inputs(40, 9, 5)
    expected = oracle(index, x, *rest)
    wide = torch.randn(40, 20, dtype=torch.double)
    wide[:, 3:12] = x.detach()
    for view in [wide[:, 3:12], x.t().contiguous().t(), x.view(2, 4, 5, 9)]:
        out = sparse_linear(view, *rest)
        assert out.shape == (*view.shape[:-1], 5)
        torch.testing.assert_close(out.view(40, 5), expected)
    out = sparse_linear(x[:1].expand(40, 9), *rest)
    torch.testing.assert_close(out, expected[:1].expand(40, 5))
    grad = torch.autograd.grad(sparse_linear(x, *rest).sum(), rest[0])[0]
    torch.testing.assert_close(
        grad, torch.autograd.grad(expected.sum(), rest[0])[0]
    )


def test_sparse_linear_gradients(ext):
    _, (x, values, bias, *pattern) = make_inputs(density=0.3)

    def func(x, values, bias):
        return sparse_linear(x, values, bias, *pattern)

    assert gradcheck(func, (x, values, bias))
    assert gradgradcheck(func, (x, values, bias))


def test_sparse_linear_reference_in_blocks(monkeypatch):
    index, inputs = make_inputs(20, 13, 11)
    expected = oracle(index, *inputs)
    grad = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, inputs[:3], grad)
    module = sys.modules['torch_geometric_ext.ops.csr_linear']
    monkeypatch.setattr(module, 'BLOCK_SIZE', 30)  # Two rows.
    torch.testing.assert_close(sparse_linear_reference(*inputs), expected)
    x, values, _, *pattern = inputs
    args = (grad, x, values, *pattern)
    for needs in itertools.product([True, False], repeat=3):
        out = sparse_linear_backward_reference(*args, *needs)
        for a, b, needed in zip(out, grads, needs):
            assert needed or a.numel() == 0
            assert not needed or torch.allclose(a, b)


@pytest.mark.parametrize('num_rows', [1, 16, 31, 64, 65, 130])
@pytest.mark.parametrize('sizes', [(1, 1), (15, 17), (129, 131)])
def test_sparse_linear_rounds_half_precision_once(kernels, num_rows, sizes):
    # Exact sums: small integers and a gradient of ones and zeros.
    index, inputs = make_inputs(num_rows, *sizes, density=0.3)
    x = torch.randint(-4, 5, (num_rows, sizes[0])).bfloat16()
    values = torch.randint(-4, 5, inputs[1].shape).float()
    bias = torch.randint(-4, 5, (sizes[1],)).float()
    leaves = [a.requires_grad_() for a in (x, values, bias)]
    weight = torch.zeros(sizes[1] * sizes[0])
    weight = weight.scatter(0, index, values).view(sizes[1], sizes[0])
    expected = x.float() @ weight.t() + bias
    grad = torch.randint(0, 2, expected.shape).float()
    grads = torch.autograd.grad(expected, leaves, grad)
    out = _sparse_linear(*leaves, *inputs[3:], True)
    assert torch.equal(out, expected.bfloat16())
    for a, b in zip(torch.autograd.grad(out, leaves, grad.bfloat16()), grads):
        assert torch.equal(a, b.to(a.dtype))


def test_sparse_linear_keeps_values_that_are_not_finite(kernels):
    _, inputs = make_inputs(40, 8, 8, density=0.9, dtype=torch.float)
    x = inputs[0].detach().bfloat16()
    x[3, 2], x[20, 1] = torch.nan, torch.inf
    rest = [a.detach() for a in inputs[1:]]
    out = _sparse_linear(x, *rest, True)
    expected = sparse_linear(x.float(), *rest)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_sparse_linear_in_half_precision(ext, dtype):
    index, inputs = make_inputs(50, 20, 10, dtype=torch.float)
    expected = oracle(index, *inputs)
    halves = [x.detach().to(dtype).requires_grad_() for x in inputs[:3]]
    out = sparse_linear(*halves, *inputs[3:])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.2)
    for x in torch.autograd.grad(out.sum(), halves):
        assert x.dtype == dtype

    with torch.autocast('cpu', dtype=dtype):
        out = sparse_linear(*inputs)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.2)
    for x in torch.autograd.grad(out.sum(), inputs[:3]):
        assert x.dtype == torch.float


def test_sparse_linear_opcheck(kernels):
    _, inputs = make_inputs()
    op = torch.ops.torch_geometric_ext.sparse_linear.default
    torch.library.opcheck(op, inputs)
    x, values, _, *pattern = inputs
    args = (torch.randn(5, 6).double(), x.detach(), values.detach(), *pattern)
    op = torch.ops.torch_geometric_ext.sparse_linear_backward.default
    torch.library.opcheck(op, (*args, True, False, True))


@pytest.mark.parametrize(
    'position,value,match',
    [
        (0, torch.randn(7).double(), "'x' needs to be a matrix"),
        (0, torch.randn(5, 8).double(), "'colptr' needs 9 elements"),
        (1, torch.randn(9, 2).double(), "'values' needs to be a vector"),
        (2, torch.randn(7).double(), "'bias' needs to be a vector of 6"),
        (3, torch.arange(7), "'rowptr' needs to be a .* int32 tensor"),
        (3, torch.arange(14).int()[::2], "'rowptr' needs to be contiguous"),
        (4, torch.arange(3).int(), "'col' needs .* elements"),
        (3, torch.ones(7).int(), "'rowptr' needs to ascend from 0 to"),
    ],
)
def test_sparse_linear_invalid_input(ext, position, value, match):
    _, inputs = make_inputs()
    inputs = [*inputs[:position], value, *inputs[position + 1 :]]
    with pytest.raises(ValueError, match=match):
        _sparse_linear(*inputs, True)


# Positions of: row pointers, columns, column pointers, rows, permutation.
@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize(
    'position,change,error,match',
    [
        (3, {1: 99}, ValueError, "'rowptr' needs to ascend"),
        (3, {1: -1}, ValueError, "'rowptr' needs to ascend"),
        (3, {-1: 99}, ValueError, "'rowptr' needs to ascend"),
        (4, {0: -1}, IndexError, r"'col' needs to be in \[0, 7\)"),
        (4, {-1: 7}, IndexError, r"'col' needs to be in \[0, 7\)"),
        (4, {0: 2**31 - 1}, IndexError, "'col' needs to be in"),
        (4, {0: 6, 1: 6}, ValueError, "'col' needs to ascend"),
        (5, {1: 99}, ValueError, "'colptr' needs to ascend"),
        (6, {0: -1}, IndexError, r"'row' needs to be in \[0, 6\)"),
        (6, {-1: 6}, IndexError, r"'row' needs to be in \[0, 6\)"),
        (6, {0: 5, 1: 5}, ValueError, "'row' needs to ascend"),
        (7, {0: -1}, IndexError, r"'perm' needs to be in \[0, "),
        (7, {0: 2**31 - 1}, IndexError, r"'perm' needs to be in \[0, "),
        (7, {0: 1, 1: 0}, ValueError, "'colptr', 'row' and 'perm' need"),
        (7, {0: 3, 1: 3}, ValueError, "'colptr', 'row' and 'perm' need"),
    ],
)
def test_sparse_linear_invalid_pattern(
    ext, position, change, error, match, backward
):
    _, inputs = make_inputs(density=0.6)
    pattern = list(inputs)[position].clone()
    for i, value in change.items():
        pattern[i] = value
    args = [*inputs[:position], pattern, *inputs[position + 1 :]]
    if not backward:
        with pytest.raises(error, match=f'sparse_linear: {match}'):
            sparse_linear(*args)
        return
    x, values, _, *pattern = args
    args = torch.randn(5, 6).double(), x, values, *pattern, True, True, True
    op = sparse_linear_backward_reference
    if ext:
        op = torch.ops.torch_geometric_ext.sparse_linear_backward
    with pytest.raises(error, match=match), torch.inference_mode():
        op(*args)


def test_sparse_linear_of_other_type(ext):
    _, (x, *rest) = make_inputs()
    with pytest.raises(ValueError, match="'x' needs to be of the type of"):
        sparse_linear(x.float(), *rest)


@torch.inference_mode()  # Autograd would call the reference.
def test_sparse_linear_invalid_gradient(ext):
    _, (x, values, _, *pattern) = make_inputs()
    op = sparse_linear_backward_reference
    if ext:
        op = torch.ops.torch_geometric_ext.sparse_linear_backward
    for size in [(5, 7), (4, 6), (30,)]:
        grad = torch.randn(size).double()
        with pytest.raises(ValueError, match="'grad' needs to be"):
            op(grad, x.clone(), values.clone(), *pattern, True, True, True)


def test_sparse_linear_crossover(ext):
    # `test_calibration.py` sets and measures densities.
    assert sparse_linear_crossover(4096, 2048, 512) == (0.25 if ext else 0)


@withDevice
def test_sparse_linear_on_device(device):
    index, inputs = make_inputs(50, 20, 10, device=device)
    assert_equal_to_oracle(index, inputs)
