import math

import pytest
import torch

from devices import withDevice
from torch_geometric_ext.loader import UCBSampler


@withDevice
@pytest.mark.parametrize('confidence', [0.0, 1.0, 5.0])
@pytest.mark.parametrize('smoothing', [0.0, 0.8])
def test_draws_by_brute_force(device, confidence, smoothing):
    num_epochs, size, budget = 30, 40, 16
    sampler = UCBSampler(
        size, 0.4, num_epochs, confidence=confidence, smoothing=smoothing
    )
    generator = torch.Generator().manual_seed(0)
    mean, variance = {}, {}
    for _ in range(num_epochs):
        drawn = list(sampler)
        assert len(set(drawn)) == budget
        score = [math.inf] * size
        for i in mean:
            score[i] = mean[i] + confidence * variance[i] ** 0.5
        ranked = sorted(range(size), key=lambda i: -score[i])
        bound = score[ranked[budget - 1]]
        if bound < math.inf:
            assert set(drawn) == set(ranked[:budget])
        else:
            assert all(score[i] == math.inf for i in drawn)

        graph_idx = torch.tensor(drawn, device=device)
        loss = torch.rand(budget, generator=generator)
        sampler.update(loss.to(device), graph_idx)
        for i, new in zip(drawn, loss.tolist()):
            difference = new - mean.setdefault(i, new)
            increase = (1 - smoothing) * difference**2
            mean[i] += (1 - smoothing) * difference
            variance[i] = smoothing * (variance.get(i, 0.0) + increase)
    sampler.set_epoch(num_epochs)
    assert len(mean) == size
    for i in range(size):
        assert float(sampler.losses[i]) == pytest.approx(mean[i], abs=1e-5)
        assert float(sampler.variance[i]) == pytest.approx(
            variance[i], abs=1e-5
        )


def test_confidence_prefers_uncertain_graphs():
    for confidence, expected in [(0.0, {2, 3}), (2.0, {0, 1})]:
        sampler = UCBSampler(4, 0.5, 9, confidence=confidence, warmup_epochs=2)
        for epoch in range(2):
            graph_idx = torch.tensor(list(sampler))
            # The first two graphs change, the others have larger losses:
            losses = torch.tensor([0.8 * epoch, 0.8 * epoch, 0.5, 0.6])
            sampler.update(losses[graph_idx], graph_idx)
        assert set(sampler) == expected


def test_loss_that_is_not_finite_changes_no_deviation():
    sampler = UCBSampler(4, 1.0, 9)
    for values in [[1.0, 2.0, 3.0, 4.0], [2.0, math.nan, math.inf, 4.0]]:
        graph_idx = torch.tensor(list(sampler))
        sampler.update(torch.tensor(values)[graph_idx], graph_idx)
    list(sampler)
    variance = sampler.variance.tolist()
    assert variance == [pytest.approx(0.8 * 0.2), 0.0, 0.0, 0.0]
    assert sampler.losses.tolist() == [pytest.approx(1.2), 2.0, 3.0, 4.0]


def test_errors():
    for options, message in [
        (dict(confidence=-1.0), r"'confidence' of 'UCBSampler' .*-1.0\)"),
        (dict(confidence=math.nan), r"'confidence' .* \(got nan\)"),
        (dict(smoothing=1.0), r"'smoothing' .* \(got 1.0\)"),
        (dict(reweight=True), r"'reweight' of 'UCBSampler' .* \(got True\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            UCBSampler(10, 0.5, 3, **options)
    assert not UCBSampler(10, 0.5, 3, reweight=False).reweight
