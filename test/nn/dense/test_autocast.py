"""Compare sparse layers with dense ones of the same mask under autocast."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from torch_geometric_ext.nn import SparseLinear

# Products of a hundred numbers that are rounded to 8 and 11 bits:
TOLERANCES = {torch.bfloat16: 5e-2, torch.half: 1e-2}


def build(sparsity):
    torch.manual_seed(12345)
    first = SparseLinear(96, 64, sparsity=sparsity, seed=0)
    second = SparseLinear(64, 32, sparsity=sparsity, seed=1)
    return torch.nn.ModuleList([first, second])


def run(model, x, dtype, inside):
    """Return the output and all gradients of a model or of its dense twin."""
    autocast = torch.autocast('cpu', dtype=dtype or torch.half)
    with autocast if dtype is not None else nullcontext():
        out = x
        for layer in model:
            if isinstance(layer, SparseLinear):
                out = layer(out.tanh())
            else:
                weight = layer.weight * layer.mask
                out = F.linear(out.tanh(), weight, layer.bias)
        if inside:
            (out.float().square().sum() / len(x)).backward()
    if not inside:
        (out.float().square().sum() / len(x)).backward()
    grads = [] if x.grad is None else [x.grad]
    for layer in model:
        if isinstance(layer, SparseLinear):
            grads.append(layer.values.grad)
        else:
            grads.append(layer.weight.grad[layer.mask])
        grads.append(layer.bias.grad)
    return out, grads


def to_dense(model):
    layers = []
    for layer in model:
        dense = layer.to_dense()
        dense.mask = layer.mask
        layers.append(dense)
    return layers


@pytest.mark.parametrize('sparsity', [0.0, 0.5, 0.7, 0.8, 0.95])
@pytest.mark.parametrize('needs_grad', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('num_rows', [3, 600])
def test_autocast(ext, sparsity, needs_grad, dtype, inside, num_rows):
    model = build(sparsity)
    x = torch.randn(num_rows, 96)

    def call(model, dtype):
        inputs = x.clone().requires_grad_(needs_grad)
        return run(copy.deepcopy(model), inputs, dtype, inside)

    out, grads = call(model, dtype)
    assert out.dtype == dtype
    assert len(grads) == 4 + needs_grad
    for other in [call(to_dense(model), dtype), call(model, None)]:
        pairs = zip([out, *grads], [other[0], *other[1]])
        for i, (a, b) in enumerate(pairs):
            assert i == 0 or a.dtype == torch.float
            error = (a - b).float().norm() / b.float().norm()
            assert error < TOLERANCES[dtype]
