import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from devices import withDevice
from torch_geometric_ext.nn.dense.pattern import compress
from torch_geometric_ext.ops import csr_sparse_linear
from torch_geometric_ext.ops.csr_sparse_linear import (
    csr_sparse_linear_backward_reference,
    csr_transpose,
)

pytestmark = pytest.mark.filterwarnings('ignore:Sparse CSR tensor support')


def make_inputs(
    N=5,
    I=7,  # noqa: E741
    O=6,  # noqa: E741
    features=0.4,
    weights=0.4,
    seed=0,
    index=torch.long,
    **kwargs,
):
    kwargs = {'dtype': torch.double, **kwargs}
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.randn(size, generator=generator).to(**kwargs)

    x = rand(N, I) * (torch.rand(N, I, generator=generator) < features).to(
        **kwargs
    )
    mask = torch.rand(O, I, generator=generator) < weights
    position = mask.flatten().nonzero().flatten().to(x.device)
    x = x.to_sparse_csr()
    x = torch.sparse_csr_tensor(
        x.crow_indices().to(index),
        x.col_indices().to(index),
        x.values(),
        x.shape,
        check_invariants=True,
    )
    values, bias = rand(position.numel()), rand(O)
    inputs = (values.requires_grad_(), bias.requires_grad_())
    return position, (x, *inputs, *compress(position, (O, I)))


def oracle(position, x, values, bias, rowptr, *args):
    weight = values.new_zeros((rowptr.numel() - 1) * x.size(1))
    weight = weight.scatter(0, position, values).view(-1, x.size(1))
    out = x.to_dense() @ weight.t()
    return out if bias is None else out + bias


def assert_close(out, expected):
    # The terms of a sum may cancel, hence scale by the largest output.
    tolerance = 1e-9 if out.dtype == torch.double else 1e-5
    scale = expected.abs().max().item() if expected.numel() > 0 else 0
    kwargs = dict(rtol=tolerance, atol=tolerance * max(scale, 1))
    torch.testing.assert_close(out, expected, **kwargs)


def assert_equal_to_oracle(position, inputs):
    out = csr_sparse_linear(*inputs)
    expected = oracle(position, *inputs)
    assert_close(out, expected)
    torch.manual_seed(0)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs[1:3], grad)
    expected_grads = torch.autograd.grad(expected, inputs[1:3], grad)
    for a, b in zip(grads, expected_grads):
        assert_close(a, b)


@given(
    N=st.one_of(st.integers(0, 6), st.integers(0, 200)),
    I=st.integers(1, 70),
    O=st.integers(0, 70),
    features=st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    weights=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.double, torch.float]),
    index=st.sampled_from([torch.int, torch.long]),
)
def test_csr_sparse_linear_matches_dense(
    N,
    I,  # noqa: E741
    O,  # noqa: E741
    features,
    weights,
    seed,
    dtype,
    index,
):
    kwargs = dict(seed=seed, dtype=dtype, index=index)
    position, inputs = make_inputs(N, I, O, features, weights, **kwargs)
    assert_equal_to_oracle(position, inputs)
    without_bias = (*inputs[:2], None, *inputs[3:])
    assert_close(
        csr_sparse_linear(*without_bias), oracle(position, *without_bias)
    )


@pytest.mark.parametrize('weights', [0.02, 0.9])  # Sparse and dense product.
@pytest.mark.parametrize('index', [torch.int, torch.long])
def test_csr_sparse_linear_of_many_rows(ext, weights, index):
    size = (3000, 40, 64)  # Enough for a thread and sums of its own.
    position, inputs = make_inputs(*size, 0.3, weights, index=index)
    assert_equal_to_oracle(position, inputs)


@pytest.mark.parametrize('weights', [0.1, 0.9])
@pytest.mark.parametrize('num_threads', [1, 2, 3])
def test_csr_sparse_linear_is_deterministic(ext, weights, num_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        size = (3000, 40, 64)
        position, inputs = make_inputs(*size, 0.3, weights, dtype=torch.float)
        outs = []
        for _ in range(3):
            out = csr_sparse_linear(*inputs)
            grads = torch.autograd.grad(out.square().sum(), inputs[1:3])
            outs.append([out, *grads])
        assert_close(outs[0][0], oracle(position, *inputs))
        for out in outs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(out, outs[0]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('weights', [0.1, 1.0])
def test_csr_sparse_linear_gradients(ext, weights):
    _, (x, values, bias, *pattern) = make_inputs(weights=weights)

    def func(values, bias):
        return csr_sparse_linear(x, values, bias, *pattern)

    assert gradcheck(func, (values, bias))
    assert gradgradcheck(func, (values, bias))


def test_csr_sparse_linear_unsorted_and_duplicate_columns(ext):
    ptr, index = torch.tensor([0, 3, 3, 5]), torch.tensor([4, 0, 4, 2, 1])
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.double)
    x = torch.sparse_csr_tensor(
        ptr, index, value, (3, 7), check_invariants=False
    )
    dense = torch.zeros(3, 7, dtype=torch.double)
    row = torch.tensor([0, 0, 0, 2, 2])
    dense.index_put_((row, index), value, accumulate=True)
    position, (_, *rest) = make_inputs()
    out = csr_sparse_linear(x, *rest)
    expected = oracle(position, dense, *rest)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), rest[0])[0],
        torch.autograd.grad(expected.square().sum(), rest[0])[0],
    )


def test_csr_sparse_linear_reference_in_blocks(monkeypatch):
    position, inputs = make_inputs(20, 13, 11)
    module = sys.modules['torch_geometric_ext.ops.csr_linear']
    monkeypatch.setattr(module, 'BLOCK_SIZE', 30)  # Two outputs.
    typing = sys.modules['torch_geometric_ext.typing']
    monkeypatch.setattr(typing, 'WITH_EXT', False)
    assert_equal_to_oracle(position, inputs)


@pytest.mark.parametrize('index', [torch.int, torch.long])
@pytest.mark.parametrize('size', [(0, 3), (4, 1), (30, 20)])
def test_csr_transpose(size, index):
    x = make_inputs(*size, index=index)[1][0]
    args = (x.crow_indices(), x.col_indices(), x.values(), size[1])
    out = csr_transpose(*args)
    assert out.layout == torch.sparse_csr
    assert torch.equal(out.to_dense(), x.to_dense().t())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_csr_sparse_linear_under_autocast(ext, dtype):
    position, inputs = make_inputs(50, 20, 10, dtype=torch.float)
    with torch.autocast('cpu', dtype=dtype):
        out = csr_sparse_linear(*inputs)
        grads = torch.autograd.grad(out.sum(), inputs[1:3])
    assert out.dtype == dtype
    expected = oracle(position, *inputs)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    expected = torch.autograd.grad(expected.sum(), inputs[1:3])
    for a, b in zip(grads, expected):
        assert a.dtype == torch.float
        assert_close(a, b)
    with torch.autocast('cpu', dtype=dtype):
        inputs = make_inputs()[1]
        assert csr_sparse_linear(*inputs).dtype == torch.double


def test_csr_sparse_linear_opcheck(kernels):
    _, (x, values, bias, *pattern) = make_inputs()
    rows = (x.crow_indices(), x.col_indices(), x.values())
    ops = torch.ops.torch_geometric_ext
    tests = ('test_schema', 'test_faketensor')
    inputs = (*rows, values.detach(), bias.detach(), *pattern)
    torch.library.opcheck(
        ops.csr_sparse_linear.default, inputs, test_utils=tests
    )
    grad = torch.randn(5, 6).double()
    torch.library.opcheck(
        ops.csr_sparse_linear_backward.default,
        (grad, *rows, *pattern),
        test_utils=tests,
    )
    rows = [y.clone() for y in rows]  # Views of sparse tensors fail.
    with FakeTensorMode(allow_non_fake_inputs=True):  # Also finds `None`.
        out = ops.csr_sparse_linear(*rows, *inputs[3:])
        grad_values = ops.csr_sparse_linear_backward(grad, *rows, *pattern)
    assert out.shape == grad.shape and grad_values.shape == values.shape


def test_csr_sparse_linear_invalid_input(ext):
    _, (x, *rest) = make_inputs()
    with pytest.raises(ValueError, match='in CSR format.*torch.sparse_coo'):
        csr_sparse_linear(x.to_sparse_coo(), *rest)
    with pytest.raises(ValueError, match='in CSR format.*torch.sparse_csc'):
        csr_sparse_linear(x.to_sparse_csc(), *rest)
    with pytest.raises(ValueError, match='in CSR format.*torch.strided'):
        csr_sparse_linear(x.to_dense(), *rest)
    with pytest.raises(ValueError, match=r'matrix of 7 .*\[5, 8\]'):
        csr_sparse_linear(make_inputs(5, 8)[1][0], *rest)
    with pytest.raises(ValueError, match=r'matrix of 7 .*\[2, 5, 7\]'):
        batch = torch.stack([x.to_dense()] * 2).to_sparse_csr()
        csr_sparse_linear(batch, *rest)
    with pytest.raises(ValueError, match='both of torch.float or'):
        csr_sparse_linear(x.float(), *rest)
    with pytest.raises(NotImplementedError, match="'x.detach"):
        csr_sparse_linear(x.detach().requires_grad_(), *rest)
    with torch.no_grad():
        csr_sparse_linear(x.detach().requires_grad_(), *rest)


@pytest.mark.parametrize('dtype', [torch.int, torch.long])
def test_csr_sparse_linear_of_strided_features(ext, dtype):
    _, (x, *rest) = make_inputs()
    rows = x.crow_indices().to(dtype), x.col_indices().to(dtype), x.values()
    strided = [torch.stack([y, y + 1], dim=-1)[..., 0] for y in rows]
    out = [
        csr_sparse_linear(
            torch.sparse_csr_tensor(*y, x.shape, check_invariants=False), *rest
        )
        for y in [rows, strided]
    ]
    torch.testing.assert_close(*out)


@pytest.mark.parametrize(
    'ptr,index,error',
    [
        ([0, 2, 2, 3], [0, 7, 1], IndexError),
        ([0, 2, 2, 3], [0, -1, 1], IndexError),
        ([0, 2, 2, 3], [0, 2**40, 1], IndexError),
        ([0, 9, 2, 3], [0, 1, 2], ValueError),
        ([0, 2, 2, 4], [0, 1, 2], ValueError),
        ([1, 2, 2, 3], [0, 1, 2], ValueError),
        ([0, -5, 2, 3], [0, 1, 2], ValueError),
    ],
)
def test_csr_sparse_linear_invalid_indices(ext, ptr, index, error):
    value = torch.ones(3, dtype=torch.double)
    ptr, index = torch.tensor(ptr), torch.tensor(index)
    x = torch.sparse_csr_tensor(
        ptr, index, value, (3, 7), check_invariants=False
    )
    with pytest.raises(error, match="csr_sparse_linear: '(ptr|index)'"):
        csr_sparse_linear(x, *make_inputs()[1][1:])


@pytest.mark.parametrize(
    'position,value,error',
    [
        (1, torch.randn(3).double(), ValueError),
        (2, torch.randn(7).double(), ValueError),
        (3, torch.arange(7), ValueError),
        (5, torch.arange(8).int(), ValueError),
        (6, None, IndexError),
        (7, None, IndexError),
    ],
)
def test_csr_sparse_linear_invalid_weight(ext, position, value, error):
    inputs = list(make_inputs()[1])
    if value is None:
        value = inputs[position].clone()
        value[2] = 1000
    inputs[position] = value
    with pytest.raises(error, match='csr_sparse_linear: '):
        csr_sparse_linear(*inputs)


def test_csr_sparse_linear_invalid_gradient(ext):
    x, _, _, *pattern = make_inputs()[1]
    rows = (x.crow_indices(), x.col_indices(), x.values())
    op = csr_sparse_linear_backward_reference
    if ext:
        op = torch.ops.torch_geometric_ext.csr_sparse_linear_backward
    for grad in [torch.randn(5, 7), torch.randn(4, 6), torch.randn(30)]:
        with pytest.raises(ValueError, match="'grad' needs to be of shape"):
            op(grad.double(), *rows, *pattern)
    match = "'(x|grad)' needs to be .*([Ff]loat|double)"
    with pytest.raises(ValueError, match=match):
        op(torch.randn(5, 6), *rows, *pattern)


@withDevice
def test_csr_sparse_linear_on_device(device):
    position, inputs = make_inputs(50, 20, 10, device=device)
    assert_equal_to_oracle(position, inputs)
