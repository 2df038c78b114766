import math

import pytest
import torch
from torch.nn import Linear

from torch_geometric_ext.sparsity import SLR


def set_weight(linear, rows):
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(rows))


def make(linear, **kwargs):
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    options = dict(rho=1.0, update_every=1)
    return SLR(linear, optimizer, 0.5, 'uniform', **{**options, **kwargs})


def update(pruner, linear, loss, weight):
    """Pass the loss before a step of the optimizer, and the weight after."""
    pruner.regularize(torch.tensor(loss))
    set_weight(linear, weight)
    pruner.step()
    return {key: value[-1] for key, value in pruner.history().items()}


def test_hand_computed_trace():
    linear = Linear(2, 2)
    set_weight(linear, [[3.0, 1.0], [-2.0, 0.5]])
    # alpha_k = 1 - 1 / (2 k^p) with p = 1 - 1 / k:
    pruner = make(linear, step_size=0.5, m=2.0, r=1.0)
    multiplier = pruner.multipliers['']

    # Step 1. L falls from 10 + (1 + 0.25) / 2 to 10 + (0.25 + 0.25) / 2.
    # s = 0.5 * 0.5 * sqrt(1.25 / 0.5) = 0.395285.
    # Z does not change, hence L does not fall by Z.
    row = update(pruner, linear, 10.0, [[3.0, 0.5], [-2.0, 0.5]])
    assert row['fell_by_weights'] and not row['fell_by_targets']
    assert row['step_size'] == pytest.approx(0.395285, abs=1e-6)
    assert row['residual'] == pytest.approx(math.sqrt(0.5))
    expected = torch.tensor([[0.0, 0.197642], [0.0, 0.197642]])
    assert torch.allclose(multiplier, expected, atol=1e-5)
    assert pruner.targets[''].tolist() == [[3.0, 0.0], [-2.0, 0.0]]

    # Step 2. L rises from 10 + 0.197642 + 0.25 to 8 + 0.592927 + 7.17.
    # Z = P([[0.2, 2.697642], [-2, 0.697642]]). By it, L falls from 7.762927
    # to 0.059759 + 0.164531 (without the loss).
    # s = (1 - 1 / (2 sqrt(2))) * 0.395285 * sqrt(14.34 / 0.329062).
    row = update(pruner, linear, 8.0, [[0.2, 2.5], [-2.0, 0.5]])
    assert not row['fell_by_weights'] and row['fell_by_targets']
    assert row['step_size'] == pytest.approx(1.686858, abs=1e-4)
    target = torch.tensor([[0.0, 2.697642], [-2.0, 0.0]])
    assert torch.allclose(pruner.targets[''], target, atol=1e-5)
    expected = torch.tensor([[0.337372, -0.135752], [0.0, 1.041071]])
    assert torch.allclose(multiplier, expected, atol=1e-4)

    # Step 3. W - Z was [[0.2, -0.197642], [0, 0.5]] and becomes
    # [[0.1, -0.097642], [0, -3]]. L falls from
    # 8 + 0.067474 + 0.026830 + 0.520536 + 0.164531 = 8.779371 to
    # 3 + 0.033737 + 0.013255 - 3.123213 + 4.509767 = 4.433546.
    # s' = (1 - 1 / (2 * 3^(2/3))) * 1.686858 * sqrt(0.329062 / 9.019534)
    #    = 0.244741.
    # Z = P([[0.461846, 2.440351], [-2, -2.193152]]), as the multipliers
    # become [[0.361846, -0.159649], [0, 0.306848]].
    row = update(pruner, linear, 3.0, [[0.1, 2.6], [-2.0, -3.0]])
    assert row['fell_by_weights'] and row['fell_by_targets']


def test_losses_are_means_since_the_last_update():
    linear = Linear(2, 2)
    pruner = make(linear, update_every=2)
    for loss in [4.0, 2.0, 8.0, 6.0]:
        pruner.regularize(torch.tensor(loss))
        pruner.step()
    assert pruner.history()['loss'] == [3.0, 7.0]
    # The first comparison is with the first loss, of the initial weights:
    assert pruner.history()['fell_by_weights'] == [True, False]


def test_previous_weights_are_copies():
    linear = Linear(2, 2)
    set_weight(linear, [[3.0, 1.0], [-2.0, 0.5]])
    pruner = make(linear)
    # The optimizer moves weights in-place, away from Z, at an equal loss:
    row = update(pruner, linear, 1.0, [[3.0, 1.5], [-2.0, 1.0]])
    assert not row['fell_by_weights']


def test_residual_of_zero():
    linear = Linear(2, 2)
    set_weight(linear, [[3.0, 0.0], [-2.0, 0.0]])
    pruner = make(linear)
    for loss in [3.0, 2.0, 1.0]:
        row = update(pruner, linear, loss, [[3.0, 0.0], [-2.0, 0.0]])
    assert row['step_size'] == 1.0 and row['multiplier'] == 0.0
    assert math.isfinite(pruner.regularize(torch.tensor(1.0)).item())


def test_multipliers_grow_after_a_residual_of_zero():
    linear = Linear(2, 2)
    set_weight(linear, [[3.0, 0.0], [-2.0, 0.0]])  # Z equals W.
    pruner = make(linear)
    pruner.regularize(torch.tensor(5.0))  # The first loss.
    row = update(pruner, linear, 1.0, [[3.0, 0.5], [-2.0, 0.5]])
    assert row['fell_by_weights'] and row['step_size'] == 1.0
    row = update(pruner, linear, 1.0, [[3.0, 0.4], [-2.0, 0.4]])
    assert row['fell_by_weights'] and row['step_size'] > 0.5
    assert row['multiplier'] > 0.1


@pytest.mark.parametrize('loss', [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite(loss):
    linear = Linear(2, 2)
    set_weight(linear, [[3.0, 1.0], [-2.0, 0.5]])
    pruner = make(linear)
    weight = linear.weight.detach().clone()
    update(pruner, linear, loss, weight.tolist())
    update(pruner, linear, 2.0, (0.9 * weight).tolist())
    row = update(pruner, linear, 1.0, (0.8 * weight).tolist())
    assert row['fell_by_weights']
    assert math.isfinite(row['multiplier']) and row['multiplier'] > 0


def test_converges_on_a_quadratic():
    torch.manual_seed(0)
    goal = torch.randn(6, 6)
    linear = Linear(6, 6, bias=False)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.2)
    pruner = SLR(linear, optimizer, 0.5, 'uniform', rho=1.0, update_every=5)
    for _ in range(1000):
        optimizer.zero_grad()
        loss = (linear.weight - goal).square().sum() / 2
        pruner.regularize(loss).backward()
        optimizer.step()
        pruner.step()
    residual = pruner.history()['residual']
    assert residual[-1] < 0.05 * residual[0]
    largest = goal.abs() > goal.abs().median()
    out = pruner.finalize()
    assert torch.equal(out.mask, largest)
    assert torch.allclose(out.weight, goal * largest, atol=0.05)


@pytest.mark.parametrize(
    'key, value',
    [('step_size', 2.0), ('step_size', 0.0), ('m', 1.0), ('r', 0.0)],
)
def test_errors(key, value):
    with pytest.raises(ValueError, match=f"'{key}' of 'SLR'"):
        make(Linear(2, 2), **{key: value})
