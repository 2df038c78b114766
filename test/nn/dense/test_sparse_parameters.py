import copy

import pytest
import torch
import torch_geometric.nn as pyg

from torch_geometric_ext.nn import (
    MaskedGCNConv,
    SparseLinear,
    densify,
    sparsify,
)

EDGE_INDEX = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])


def state_of(model):
    return {key: x.clone() for key, x in model.state_dict().items()}


def assert_unchanged(model, before):
    after = model.state_dict()
    assert all(torch.equal(after[key], x) for key, x in before.items())


@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_dense_state_of_a_model(assign, dtype):
    dense = pyg.GCN(16, 32, 2, 8).to(dtype)
    model = sparsify(pyg.GCN(16, 32, 2, 8), 0.5)
    keys, masks = list(model.state_dict()), [x.lin.mask for x in model.convs]
    values = model.convs[0].lin.values
    state = dense.state_dict()
    out = model.load_state_dict(state, assign=assign)
    assert out.missing_keys == out.unexpected_keys == []
    assert (model.convs[0].lin.values is values) != assign
    assert list(model.state_dict()) == keys
    for conv, other, mask in zip(model.convs, dense.convs, masks):
        assert torch.equal(conv.lin.mask, mask)
        weight = (other.lin.weight * mask).to(conv.lin.weight.dtype)
        assert torch.equal(conv.lin.weight, weight)
        assert torch.equal(conv.bias, other.bias.to(conv.bias.dtype))
    x = torch.randn(4, 16, dtype=dtype if assign else torch.float)
    model(x, EDGE_INDEX).sum().backward()

    # The opposite direction:
    dense.load_state_dict(densify(copy.deepcopy(model)).state_dict())
    torch.testing.assert_close(
        dense(x.to(dtype), EDGE_INDEX).to(x.dtype), model(x, EDGE_INDEX)
    )


@pytest.mark.parametrize('in_channels', [16, -1])
def test_dense_state_of_a_conv(in_channels):
    dense = pyg.GCNConv(16, 8)
    conv = MaskedGCNConv(in_channels, 8, sparsity=0.5, seed=1)
    conv.load_state_dict(dense.state_dict())
    mask = MaskedGCNConv(16, 8, sparsity=0.5, seed=1).lin.mask
    assert torch.equal(conv.lin.mask, mask)
    assert torch.equal(conv.lin.weight, dense.lin.weight * mask)
    x = torch.randn(4, 16)
    with torch.no_grad():
        dense.lin.weight.mul_(mask)
    torch.testing.assert_close(conv(x, EDGE_INDEX), dense(x, EDGE_INDEX))


def test_strict():
    weight, bias = torch.randn(4, 8), torch.randn(4)
    for strict in [True, False]:
        layer = SparseLinear(8, 4)
        layer.load_state_dict({'weight': weight, 'bias': bias}, strict=strict)
        assert torch.equal(layer.weight, weight * layer.mask)
        assert torch.equal(layer.bias, bias)
    out = SparseLinear(8, 4).load_state_dict({'weight': weight}, strict=False)
    assert out.missing_keys == ['bias'] and out.unexpected_keys == []
    with pytest.raises(RuntimeError, match='Missing key.*: "bias"'):
        SparseLinear(8, 4).load_state_dict({'weight': weight})
    with pytest.raises(RuntimeError, match='Unexpected key.*: "weight"'):
        state = layer.state_dict()
        layer.load_state_dict({**state, 'weight': weight})
    assert layer.load_state_dict({}, strict=False).missing_keys == [
        'values',
        'bias',
        'rowptr',
        'col',
        'colptr',
    ]


@pytest.mark.parametrize('strict', [True, False])
def test_mismatches(strict):
    model = torch.nn.Sequential(SparseLinear(8, 4))
    before = state_of(model)
    weight, bias = torch.randn(4, 8), torch.randn(4)
    for state, match in [
        (
            {'0.weight': torch.randn(4, 9)},
            r'0.weight: .*\[4, 9\]\) .*\[4, 8\]',
        ),
        ({'0.weight': torch.randn(4)}, r'0.weight: .*\[4\]\) .*\[4, 8\]'),
        ({'0.bias': torch.randn(5)}, r'0.bias: .*\[5\]\) .*\[4\]'),
    ]:
        state = {'0.weight': weight, '0.bias': bias, **state}
        match = f'size mismatch for {match}'
        with pytest.raises(RuntimeError, match=match):
            model.load_state_dict(state, strict=strict)
        assert_unchanged(model, before)
    with pytest.raises(RuntimeError, match='named "0.bias", expected torch.T'):
        model.load_state_dict({'0.bias': 1.0}, strict=False)
    other = torch.nn.Sequential(SparseLinear(8, 4)).state_dict()
    with pytest.raises(RuntimeError, match='size mismatch for 0.bias'):
        model.load_state_dict({**other, '0.bias': torch.randn(5)})
    assert_unchanged(model, before)


def test_states_without_data():
    lazy = pyg.Linear(-1, 4).state_dict()
    layer = SparseLinear(8, 4)
    before = state_of(layer)
    with pytest.raises(RuntimeError, match="'weight' .* one forward pass"):
        layer.load_state_dict(lazy)
    assert_unchanged(layer, before)
    layer = SparseLinear(-1, 4)
    with pytest.raises(RuntimeError, match=r'size mismatch .*\[5, 8\]'):
        layer.load_state_dict({'weight': torch.randn(5, 8)}, strict=False)
    assert layer.in_channels == -1
    for in_channels in [8, -1]:
        with torch.device('meta'):
            layer = SparseLinear(in_channels, 4)
        state = torch.nn.Linear(8, 4).state_dict()
        with pytest.raises(RuntimeError, match='to_empty.* the meta device'):
            layer.load_state_dict(state, assign=True)
        assert layer.in_channels == in_channels


@pytest.mark.parametrize('in_channels', [8, -1])
@pytest.mark.parametrize('layout', [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings('ignore:Sparse CSR tensor support')
def test_weights_of_other_layouts(layout, in_channels):
    model = torch.nn.Sequential(SparseLinear(in_channels, 4, sparsity=0.5))
    old = str(model.state_dict())
    weight = torch.rand(4, 8).to_sparse(layout=layout)
    state = {'0.weight': weight, '0.bias': torch.rand(4)}
    with pytest.raises(RuntimeError, match="0: 'weight' needs to be a dense"):
        model.load_state_dict(state)
    assert str(model.state_dict()) == old


@pytest.mark.parametrize('block_size', [1, 8])
def test_loading_another_block_size(block_size):
    state = SparseLinear(70, 50, sparsity=0.6, block_size=16).state_dict()
    lin = SparseLinear(70, 50, sparsity=0.6, block_size=block_size)
    before = {key: value.clone() for key, value in lin.state_dict().items()}
    with pytest.raises(RuntimeError, match="of the same 'block_size'"):
        lin.load_state_dict(state)
    for key, value in lin.state_dict().items():
        if key != 'bias':
            assert torch.equal(value, before[key])
