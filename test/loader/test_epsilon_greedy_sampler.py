import math

import pytest
import torch

from devices import withDevice
from torch_geometric_ext.loader import EpsilonGreedySampler, UCBSampler


@withDevice
@pytest.mark.parametrize('epsilon', [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize('smoothing', [0.0, 0.8])
def test_draws_by_brute_force(device, epsilon, smoothing):
    num_epochs, size, budget = 30, 40, 20
    sampler = EpsilonGreedySampler(
        size, 0.5, num_epochs, epsilon=epsilon, smoothing=smoothing
    )
    num_random = round(epsilon * budget)
    generator = torch.Generator().manual_seed(0)
    average, count, seen = {}, torch.zeros(size), set()
    for _ in range(num_epochs):
        drawn = list(sampler)
        assert len(set(drawn)) == budget
        score = [average.get(i, math.inf) for i in range(size)]
        ranked = sorted(range(size), key=lambda i: -score[i])
        bound = score[ranked[budget - num_random - 1]]
        if num_random < budget:
            # Ties are broken at random, all of them graphs without a loss:
            top = {i for i in ranked if score[i] > bound}
            assert top <= set(drawn)
            missing = budget - num_random - len(top)
            assert sum(score[i] == bound for i in drawn) >= missing
        seen |= set(drawn)
        graph_idx = torch.tensor(drawn, device=device)
        loss = torch.rand(budget, generator=generator) + graph_idx.cpu() / size
        sampler.update(loss.to(device), graph_idx)
        for i, new in zip(drawn, loss.tolist()):
            old = average.get(i, new)
            average[i] = smoothing * old + (1 - smoothing) * new
        count[graph_idx.cpu()] += 1
    if num_random == 0:
        assert seen == set(range(size))
    sampler.set_epoch(num_epochs)
    for i, value in average.items():
        assert float(sampler.losses[i]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize('epsilon', [0.2, 0.5])
def test_random_graphs_are_uniform(epsilon):
    losses, num_epochs = torch.arange(30.0), 1000
    sampler = EpsilonGreedySampler(
        30, 1 / 3, num_epochs, epsilon=epsilon, warmup_epochs=1
    )
    count = torch.zeros(30)
    for epoch in range(num_epochs):
        graph_idx = torch.tensor(list(sampler))
        sampler.update(losses[graph_idx], graph_idx)
        if epoch > 0:
            count[graph_idx] += 1
            expected = torch.full((30,), 10 * epsilon / (20 + 10 * epsilon))
            expected[20 + round(10 * epsilon) :] = 1.0
            torch.testing.assert_close(
                sampler.loss_weight(graph_idx), 1 / (3 * expected[graph_idx])
            )
    mean = count / (num_epochs - 1)
    error = (expected * (1 - expected) / num_epochs).sqrt()
    assert ((mean - expected).abs() <= 4 * error).all()


def test_graphs_without_a_loss_come_first():
    sampler = EpsilonGreedySampler(100, 0.25, 9, epsilon=0.0)
    seen = set()
    for _ in range(4):
        drawn = list(sampler)
        assert not seen & set(drawn)
        seen |= set(drawn)
        graph_idx = torch.tensor(drawn)
        sampler.update(1e9 * torch.rand(25), graph_idx)
    assert seen == set(range(100))
    other = EpsilonGreedySampler(100, 0.25, 9, epsilon=0.0, seed=1)
    first = EpsilonGreedySampler(100, 0.25, 9, epsilon=0.0)
    assert set(other) != set(first)  # In a random order.


def test_greedy_draws_are_certain():
    # Not up to rounding: a graph with the largest loss is never left out.
    size = 10**5
    sampler = EpsilonGreedySampler(size, 0.37, 9, warmup_epochs=1)
    graph_idx = torch.tensor(list(sampler))
    sampler.update(graph_idx.float(), graph_idx)
    drawn = torch.tensor(list(sampler)).sort().values
    num_top = 37000 - 3700
    assert drawn.unique().numel() == 37000
    assert drawn[-num_top:].tolist() == list(range(size - num_top, size))


def test_errors():
    for options, message in [
        (dict(epsilon=-0.1), r"'epsilon' of 'EpsilonGreedySampler' .*-0.1\)"),
        (dict(epsilon=1.1), r"'epsilon' .* in \[0, 1\] \(got 1.1\)"),
        (dict(epsilon=math.nan), r"'epsilon' .* \(got nan\)"),
        (
            dict(epsilon=0, reweight=True),
            r"'epsilon' .* one random graph .* \(got 0\)",
        ),
        # Too small for one random graph:
        (dict(epsilon=0.01, reweight=True), r"'epsilon' .* 'reweight'"),
    ]:
        with pytest.raises(ValueError, match=message):
            EpsilonGreedySampler(10, 0.5, 3, **options)


@withDevice
@pytest.mark.parametrize('cls', [EpsilonGreedySampler, UCBSampler])
def test_balanced_draws_by_brute_force(device, cls):
    y = torch.tensor([0] * 30 + [1] * 6 + [2] * 14)
    options = dict(epsilon=0.0) if cls is EpsilonGreedySampler else dict()
    sampler = cls(50, 0.5, 9, y=y, balance=1.0, warmup_epochs=1, **options)
    loss = torch.rand(50, generator=torch.Generator().manual_seed(0))
    graph_idx = torch.tensor(list(sampler), device=device)
    sampler.update(loss.to(device)[graph_idx], graph_idx)
    # The class of 6 graphs is drawn completely, the others share 19 draws:
    drawn = set(sampler)
    count = y[list(drawn)].bincount().tolist()
    assert count[1] == 6 and sorted([count[0], count[2]]) == [9, 10]
    for label in range(3):
        graphs = (y == label).nonzero().view(-1)
        order = loss[graphs].argsort(descending=True)
        assert set(graphs[order[: count[label]]].tolist()) <= drawn


@pytest.mark.parametrize('balance', [0.5, 1.0])
@pytest.mark.parametrize('keep_ratio', [0.1, 0.42])
def test_balanced_draws_are_unbiased(balance, keep_ratio):
    y = torch.tensor([0] * 35 + [1] * 15)
    loss = torch.rand(50, generator=torch.Generator().manual_seed(0)) ** 2
    sampler = EpsilonGreedySampler(
        50,
        keep_ratio,
        1000,
        y=y,
        balance=balance,
        epsilon=0.4,
        warmup_epochs=1,
        reweight=True,
    )
    estimates, counts = [], set()
    for epoch in range(1000):
        graph_idx = torch.tensor(list(sampler))
        out = sampler.update(loss[graph_idx], graph_idx)
        if epoch > 0:
            estimates.append(out)
            counts.add(int(y[graph_idx].sum()))
    std, mean = torch.std_mean(torch.stack(estimates).double())
    error = float(std) / 1000**0.5
    assert float(mean) == pytest.approx(float(loss.mean()), abs=4 * error)
    # The draws of the class are its expectation rounded up or down:
    share = 15 ** (1 - balance) / (35 ** (1 - balance) + 15 ** (1 - balance))
    expected = sampler.budget * share
    assert counts <= {math.floor(expected), math.ceil(expected)}
