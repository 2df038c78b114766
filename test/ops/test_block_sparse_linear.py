import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from devices import withDevice
from torch_geometric_ext.nn.dense.pattern import compress
from torch_geometric_ext.ops import (
    block_sparse_linear,
    block_sparse_linear_crossover,
)
from torch_geometric_ext.ops.block_sparse_linear import (
    _block_sparse_linear,
    block_sparse_linear_backward_reference,
)

BLOCK_SIZES = [8, 16, 32]


def make_inputs(
    N=5,
    I=19,  # noqa: E741
    O=10,  # noqa: E741
    block_size=8,
    density=0.6,
    seed=0,
    **kwargs,
):
    """The mask of the weights, and the arguments of the operator."""
    kwargs = {'dtype': torch.double, **kwargs}
    generator = torch.Generator().manual_seed(seed)
    shape = [-(-size // block_size) for size in (O, I)]
    blocks = torch.rand(shape, generator=generator) < density
    mask = blocks.repeat_interleave(block_size, 0)
    mask = mask.repeat_interleave(block_size, 1)[:O, :I]
    x, weight, bias = (
        torch.randn(size, generator=generator).to(**kwargs)
        for size in [(N, I), (O, I), (O,)]
    )
    mask, blocks = mask.to(x.device), blocks.to(x.device)
    leaves = [x, weight[mask], bias]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    pattern = compress(blocks.flatten().nonzero().flatten(), tuple(shape))
    return mask, (*leaves, *pattern, (O, I), block_size)


def oracle(mask, x, values, bias, *args):
    weight = values.new_zeros(mask.shape).masked_scatter(mask, values)
    return F.linear(x, weight, bias)


def assert_close(out, expected):
    # The terms of a sum may cancel, hence scale by the largest output.
    tolerance = 1e-9 if out.dtype == torch.double else 1e-5
    scale = expected.abs().max().item() if expected.numel() > 0 else 0
    kwargs = dict(rtol=tolerance, atol=tolerance * max(scale, 1))
    torch.testing.assert_close(out, expected, **kwargs)


def assert_equal_to_oracle(mask, inputs):
    out, expected = block_sparse_linear(*inputs), oracle(mask, *inputs)
    assert_close(out, expected)
    torch.manual_seed(0)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs[:3], grad)
    for a, b in zip(grads, torch.autograd.grad(expected, inputs[:3], grad)):
        assert_close(a, b)


def as_op(inputs):
    """The arguments of the operator itself."""
    *args, size, block_size = inputs
    return [*args, size[0], block_size]


@given(
    N=st.one_of(st.integers(0, 6), st.integers(0, 300)),
    I=st.integers(0, 100),
    O=st.integers(0, 100),
    block_size=st.sampled_from(BLOCK_SIZES),
    density=st.sampled_from([0.0, 0.1, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.double, torch.float]),
)
def test_block_sparse_linear_matches_dense_mask(
    N,
    I,  # noqa: E741
    O,  # noqa: E741
    block_size,
    density,
    seed,
    dtype,
):
    args = (N, I, O, block_size, density, seed)
    mask, inputs = make_inputs(*args, dtype=dtype)
    assert_equal_to_oracle(mask, inputs)

    # Compute a single gradient:
    for i in [0, 1, 2]:
        single = [x.detach() for x in inputs[:3]]
        single[i].requires_grad_()
        args = (*single, *inputs[3:])
        grads = [
            torch.autograd.grad(out.square().sum(), single[i])[0]
            for out in [block_sparse_linear(*args), oracle(mask, *args)]
        ]
        assert_close(*grads)


@pytest.mark.parametrize('block_size', BLOCK_SIZES)
@pytest.mark.parametrize('shape', [(1000, 70, 300), (70, 500, 90), (3, 40, 5)])
@pytest.mark.parametrize('num_threads', [1, 2, 3])
def test_block_sparse_linear_is_deterministic(
    ext, block_size, shape, num_threads
):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        args = (*shape, block_size, 0.3)
        mask, inputs = make_inputs(*args, dtype=torch.float)
        assert_equal_to_oracle(mask, inputs)
        outs = []
        for _ in range(3):
            out = block_sparse_linear(*inputs)
            grads = torch.autograd.grad(out.square().sum(), inputs[:3])
            outs.append([out, *grads])
        for out in outs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(out, outs[0]))
    finally:
        torch.set_num_threads(before)


def test_block_sparse_linear_strides_and_leading_dimensions(ext):
    mask, (x, *rest) = make_inputs(40, 19, 10)
    expected = oracle(mask, x, *rest)
    wide = torch.randn(40, 30, dtype=torch.double)
    wide[:, 3:22] = x.detach()
    for view in [wide[:, 3:22], x.t().contiguous().t(), x.view(2, 4, 5, 19)]:
        out = block_sparse_linear(view, *rest)
        assert out.shape == (*view.shape[:-1], 10)
        torch.testing.assert_close(out.view(40, 10), expected)
    out = block_sparse_linear(x[:1].expand(40, 19), *rest)
    torch.testing.assert_close(out, expected[:1].expand(40, 10))
    torch.testing.assert_close(
        block_sparse_linear(x[0].detach(), *rest), expected[0]
    )
    grad = torch.autograd.grad(block_sparse_linear(x, *rest).sum(), rest[0])
    torch.testing.assert_close(
        grad[0], torch.autograd.grad(expected.sum(), rest[0])[0]
    )


@pytest.mark.parametrize('density', [0.3, 1.0])
def test_block_sparse_linear_gradients(ext, density):
    _, (*leaves, a, b, c, d, e, size, block_size) = make_inputs(
        density=density, seed=1
    )

    def func(x, values, bias):
        args = (x, values, bias, a, b, c, d, e)
        return block_sparse_linear(*args, size, block_size)

    assert leaves[1].numel() > 0
    assert gradcheck(func, leaves)
    assert gradgradcheck(func, leaves)


def test_block_sparse_linear_under_transforms(ext):
    mask, (x, *rest) = make_inputs()

    def loss(x):
        return block_sparse_linear(x, *rest).square().sum()

    expected = torch.autograd.grad(oracle(mask, x, *rest).square().sum(), x)
    out = torch.func.grad(loss)(x.detach())
    torch.testing.assert_close(out, expected[0])
    out = torch.func.vmap(lambda x: block_sparse_linear(x, *rest))(x)
    torch.testing.assert_close(out, oracle(mask, x, *rest))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_block_sparse_linear_in_half_precision(ext, dtype):
    mask, inputs = make_inputs(50, 20, 10, density=0.3, dtype=torch.float)
    expected = oracle(mask, *inputs)
    halves = [x.detach().to(dtype).requires_grad_() for x in inputs[:3]]
    out = block_sparse_linear(*halves, *inputs[3:])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.2)
    for x in torch.autograd.grad(out.sum(), halves):
        assert x.dtype == dtype

    with torch.autocast('cpu', dtype=dtype):
        out = block_sparse_linear(*inputs)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.2)
    for x in torch.autograd.grad(out.sum(), inputs[:3]):
        assert x.dtype == torch.float


def test_block_sparse_linear_opcheck(kernels):
    _, inputs = make_inputs()
    op = torch.ops.torch_geometric_ext.block_sparse_linear.default
    torch.library.opcheck(op, as_op(inputs))
    x, values, _, *pattern, _, block_size = inputs
    args = (torch.randn(5, 10).double(), x.detach(), values.detach())
    op = torch.ops.torch_geometric_ext.block_sparse_linear_backward.default
    torch.library.opcheck(op, (*args, *pattern, block_size, True, False, True))


@pytest.mark.parametrize(
    'position,value,match',
    [
        (0, torch.randn(19).double(), "'x' needs to be a matrix"),
        (0, torch.randn(5, 25).double(), "'colptr' needs 5 elements"),
        (1, torch.randn(9, 2).double(), "'values' needs to be a vector"),
        (1, torch.randn(9).double(), "'values' needs .* elements, the weight"),
        (2, torch.randn(7).double(), "'bias' needs to be a vector of 10"),
        (3, torch.arange(3), "'rowptr' needs to be a .* int32 tensor"),
        (3, torch.arange(6).int()[::2], "'rowptr' needs to be contiguous"),
        (3, torch.zeros(4).int(), "'rowptr' needs "),
        (4, torch.arange(30).int(), "'row' needs 30 elements"),
        (8, 17, "'rowptr' needs a pointer for each 8 of the 17 outputs"),
        (8, 9, "'values' needs .* elements, the weights of"),
        (8, -1, "'rowptr' needs a pointer"),
        (9, 1, r"'block_size' needs to be 8, 16 or 32 \(got 1\)"),
        (9, -8, r"'block_size' needs to be 8, 16 or 32 \(got -8\)"),
        (9, 16, 'needs'),
    ],
)
def test_block_sparse_linear_invalid_input(ext, position, value, match):
    inputs = as_op(make_inputs()[1])
    inputs[position] = value
    with pytest.raises(ValueError, match=f'block_sparse_linear: .*{match}'):
        _block_sparse_linear(*inputs, True)


# Positions of: row pointers, columns, column pointers, rows, permutation.
@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize(
    'position,change,error,match',
    [
        (3, {1: 99}, ValueError, "'rowptr' needs to ascend"),
        (3, {-1: 99}, ValueError, "'rowptr' needs to ascend"),
        (4, {0: -1}, IndexError, r"'col' needs to be in \[0, 3\)"),
        (4, {-1: 2**31 - 1}, IndexError, r"'col' needs to be in \[0, 3\)"),
        (4, {0: 2, 1: 1}, ValueError, "'col' needs to ascend"),
        (5, {1: 99}, ValueError, "'colptr' needs to ascend"),
        (6, {-1: 2}, IndexError, r"'row' needs to be in \[0, 2\)"),
        (7, {0: -1}, IndexError, r"'perm' needs to be in \[0, "),
        (7, {0: 1, 1: 0}, ValueError, "'colptr', 'row' and 'perm' need"),
    ],
)
def test_block_sparse_linear_invalid_pattern(
    ext, position, change, error, match, backward
):
    inputs = as_op(make_inputs(density=1.0)[1])
    inputs[position] = inputs[position].clone()
    for i, value in change.items():
        inputs[position][i] = value
    if not backward:
        with pytest.raises(error, match=f'block_sparse_linear: {match}'):
            _block_sparse_linear(*inputs, True)
        return
    x, values, _, *pattern, _, block_size = inputs
    op = block_sparse_linear_backward_reference
    if ext:
        op = torch.ops.torch_geometric_ext.block_sparse_linear_backward
    args = (torch.randn(5, 10).double(), x, values, *pattern, block_size)
    with pytest.raises(error, match=match), torch.inference_mode():
        op(*args, True, True, True)


def test_block_sparse_linear_of_other_inputs(ext):
    _, (x, *rest) = make_inputs()
    with pytest.raises(ValueError, match="'x' needs to be of the type of"):
        block_sparse_linear(x.float(), *rest)
    with pytest.raises(ValueError, match="'x' needs to hold 19 features"):
        block_sparse_linear(x[:, :17], *rest)


@torch.inference_mode()  # Autograd would call the reference.
def test_block_sparse_linear_invalid_gradient(ext):
    _, (x, values, _, *pattern, _, block_size) = make_inputs()
    op = block_sparse_linear_backward_reference
    if ext:
        op = torch.ops.torch_geometric_ext.block_sparse_linear_backward
    for size in [(5, 17), (4, 10), (50,)]:
        grad = torch.randn(size).double()
        with pytest.raises(ValueError, match='needs'):
            args = (grad, x.clone(), values.clone(), *pattern, block_size)
            op(*args, True, True, True)


def test_block_sparse_linear_crossover(ext):
    assert (0 < block_sparse_linear_crossover() < 1) == ext


@withDevice
def test_block_sparse_linear_on_device(device):
    mask, inputs = make_inputs(50, 40, 30, device=device)
    assert_equal_to_oracle(mask, inputs)
