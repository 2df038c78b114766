import csv
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import torch_geometric_ext.typing
from torch_geometric_ext.ops import functions
from torch_geometric_ext.ops.register import register_operator

REPOSITORY = Path(__file__).parents[2]
OPS = REPOSITORY / 'torch_geometric_ext/ops'


def define(name):
    library = torch.library.Library('torch_geometric_ext', 'FRAGMENT')
    library.define(f'{name}(Tensor x, int scale=2) -> Tensor')
    library.impl(name, lambda x, scale=2: x * scale, 'CPU')
    return library  # Deleting it deletes the operator.


def reference(x, scale=2):
    return x * scale + 1  # Unlike the kernel.


def fake(x, scale=2):
    return x.new_empty(x.shape)


def has_kernel(name, key):
    name = f'torch_geometric_ext::{name}'
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def test_register_operator(kernels, monkeypatch):
    library = define('scale')
    op = register_operator('scale', reference, fake)
    x = torch.randn(3)
    assert torch.equal(op(x, 3), 3 * x)
    assert torch.equal(op(x), 2 * x)
    assert torch.equal(torch.compile(op, fullgraph=True)(x, 3), 3 * x)
    torch.library.opcheck(torch.ops.torch_geometric_ext.scale.default, (x,))
    assert has_kernel('scale', 'CUDA')
    assert not has_kernel('scale', 'Autograd')
    monkeypatch.setattr(torch_geometric_ext.typing, 'WITH_EXT', False)
    assert torch.equal(op(x), 2 * x + 1)
    del library


def test_register_operator_with_python_autograd(kernels):
    library = define('scale_with_autograd')
    op = register_operator(
        'scale_with_autograd', reference, fake, autograd=reference
    )
    x = torch.ones(3, requires_grad=True)
    out = op(x, 5)
    assert out.tolist() == [6, 6, 6]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [5, 5, 5]
    del library


def test_register_operator_with_outdated_kernels(kernels):
    with pytest.raises(ImportError, match="lack the operator 'missing'"):
        register_operator('missing', reference, fake)


def test_register_operator_without_kernels(monkeypatch):
    monkeypatch.setattr(torch_geometric_ext.typing, 'WITH_EXT', False)
    # Nothing is registered, hence no such operator needs to exist.
    op = register_operator('missing', reference, fake)
    assert torch.equal(op(torch.ones(3), 5), reference(torch.ones(3), 5))


def test_register_operator_with_composite(monkeypatch):
    monkeypatch.setattr(torch_geometric_ext.typing, 'WITH_EXT', False)
    op = register_operator('missing', reference, fake, composite=torch.mul)
    x = torch.ones(3)
    assert torch.equal(op(x, 5), reference(x, 5))
    assert torch.equal(torch.vmap(lambda x: op(x, 5))(x), 5 * x)
    with forward_ad.dual_level():
        assert torch.equal(op(x, 5), 5 * x)
    assert torch.equal(op(x, 5), reference(x, 5))


@pytest.mark.parametrize(
    'name', sorted({*functions} - {'calibrate', 'computation_tree_ids'})
)
def test_operators_are_registered(kernels, name):
    if name.endswith('crossover'):  # It has no tensors.
        assert has_kernel(name, 'CompositeExplicitAutograd')
    else:
        assert has_kernel(name, 'CPU') and has_kernel(name, 'CUDA')


def has_cpu_kernel(name):
    other = ['calibrate', 'computation_tree_ids']
    return name not in other and has_kernel(name, 'CPU')


def test_table_of_operators(kernels):
    with (REPOSITORY / 'docs/source/operators.csv').open(newline='') as file:
        rows = {
            row['Operator'].strip('`'): row for row in csv.DictReader(file)
        }
    assert {x for x in functions if has_cpu_kernel(x)} - set(rows) == set()
    for name, row in rows.items():
        assert row['CPU'] == 'C++ kernel' and has_kernel(name, 'CPU')
        module = name.removesuffix('_backward') + '_triton.py'
        with_triton = (OPS / module).exists()
        assert with_triton == row['CUDA'].startswith('Triton'), name
