import pytest
import torch

from devices import withDevice
from torch_geometric_ext.ops import csr_matmul as exported
from torch_geometric_ext.ops.csr_matmul import (
    csr_dot_products_reference,
    csr_matmul,
)
from torch_geometric_ext.ops.ragged import row_ptr

NUM_ROWS, NUM_COLS, HEADS, CHANNELS = 7, 5, 2, 3


def compress(index, other, size):
    perm = index.argsort(stable=True)
    return row_ptr(torch.bincount(index, minlength=size)), other[perm], perm


def inputs(num_edges=20, device=None, dtype=torch.double):
    """Values, features, edges and their compressed rows and columns."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(NUM_ROWS - 1, (num_edges,), generator=generator)
    col = torch.randint(NUM_COLS, (num_edges,), generator=generator)
    row, col = row.to(device), col.to(device)
    value = torch.randn(num_edges, HEADS, generator=generator)
    x = torch.randn(NUM_COLS, HEADS, CHANNELS, generator=generator)
    edges = *compress(row, col, NUM_ROWS), *compress(col, row, NUM_COLS)
    value, x = (y.to(device, dtype).requires_grad_() for y in [value, x])
    return value, x, edges, row, col


def expected(value, x, row, col):
    out = x.new_zeros(NUM_ROWS, *x.shape[1:])
    return out.index_add(0, row, value.unsqueeze(-1) * x[col])


def test_export():
    assert exported is csr_matmul


@withDevice
@pytest.mark.parametrize('num_edges', [0, 1, 20])
@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_csr_matmul(num_edges, dtype, device, ext):
    value, x, edges, row, col = inputs(num_edges, device, dtype)
    out, other = csr_matmul(value, x, *edges), expected(value, x, row, col)
    assert out.shape == (NUM_ROWS, HEADS, CHANNELS)
    torch.testing.assert_close(out, other)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), [value, x])
    other = torch.autograd.grad((other * weight).sum(), [value, x])
    torch.testing.assert_close(found, other)


@pytest.mark.parametrize('shape', [(0, 2, 3), (5, 0, 3), (5, 2, 0)])
def test_empty_features(shape, ext):
    _, _, edges, _, _ = inputs(0 if shape[0] == 0 else 20)
    x = torch.randn(shape, dtype=torch.double)
    if shape[0] == 0:
        edges = *edges[:3], edges[0][:1], *edges[4:]
    value = x.new_ones(edges[1].numel(), shape[1])
    out = csr_matmul(value, x, *edges)
    assert out.shape == (NUM_ROWS, *shape[1:]) and not out.isnan().any()


def test_layouts_of_inputs(ext):
    value, x, edges, row, col = inputs()
    other = value.t().contiguous().t(), x.transpose(0, 2).contiguous()
    other = other[0], other[1].transpose(0, 2)
    assert not any(y.is_contiguous() for y in other)
    assert torch.equal(
        csr_matmul(*other, *edges), csr_matmul(value, x, *edges)
    )


def test_gradients(ext):
    value, x, edges, _, _ = inputs(8)

    def run(value, x):
        return csr_matmul(value, x, *edges)

    assert torch.autograd.gradcheck(run, (value, x))
    assert torch.autograd.gradgradcheck(run, (value, x))


def test_gradients_of_one_input(ext):
    value, x, edges, row, col = inputs()
    for a, b in [(value.detach(), x), (value, x.detach())]:
        leaf = b if b.requires_grad else a
        out = csr_matmul(a, b, *edges).square().sum()
        other = expected(a, b, row, col).square().sum()
        found = torch.autograd.grad(out, leaf)
        torch.testing.assert_close(found, torch.autograd.grad(other, leaf))


def test_same_result_for_any_number_of_threads(kernels):
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(500, (9000,), generator=generator)
    col = torch.randint(500, (9000,), generator=generator)
    edges = *compress(row, col, 500), *compress(col, row, 500)
    value = torch.randn(9000, 2, generator=generator)
    x = torch.randn(500, 2, 16, generator=generator)
    num_threads, outs = torch.get_num_threads(), []
    try:
        for i in [1, 2, 3]:
            torch.set_num_threads(i)
            outs.append(csr_matmul(value, x, *edges))
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@withDevice
@pytest.mark.parametrize('num_edges', [0, 20])
def test_opcheck(num_edges, device, kernels):
    value, x, edges, _, _ = inputs(num_edges, device)
    value, x = value.detach(), x.detach()
    ops = torch.ops.torch_geometric_ext
    torch.library.opcheck(ops.csr_matmul, (value, x, *edges[:3]))
    target = torch.randn(NUM_ROWS, HEADS, CHANNELS).to(x)
    torch.library.opcheck(ops.csr_dot_products, (target, x, *edges[:3]))


def test_compile(ext):
    value, x, edges, row, col = inputs()
    run = torch.compile(csr_matmul, backend='aot_eager', fullgraph=True)
    out, other = run(value, x, *edges), expected(value, x, row, col)
    torch.testing.assert_close(out, other)
    found = torch.autograd.grad(out.square().sum(), [value, x])
    other = torch.autograd.grad(other.square().sum(), [value, x])
    torch.testing.assert_close(found, other)


def test_errors(ext):
    value, x, edges, _, _ = inputs()
    value, x = value.detach(), x.detach()

    def check(error, match, value=value, x=x, **kwargs):
        names = ['rowptr', 'col', 'row_perm', 'colptr', 'row', 'col_perm']
        other = {**dict(zip(names, edges)), **kwargs}
        with pytest.raises(error, match=match):
            csr_matmul(value, x, *other.values())

    ptr, col, perm = edges[:3]
    check(
        ValueError, r"'value' needs to be of shape \[20, H\]", value=value[1:]
    )
    check(ValueError, "'value' needs to be of shape", value=value[:, :1])
    check(ValueError, 'of one type', x=x.float())
    check(ValueError, "'x' of shape", x=x[0])
    check(ValueError, "'col' needs to be a one-dim", col=col.int())
    check(ValueError, 'contiguous', col=col.repeat_interleave(2)[::2])
    check(ValueError, "'perm' needs 20 elements", row_perm=perm[1:])
    check(IndexError, r"'col' needs to be in \[0, 5\)", col=col + 1)
    check(IndexError, r"'col' needs to be in", col=col - 1)
    check(IndexError, r"'perm' .*in \[0, 20\)", row_perm=perm + 1)
    check((ValueError, IndexError), "'ptr'", rowptr=ptr + 1)
    check((ValueError, IndexError), "'ptr'", rowptr=ptr.flip(0))
    check(ValueError, "'colptr' needs one element more", colptr=ptr)


def test_dot_products_errors(ext):
    _, x, edges, _, _ = inputs()
    op = csr_dot_products_reference
    if ext:
        op = torch.ops.torch_geometric_ext.csr_dot_products
    grad = torch.zeros(NUM_ROWS, HEADS, CHANNELS).double()
    for bad in [grad[1:], grad[:, 1:], grad[..., 1:], grad.float()]:
        with pytest.raises(ValueError, match=r"'grad' .* shape \[7, H, C\]"):
            op(bad, x.detach(), *edges[:3])
