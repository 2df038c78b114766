import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from devices import withDevice
from torch_geometric_ext.nn.equivalence import (
    DropoutSpy,
    NoDropout,
    fork_rng,
    is_close,
    perturb_parameters,
    run,
)


@withDevice
def test_no_dropout(device):
    x = torch.randn(4, 3, 2, device=device)
    modules = [nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout()]
    modules.append(nn.FeatureAlphaDropout())
    with NoDropout():
        for module in modules:
            assert torch.equal(module(x), x)
        assert torch.equal(F.dropout(input=x, p=0.9), x)
        assert torch.equal(torch.dropout(x, 0.9, True), x)
        assert torch.equal(F.relu(x), x.relu())
    assert not torch.equal(F.dropout(x, 0.9), x)


@withDevice
def test_fork_rng(device):
    device = torch.device(device)
    state, values = torch.random.get_rng_state(), []
    for _ in range(2):
        with pytest.raises(KeyError), fork_rng(3, device):
            values.append(torch.rand(5, device=device))
            raise KeyError
    assert torch.equal(*values)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_perturb_parameters():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.bias)
    before = copy.deepcopy(model)
    assert perturb_parameters(model) is model
    for a, b in zip(model.parameters(), before.parameters()):
        assert (a != b).all() and (a - b).abs().max() < 0.2


@withDevice
def test_run(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4))
    model.to(device).eval()
    model[0].bias.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 3, device=device)
    rng = torch.random.get_rng_state()

    found = run(model, lambda model: model(x), training=True)
    assert set(found) == {'', '0.weight', '2.weight', '2.bias'}
    other = copy.deepcopy(model).train()
    other[1].eval()
    out = other(x)
    torch.testing.assert_close(found[''], out)
    (out * torch.linspace(1, 2, 20, device=device).view(5, 4)).sum().backward()
    torch.testing.assert_close(found['0.weight'], other[0].weight.grad)
    found = run(model, lambda model: model(x), training=False)
    assert list(found) == [''] and torch.equal(found[''], model(x))

    assert not model.training and model[0].weight.grad is None
    assert all(torch.equal(y, state[k]) for k, y in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_run_repeats_random_numbers():
    def forward(model):
        return model(torch.ones(2, 3)) + torch.randn(2, 2)

    model = nn.Linear(3, 2)
    found = [run(model, forward, training=True) for _ in range(2)]
    assert torch.equal(found[0][''], found[1][''])


def test_gradients_of_unused_parameters():
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    forward = run(
        model, lambda model: model[0](torch.ones(1, 3)), training=True
    )
    assert forward['1.weight'] is None and forward['0.weight'] is not None
    assert is_close(forward, dict(forward))
    assert not is_close({**forward, '1.weight': torch.ones(2, 3)}, forward)


@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_is_close(dtype):
    x = torch.tensor([1.0, -100.0], dtype=dtype)
    half = torch.finfo(dtype).eps ** 0.5
    assert is_close({'': x + 50 * half}, {'': x})
    assert not is_close({'': x + 200 * half}, {'': x})
    # Rounding errors of a zero, beside a tensor that is large:
    zero, large = torch.zeros(2, dtype=dtype), 1e3 * x
    tiny = 10 * torch.finfo(dtype).eps * 1e5
    assert is_close({'a': zero + tiny, 'b': large}, {'a': zero, 'b': large})
    assert not is_close({'a': zero + tiny}, {'a': zero})
    assert is_close({'': x[:0]}, {'': x[:0]})


def test_other_shapes_and_types_are_not_close():
    x = torch.ones(2, 3)
    for found in [
        {},
        {'': x, 'a': x},
        {'': x[:1]},
        {'': x.double()},
        {'': None},
        {'': x.log() / 0},
    ]:
        assert not is_close(found, {'': x})
    assert is_close({}, {})


def test_models_without_parameters():
    results = run(nn.ReLU(), lambda m: m(torch.tensor([-1.0])), training=True)
    assert results.keys() == {''} and results[''] == 0


def test_zero_gradients_may_have_larger_rounding_errors():
    expected = {'': torch.ones(2).double(), 'bias': torch.zeros(2).double()}
    found = {**expected, 'bias': torch.full((2,), 1e-12).double()}
    assert not is_close(found, expected)
    assert is_close(found, expected, zero=1e-11)
    found['bias'] *= 100
    assert not is_close(found, expected, zero=1e-11)


def test_dropout_spy():
    x = torch.ones(3)
    for call, is_found in [
        (lambda: F.dropout(x), True),
        (lambda: F.dropout(x, 0.0), False),
        (lambda: F.dropout(x, 0.5, False), False),
        (lambda: F.dropout(x, p=0.5, training=False), False),
        (lambda: torch.dropout(x, 0.5, train=True), True),
        (lambda: torch.nn.Dropout1d()(x.view(1, 3)), True),
        (lambda: torch.nn.Dropout1d().eval()(x.view(1, 3)), False),
        (lambda: F.alpha_dropout(x), False),  # Off by default.
        (lambda: F.alpha_dropout(x, training=True), True),
        (lambda: x.relu(), False),
    ]:
        with DropoutSpy() as spy:
            call()
        assert spy.found is is_found


def test_randomized_activations():
    x = -torch.ones(1000)
    with NoDropout():
        for call in [
            torch.nn.RReLU(),
            lambda x: torch.rrelu(x, training=True),
        ]:
            assert call(x).unique().numel() == 1
        x = x.view(1, 10, 10, 10)
        assert torch.equal(torch.nn.Dropout2d()(x), x)
