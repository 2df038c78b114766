import pytest
import torch

from devices import withDevice
from torch_geometric_ext.loader import InfoBatchSampler


def observe(losses, keep_ratio, num_epochs=9, **kwargs):
    """Return a sampler that knows the losses of all graphs."""
    sampler = InfoBatchSampler(
        losses.numel(), keep_ratio, num_epochs, warmup_epochs=1, **kwargs
    )
    graph_idx = torch.tensor(list(sampler))
    sampler.update(losses[graph_idx], graph_idx)
    return sampler


def make_losses(num_low, num_high):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(num_low, generator=generator)
    high = 9 + 0.01 * torch.rand(num_high, generator=generator)
    perm = torch.randperm(num_low + num_high, generator=generator)
    return torch.cat([low, high])[perm]


@withDevice
@pytest.mark.parametrize(
    'num_low, num_high, budget, low_draws',
    [
        (60, 40, 70, 30.0),  # The rest of the budget.
        (60, 40, 44, 4.4),  # At least a tenth of it.
        (60, 40, 30, 3.0),
        (10, 90, 95, 9.5),
        (4, 96, 50, 4.0),  # All of them.
        (4, 96, 99, 4.0),
        (60, 40, 100, 60.0),
    ],
)
def test_draws(device, num_low, num_high, budget, low_draws):
    losses = make_losses(num_low, num_high).to(device)
    low = (losses < losses.mean()).cpu()
    assert int(low.sum()) == num_low
    high_draws = budget - low_draws
    expected = torch.where(low, low_draws / num_low, high_draws / num_high)

    num_epochs = 400 if device.type == 'cpu' else 50
    sampler = observe(losses.cpu(), budget / 100, num_epochs, anneal_epochs=0)
    count = torch.zeros(100)
    for _ in range(num_epochs):
        graph_idx = torch.tensor(list(sampler), device=device)
        assert len(set(graph_idx.tolist())) == budget
        if high_draws == num_high:  # All graphs above the mean are kept.
            assert int((~low)[graph_idx.cpu()].sum()) == num_high
        count[graph_idx.cpu()] += 1
        # An inclusion probability scales a loss by its inverse:
        weight = budget / (100 * expected[graph_idx.cpu()])
        value = (weight.to(device) * losses[graph_idx]).mean()
        out = sampler.update(losses[graph_idx], graph_idx)
        torch.testing.assert_close(out, value)
    error = (expected * (1 - expected) / num_epochs).clamp(min=0).sqrt()
    assert ((count / num_epochs - expected).abs() <= 5 * error + 1e-6).all()
    assert float(count[low].sum()) / num_epochs == pytest.approx(
        low_draws, abs=2 / num_epochs**0.5
    )


def test_graphs_above_the_mean_are_scaled_by_one_in_the_paper():
    # If all of them are kept, a loss is scaled by the fraction of the budget,
    # and the ratio of weights is that of the paper, `1 / (1 - r)`.
    losses = make_losses(60, 40)
    sampler = observe(losses, 0.7)
    graph_idx = torch.tensor(list(sampler))
    weight = sampler.loss_weight(graph_idx)
    low = losses[graph_idx] < losses.mean()
    torch.testing.assert_close(weight[~low], torch.full((40,), 0.7))
    torch.testing.assert_close(weight[low], torch.full((30,), 1.4))


def test_unknown_graphs_count_as_above_the_mean():
    sampler = InfoBatchSampler(100, 0.6, 9)
    first = torch.tensor(list(sampler))  # Uniform.
    assert sampler.loss_weight(first).unique().tolist() == [1.0]
    losses = torch.arange(60.0)
    sampler.update(losses, first)
    second = torch.tensor(list(sampler))
    # 40 unknown graphs and 30 above the mean do not fit into 54 draws:
    expected = torch.full((100,), 54 / 70)
    expected[first[losses < losses.mean()]] = 6 / 30
    assert int((expected < 0.5).sum()) == 30
    weight = 60 / (100 * expected[second])
    torch.testing.assert_close(sampler.loss_weight(second), weight)


@pytest.mark.parametrize('value', [0.0, 0.1, 1 / 3, 1e-30, 7e5])
def test_equal_losses(value):
    for size in [1, 3, 7, 100, 1001]:
        losses = torch.full((size,), value)
        sampler = observe(losses, 0.5)
        for _ in range(3):
            graph_idx = torch.tensor(list(sampler))
            assert len(set(graph_idx.tolist())) == sampler.budget
            out = sampler.update(losses[graph_idx], graph_idx)
            assert float(out) == pytest.approx(value, rel=1e-4)


def test_annealing():
    for num_epochs, anneal in [(3, 0), (8, 1), (100, 12), (20, 2)]:
        sampler = InfoBatchSampler(10, 0.5, num_epochs)
        assert sampler.anneal_epochs == anneal
        lengths = [len(list(sampler)) for _ in range(num_epochs)]
        assert lengths == [5] * (num_epochs - anneal) + [10] * anneal
        assert sampler.total_steps(1) == sum(lengths)
    sampler = InfoBatchSampler(10, 0.5, 8, anneal_epochs=0)
    assert [len(list(sampler)) for _ in range(8)] == [5] * 8


def test_without_reweighting():
    losses = make_losses(60, 40)
    sampler = observe(losses, 0.7, reweight=False)
    graph_idx = torch.tensor(list(sampler))
    out = sampler.update(losses[graph_idx], graph_idx)
    torch.testing.assert_close(out, losses[graph_idx].mean())
