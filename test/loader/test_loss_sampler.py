import math

import pytest
import torch

from devices import withDevice
from torch_geometric_ext.loader import LossSampler


def observe(losses, keep_ratio, **kwargs):
    """Return a sampler that knows the losses of all graphs."""
    sampler = LossSampler(
        losses.numel(), keep_ratio, 9, warmup_epochs=1, **kwargs
    )
    graph_idx = torch.tensor(list(sampler))
    sampler.update(losses.cpu()[graph_idx], graph_idx)
    return sampler


def expected_draws(losses, budget, largest, temperature):
    """Return `min(1, scale * weight)` with the sum `budget`."""
    known = [x for x in losses.tolist() if not math.isnan(x)]
    mean = sum(known) / len(known)
    std = (sum((x - mean) ** 2 for x in known) / len(known)) ** 0.5
    weight = []
    for x in losses.tolist():
        score = 0.0 if math.isnan(x) or std == 0 else (x - mean) / std
        score = min(max(score, -3.0), 3.0)
        weight.append(math.exp((1 if largest else -1) * score / temperature))
    low, high = 0.0, budget / min(weight)
    for _ in range(100):
        scale = (low + high) / 2
        total = sum(min(1.0, scale * x) for x in weight)
        low, high = (scale, high) if total < budget else (low, scale)
    return torch.tensor([min(1.0, high * x) for x in weight])


@withDevice
@pytest.mark.parametrize('largest', [True, False])
@pytest.mark.parametrize('temperature', [0.4, 1.0, 10.0])
@pytest.mark.parametrize('budget', [10, 50, 90])
def test_draws_by_brute_force(device, largest, temperature, budget):
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(100, generator=generator) ** 5  # A long tail.
    losses[7] = 30.0
    options = dict(largest=largest, temperature=temperature)
    sampler = observe(losses, budget / 100, **options)
    expected = expected_draws(losses, budget, **options)
    count = torch.zeros(100)
    for _ in range(200):
        graph_idx = torch.tensor(list(sampler), device=device)
        assert len(set(graph_idx.tolist())) == budget
        weight = sampler.loss_weight(graph_idx).cpu()
        graph_idx = graph_idx.cpu()
        pi = budget / (100 * weight)
        torch.testing.assert_close(pi, expected[graph_idx], rtol=1e-4, atol=0)
        count[graph_idx] += 1
    error = (expected * (1 - expected) / 200).clamp(min=0).sqrt()
    assert ((count / 200 - expected).abs() <= 5 * error + 1e-5).all()


def test_graphs_without_a_loss_have_a_mean_loss():
    sampler = LossSampler(100, 0.5, 9)
    first = torch.tensor(list(sampler))
    assert sampler.loss_weight(first).tolist() == [1.0] * 50
    losses = torch.full((100,), math.nan)
    losses[first] = torch.arange(50.0)
    sampler.update(losses[first], first)
    second = torch.tensor(list(sampler))
    expected = expected_draws(losses, 50, True, 1.0)
    pi = 0.5 / sampler.loss_weight(second)
    torch.testing.assert_close(pi, expected[second], rtol=1e-4, atol=0)


@pytest.mark.parametrize('largest', [True, False])
@pytest.mark.parametrize('temperature', [1e-2, 1e-3, 1e-9])
def test_low_temperature_draws_the_extremes(largest, temperature):
    losses = torch.randperm(40).float()
    sampler = observe(losses, 0.1, largest=largest, temperature=temperature)
    for _ in range(3):
        drawn = list(sampler)
        assert len(set(drawn)) == 4
        extreme = 39.0 if largest else 0.0
        assert extreme in losses[drawn].tolist()
        assert sampler.loss_weight(torch.tensor(drawn)).isfinite().all()
        if temperature == 1e-2:
            extremes = range(36, 40) if largest else range(4)
            assert set(losses[drawn].tolist()) == set(extremes)


def test_high_temperature_is_uniform():
    sampler = observe(torch.arange(40.0), 0.5, temperature=1e9)
    weight = sampler.loss_weight(torch.tensor(list(sampler)))
    torch.testing.assert_close(weight, torch.ones(20))


@pytest.mark.parametrize('value', [0.0, 0.1, 1e-30, 1e30])
def test_equal_losses(value):
    for size in [1, 7, 1001]:
        sampler = observe(torch.full((size,), value), 0.5)
        for _ in range(3):
            graph_idx = torch.tensor(list(sampler))
            assert len(set(graph_idx.tolist())) == sampler.budget
            weight = sampler.loss_weight(graph_idx)
            torch.testing.assert_close(weight, torch.ones_like(weight))


def test_errors():
    for temperature in [0.0, -1.0, math.nan]:
        with pytest.raises(
            ValueError,
            match=r"'temperature' of 'LossSampler' .* positive \(got",
        ):
            LossSampler(10, 0.5, 3, temperature=temperature)
