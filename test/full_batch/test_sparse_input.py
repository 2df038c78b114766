import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN, Linear

from devices import withDevice
from torch_geometric_ext.full_batch import sparse_input
from torch_geometric_ext.full_batch.sparse_input import (
    SparseInput,
    SparseInputs,
)
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops import csr_sparse_linear

CHANNELS = 50


def features(device='cpu', dtype=torch.float):
    """Each node has one feature that is not zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(20, CHANNELS)
    x[torch.arange(20), torch.arange(0, 40, 2)] = torch.rand(
        20, generator=generator
    )
    return x.to(device, dtype)


def sparsely(x):
    return SparseInputs({id(x): SparseInput.find(x)})


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts dense products of features."""

    def __init__(self):
        super().__init__()
        self.num_dense = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        dense = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
        self.num_dense += func in dense and not any(
            x.layout == torch.sparse_csr for x in args
        )
        return func(*args, **(kwargs or {}))


@withDevice
@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_models_are_equal(dtype, device):
    torch.manual_seed(0)
    x = features(device, dtype)
    model = GCN(CHANNELS, 8, 2, CHANNELS).to(device, dtype)
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]], device=device)
    expected = model(x, edge_index)
    with sparsely(x):
        out = model(x, edge_index)
    torch.testing.assert_close(out, expected)
    params = list(model.parameters())
    grads = [
        torch.autograd.grad(y.square().sum(), params) for y in [out, expected]
    ]
    torch.testing.assert_close(*grads)


PRODUCTS = {
    'linear': F.linear,
    'matmul': lambda x, weight: torch.matmul(x, weight.t()),
    'mm': lambda x, weight: torch.mm(x, weight.t()),
    'operator': lambda x, weight: x @ weight.t(),
    'method': lambda x, weight: x.mm(weight.t()),
}


@pytest.mark.parametrize('name', PRODUCTS)
def test_products(name):
    x, product = features(), PRODUCTS[name]
    weight = torch.randn(3, CHANNELS)
    expected = product(x, weight)
    with sparsely(x), Count() as count:
        torch.testing.assert_close(product(x, weight), expected)
        assert count.num_dense == 0
        other = x.clone()
        assert torch.equal(product(other, weight), expected)
        assert count.num_dense == 1


def test_other_products_are_dense():
    x = features()
    calls = [
        lambda: F.linear(input=x, weight=torch.ones(3, CHANNELS)),
        lambda: x.matmul(torch.ones(CHANNELS)),
        lambda: x @ torch.ones(2, CHANNELS, 3),
        lambda: torch.ones(3, 20) @ x,
        lambda: x @ torch.eye(CHANNELS).to_sparse(),
        lambda: x + x,
    ]
    for call in calls:
        expected = call()
        with sparsely(x):
            assert torch.equal(call(), expected)
    with sparsely(x), pytest.raises(RuntimeError, match='dtype'):
        x @ torch.ones(CHANNELS, 3, dtype=torch.double)


@pytest.mark.parametrize('cls', [nn.Linear, Linear])
def test_layers_and_autocast(cls):
    x, layer = features(), cls(CHANNELS, 4)
    with sparsely(x), Count() as count:
        torch.testing.assert_close(layer(x), F.linear(x, *layer.parameters()))
        assert count.num_dense == 0
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_parametrized_layers():
    x = features()
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(CHANNELS, 4))
    expected = layer(x)
    with sparsely(x), Count() as count:
        torch.testing.assert_close(layer(x), expected)
    assert count.num_dense == 0


@withDevice
@pytest.mark.parametrize('sparsity', [0.5, 0.98])
@pytest.mark.parametrize('bias', [True, False])
def test_sparse_layers_skip_zeros_of_both(device, ext, sparsity, bias):
    x = features(device)
    layer = SparseLinear(CHANNELS, 4, bias=bias, sparsity=sparsity, seed=0)
    layer = layer.to(device)
    expected = layer(x)
    with sparsely(x):
        out = layer(x)
    torch.testing.assert_close(out, expected)
    params = list(layer.parameters())
    grads = [
        torch.autograd.grad(y.square().sum(), params) for y in [out, expected]
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    'density, sparsity, pays',
    [(0.02, 0.5, True), (0.02, 0.98, True), (0.1, 0.5, True)]
    + [(0.1, 0.98, False)],
)
def test_sparse_layers_choose_a_product(
    kernels, monkeypatch, density, sparsity, pays
):
    x = torch.rand(100, CHANNELS) * (torch.rand(100, CHANNELS) < density)
    layer = SparseLinear(CHANNELS, 4, sparsity=sparsity, seed=0)
    calls = []

    def product(*args):
        calls.append(args)
        return csr_sparse_linear(*args)

    monkeypatch.setattr(sparse_input, 'csr_sparse_linear', product)
    expected = layer(x)
    with sparsely(x):
        torch.testing.assert_close(layer(x), expected)
    assert len(calls) == pays


@pytest.mark.parametrize('sparsity', [0.5, 0.98])
def test_sparse_layers_in_checkpoints(kernels, sparsity):
    x, layer = features(), SparseLinear(CHANNELS, 4, sparsity=sparsity, seed=0)
    layer(x).square().sum().backward()
    expected, layer.values.grad = layer.values.grad, None
    with sparsely(x):
        out = checkpoint(layer, x, use_reentrant=False)
    out.square().sum().backward()  # Recomputes a dense product.
    torch.testing.assert_close(layer.values.grad, expected)


def test_sparse_layers_follow_moves():
    x, layer = features(), SparseLinear(CHANNELS, 4, sparsity=0.5, seed=0)
    with sparsely(x):
        for _ in range(2):
            expected = x @ layer.weight.t() + layer.bias
            torch.testing.assert_close(layer(x), expected)
            layer.reset_mask(seed=1)


@withDevice
def test_gradients(device):
    inputs = SparseInput.find(features(device, torch.double))
    weight = torch.randn(CHANNELS, 2, device=device).double().requires_grad_()
    assert torch.autograd.gradcheck(inputs.matmul, weight)
    assert torch.autograd.gradgradcheck(inputs.matmul, weight)


def test_gradients_of_many_rows():
    """More than fit into a block."""
    x = torch.rand(5000, 30) * (torch.rand(5000, 30) < 0.05)
    weight = torch.randn(30, 3, requires_grad=True)
    out, expected = SparseInput.find(x).matmul(weight), x @ weight
    grads = [
        torch.autograd.grad(y.square().sum(), weight) for y in [out, expected]
    ]
    torch.testing.assert_close(*grads)


def test_take():
    x, nodes = features(), torch.tensor([3, 0, 3])
    inputs = SparseInput.find(x)
    part = inputs.take(x[nodes], nodes)
    assert torch.equal(part.rows.to_dense(), x[nodes])
    assert part.density == inputs.density == 1 / CHANNELS
    size = inputs.num_bytes
    assert size == 20 * (4 + 8)
    inputs.matmul(
        torch.randn(CHANNELS, 2, requires_grad=True)
    ).sum().backward()
    assert inputs.num_bytes == 2 * size
    assert copy.copy(inputs).x is x


@pytest.mark.parametrize(
    'x',
    [
        torch.ones(20, 50),
        torch.zeros(20, 50, dtype=torch.long),
        torch.zeros(20, 50, dtype=torch.half),
        torch.zeros(20, 5, 10),
        torch.zeros(20, 50, requires_grad=True),
    ],
)
def test_features_that_are_not_compressed(x):
    assert SparseInput.find(x) is None
