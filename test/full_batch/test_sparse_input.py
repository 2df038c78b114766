import copy

import pytest
import torch
from torch_geometric.nn import GCN, Linear
from torch_geometric.testing import withCUDA

from torch_geometric_ext.full_batch.sparse_input import (
    DoublySparseLinear,
    SparseInput,
    SparseInputLinear,
    swap_linears,
)
from torch_geometric_ext.nn import SparseLinear


def features(device='cpu'):
    x = torch.zeros(20, 50, device=device)
    x[torch.arange(20), torch.arange(0, 40, 2)] = torch.rand(20, device=device)
    return x


@withCUDA
def test_equals_the_dense_layer(device):
    x = features(device)
    inputs = SparseInput.find(x)
    dense = GCN(50, 8, num_layers=2, out_channels=50).to(device)
    model = swap_linears(copy.deepcopy(dense), [inputs])
    assert isinstance(model.convs[0].lin, SparseInputLinear)
    assert type(model.convs[1].lin) is Linear
    assert list(model.state_dict()) == list(dense.state_dict())

    edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]], device=device)
    outs = [net(x, edge_index) for net in [dense, model]]
    torch.testing.assert_close(*outs)
    for out in outs:
        out.square().sum().backward()
    for a, b in zip(dense.parameters(), model.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_other_inputs_are_dense():
    x = features()
    model = swap_linears(torch.nn.Sequential(Linear(50, 4)), [SparseInput(x)])
    other = torch.randn(3, 50)
    weight, bias = model[0].weight, model[0].bias
    assert torch.equal(model(other), other @ weight.t() + bias)
    assert copy.deepcopy(model)[0].inputs[0] is model[0].inputs[0]


@pytest.mark.parametrize(
    'cls, name', [(torch.nn.Linear, 'input'), (Linear, 'x')]
)
def test_serves_as_the_dense_layer(cls, name):
    x = features()
    dense = cls(50, 4)
    layer = swap_linears(torch.nn.Sequential(dense), [SparseInput(x)])[0]
    assert isinstance(layer, SparseInputLinear)
    torch.testing.assert_close(layer(**{name: x}), dense(x))
    for key in ['in_channels', 'in_features', 'out_channels', 'out_features']:
        assert getattr(layer, key, None) == getattr(dense, key, None)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(layer(x), dense(x))


def test_layers_of_other_classes_stay():
    class Scaled(torch.nn.Linear):
        scale = 2.0

    layer = torch.nn.Sequential(Scaled(50, 4))
    assert swap_linears(layer, [SparseInput(features())])[0].scale == 2.0


def test_columns_equal_those_of_the_transpose():
    for size in [(20, 50), (0, 5), (5, 0), (3, 7)]:
        x = torch.rand(size) * (torch.rand(size) < 0.1)
        cols, expected = SparseInput(x).cols, x.t().to_sparse_csr()
        assert cols.shape == expected.shape
        for name in ['crow_indices', 'col_indices', 'values']:
            a, b = getattr(cols, name)(), getattr(expected, name)()
            assert torch.equal(a, b)


@withCUDA
@pytest.mark.parametrize('sparsity, pays', [(0.5, True), (0.98, False)])
@pytest.mark.parametrize('bias', [True, False])
def test_sparse_layers_skip_zeros_of_both(device, sparsity, pays, bias):
    x = features(device)
    dense = SparseLinear(50, 4, bias=bias, sparsity=sparsity, seed=0)
    dense = dense.to(device)
    other = torch.nn.Sequential(copy.deepcopy(dense))
    layer = swap_linears(other, [SparseInput(x)])[0]
    assert type(layer) is DoublySparseLinear
    assert list(layer.state_dict()) == list(dense.state_dict())

    outs = [net(x) for net in [dense, layer]]
    torch.testing.assert_close(*outs)
    assert torch.equal(*outs) or pays
    for out in outs:
        out.square().sum().backward()
    for a, b in zip(dense.parameters(), layer.parameters()):
        torch.testing.assert_close(a.grad, b.grad)

    assert torch.equal(layer(x.clone()), dense(x))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(layer(x), dense(x))
    with pytest.raises(ValueError, match="'x' needs to be of the type"):
        layer.double()(x)


def test_sparse_layers_follow_moves():
    x = features()
    sparse = SparseLinear(50, 4, sparsity=0.5, seed=0)
    layer = swap_linears(torch.nn.Sequential(sparse), [SparseInput(x)])[0]
    index, values = torch.arange(100), torch.rand(100)
    layer.set_weights(index, values)
    weight = torch.cat([values, torch.zeros(100)]).view(4, 50)
    torch.testing.assert_close(layer(x), x @ weight.t() + layer.bias)
    layer.reset_mask(seed=1)
    expected = x @ layer.weight.t() + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert copy.deepcopy(layer).inputs[0] is layer.inputs[0]


def test_sparse_layers_of_other_sizes_stay():
    model = torch.nn.Sequential(SparseLinear(40, 4))
    model = swap_linears(model, [SparseInput(features())])
    assert type(model[0]) is SparseLinear


@pytest.mark.parametrize(
    'x',
    [
        None,
        torch.ones(20, 50),
        torch.zeros(20, 50, dtype=torch.long),
        torch.zeros(20, 5, 10),
        torch.zeros(20, 50).to_sparse(),
        torch.zeros(20, 50, requires_grad=True),
    ],
)
def test_features_that_are_not_compressed(x):
    assert SparseInput.find(x) is None
