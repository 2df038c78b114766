import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import GCN

from devices import withDevice
from torch_geometric_ext.nn import (
    MaskedGCNConv,
    SparseLinear,
    densify,
    sparsify,
    sparsity_summary,
)
from torch_geometric_ext.nn.dense.block_grid import BlockGrid
from torch_geometric_ext.utils import count_macs


def build(*size, **kwargs):
    torch.manual_seed(12345)
    kwargs = {'sparsity': 0.5, 'block_size': 8, **kwargs}
    return SparseLinear(*(size or (20, 28)), **kwargs)


def block_mask(grid, blocks):
    """The mask of the weights of some blocks, by repetition."""
    mask = torch.zeros(grid.num_blocks, dtype=torch.bool)
    mask[blocks] = True
    mask = mask.view(grid.shape).repeat_interleave(grid.block_size, 0)
    mask = mask.repeat_interleave(grid.block_size, 1)
    return mask[: grid.size[0], : grid.size[1]]


@given(
    size=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    block_size=st.sampled_from([1, 8, 16, 32]),
    density=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_positions_of_weights_and_blocks(size, block_size, density, seed):
    grid = BlockGrid(size, block_size)
    generator = torch.Generator().manual_seed(seed)
    blocks = grid.draw(round(density * grid.num_blocks), generator)
    mask = block_mask(grid, blocks)
    index = grid.expand(blocks)
    assert torch.equal(index, mask.flatten().nonzero().flatten())
    assert int(grid.count_weights(blocks).sum()) == index.numel()

    pattern = grid.compress(index)
    assert torch.equal(grid.flatten(pattern.rowptr, pattern.col), index)
    assert torch.equal(grid.fan_in(pattern.rowptr, pattern.col), mask.sum(1))
    values = torch.randn(index.numel())
    stored = grid.complete(values, *pattern[:3])
    assert all(torch.equal(a, b) for a, b in zip(pattern, stored))

    weight = torch.randn(size) * mask
    if block_size > 1:
        square = grid.mean_square(weight)[blocks]
        owner = [weight[block_mask(grid, block)] for block in blocks]
        expected = [x.square().mean() for x in owner]
        torch.testing.assert_close(square, weight.new_tensor(expected))


def test_rows_of_blocks_have_equal_numbers_of_blocks():
    grid = BlockGrid((160, 320), 16)
    for size in [0, 7, 20, 25, 200]:
        blocks = grid.draw(size, torch.Generator().manual_seed(0))
        assert blocks.numel() == blocks.unique().numel() == size
        degree = (blocks // 20).bincount(minlength=10)
        assert degree.max() - degree.min() <= 1


@withDevice
@pytest.mark.parametrize('block_size', [8, 16, 32])
@pytest.mark.parametrize('shape', [(20,), (5, 20), (2, 3, 20), (0, 20)])
def test_blocks(device, ext, block_size, shape):
    layer = build(block_size=block_size).to(device)
    x = torch.randn(shape, device=device, requires_grad=True)
    out = layer(x)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(out, expected)
    inputs = [x, *layer.parameters()]
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, grad)
    for a, b in zip(grads, torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(a, b)


def test_number_of_weights_of_blocks():
    layer = build()  # 4 x 3 blocks, of 4 rows at the bottom and 4 columns.
    assert layer.col.numel() == 6
    assert layer.values.numel() == layer.mask.sum() == layer.index.numel()
    assert layer.sparsity == 1 - layer.values.numel() / 560
    assert 'block_size=8' in str(layer)
    before = layer.mask
    for _ in range(3):
        layer.reset_mask()
        assert layer.col.numel() == 6
    assert not torch.equal(layer.mask, before)
    assert build(sparsity=0.0).values.numel() == 560


def test_blocks_start_as_single_weights_do():
    layer = build(640, 320, sparsity=0.9, block_size=16)
    x = torch.randn(500, 640)
    expected = torch.nn.Linear(640, 320)(x).var()
    torch.testing.assert_close(layer(x).var(), expected, rtol=0.05, atol=0)


def test_blocks_from_and_to_dense():
    linear = torch.nn.Linear(20, 28)
    with torch.no_grad():
        linear.weight[8:16, 16:] += 10  # A block that is cut to 8 x 4.
        linear.weight[:8, :8] = 0
    layer = SparseLinear.from_dense(linear, block_size=8)
    assert layer.values.numel() == 560 - 64
    x = torch.randn(3, 20)
    torch.testing.assert_close(layer(x), linear(x))
    torch.testing.assert_close(layer.to_dense()(x), linear(x))

    layer = SparseLinear.from_dense(linear, sparsity=0.9, block_size=8)
    assert layer.mask[8:16, 16:].all() and layer.col.numel() == 1
    mask = layer.mask
    other = SparseLinear.from_dense(linear, mask=mask, block_size=8)
    assert torch.equal(other.values, layer.values)
    mask[8, 16] = False
    for kwargs in [
        dict(mask=mask),
        dict(index=mask.flatten().nonzero().flatten()),
    ]:
        with pytest.raises(ValueError, match='all or no weights of each bl'):
            SparseLinear.from_dense(linear, **kwargs, block_size=8)


def test_state_of_blocks():
    layer, other = build(), build(sparsity=0.2, seed=1)
    x = torch.randn(3, 20)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))

    linear = torch.nn.Linear(20, 28)
    layer.load_state_dict(linear.state_dict())
    assert torch.equal(layer.weight, linear.weight * layer.mask)

    with pytest.raises(RuntimeError, match='rowptr'):
        build(block_size=1).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match='rowptr'):
        build(block_size=16).load_state_dict(layer.state_dict())
    state = layer.state_dict()
    state['values'] = state['values'][:-1]
    with pytest.raises(RuntimeError, match="'values' .* weights of 6 blocks"):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="'in_channels' .* to be known"):
        build(-1, 28).load_state_dict(other.state_dict())


def test_lazy_blocks(ext):
    layer = build(-1, 28, seed=3)
    x = torch.randn(5, 20)
    out = layer(x)
    assert torch.equal(layer.index, build(20, 28, seed=3).index)
    torch.testing.assert_close(out, F.linear(x, layer.weight, layer.bias))


def test_blocks_on_the_meta_device():
    with torch.device('meta'):
        layer = build()
    layer.to_empty(device='cpu')
    x = torch.randn(5, 20)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_blocks_compiled(kernels):
    layer = build()
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    x = torch.randn(5, 20)
    torch.testing.assert_close(compiled(x), layer(x))
    out = [
        torch.autograd.grad(f(x).square().sum(), layer.values)[0]
        for f in [compiled, layer]
    ]
    torch.testing.assert_close(*out)


def test_errors_of_blocks(ext):
    for size in [0, 2, 64, -8]:
        with pytest.raises(ValueError, match="'block_size' of 'SparseLinear"):
            build(block_size=size)
    with pytest.raises(ValueError, match="'block_size' of 'sparsify'"):
        sparsify(torch.nn.Linear(8, 8), 0.5, block_size=4)
    x = torch.eye(20).to_sparse_csr()
    with pytest.raises(ValueError, match="'x' .* needs to be dense"):
        build()(x)
    with pytest.raises(ValueError, match='needs to hold 20 features'):
        build()(torch.randn(5, 24))


def test_models_of_blocks(ext):
    torch.manual_seed(0)
    model = GCN(100, 64, num_layers=2, out_channels=7)
    dense = copy.deepcopy(model)
    model = sparsify(model, 0.9, block_size=16)
    x, edge_index = torch.randn(4, 100), torch.tensor([[0, 1, 2], [1, 2, 3]])
    assert all(conv.lin.block_size == 16 for conv in model.convs)
    assert all(conv.lin.values.numel() > 0 for conv in model.convs)
    summary = sparsity_summary(model)
    assert abs(summary.sparsity - 0.9) < 0.05
    num_weights = sum(conv.lin.values.numel() for conv in model.convs)
    assert summary.num_active == num_weights
    macs = [count_macs(m, x, edge_index) for m in [dense, model]]
    fewer = 4 * (summary.num_weights - num_weights)
    assert macs[0].forward - macs[1].forward == fewer
    out = model(x, edge_index)
    torch.testing.assert_close(densify(model)(x, edge_index), out)


def test_masked_gcn_conv_of_blocks(ext):
    conv = MaskedGCNConv(20, 28, sparsity=0.5, block_size=8)
    x, edge_index = torch.randn(4, 20), torch.tensor([[0, 1, 2], [1, 2, 3]])
    assert conv.lin.block_size == 8
    other = densify(copy.deepcopy(conv))
    torch.testing.assert_close(conv(x, edge_index), other(x, edge_index))
