"""Test what all samplers share that draw graphs by their loss."""

import copy
import math

import pytest
import torch

from devices import withDevice
from torch_geometric_ext.loader import (
    EpsilonGreedySampler,
    InfoBatchSampler,
    LossSampler,
    UCBSampler,
)
from torch_geometric_ext.loader.loss_based_sampler import LossBasedSampler

SAMPLERS = {
    'base': (LossBasedSampler, dict()),
    'base, average': (LossBasedSampler, dict(smoothing=0.5)),
    'info batch': (InfoBatchSampler, dict()),
    'info batch, average': (InfoBatchSampler, dict(smoothing=0.5)),
    'epsilon-greedy': (EpsilonGreedySampler, dict()),
    'random': (EpsilonGreedySampler, dict(epsilon=1.0)),
    'greedy': (EpsilonGreedySampler, dict(epsilon=0.0)),
    'ucb': (UCBSampler, dict()),
    'large losses': (LossSampler, dict()),
    'small losses': (LossSampler, dict(largest=False, temperature=0.5)),
    'hot': (LossSampler, dict(temperature=1e-3)),
    'copies': (LossSampler, dict(replacement=True)),
    'classes': (LossSampler, dict(balance=1.0, y=torch.arange(50) % 7 // 4)),
    'minimum': (
        InfoBatchSampler,
        dict(min_per_class=5, y=torch.arange(50) // 40),
    ),
}
LOSS = torch.rand(50, generator=torch.Generator().manual_seed(0)) ** 3


def make(name, size=50, keep_ratio=0.4, num_epochs=9, **kwargs):
    cls, options = SAMPLERS[name]
    return cls(size, keep_ratio, num_epochs, **{**options, **kwargs})


def train(sampler, num_epochs=1, batch_size=7):
    """Train some epochs with losses that change."""
    epochs = []
    for _ in range(num_epochs):
        epochs.append(list(sampler))
        factor = 1 + math.sin(sampler.epoch)
        for graph_idx in torch.tensor(epochs[-1]).split(batch_size):
            sampler.update(factor * LOSS[graph_idx], graph_idx)
    return epochs


def assert_same(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value, other[key], rtol=0, atol=0, equal_nan=True
            )
        else:
            assert value == other[key], key


@pytest.mark.parametrize('keep_ratio', [0.01, 0.31, 0.9, 1.0])
@pytest.mark.parametrize('name', SAMPLERS)
def test_exact_budget(name, keep_ratio):
    if name == 'minimum' and keep_ratio < 0.2:
        keep_ratio = 0.2
    sampler = make(name, keep_ratio=keep_ratio)
    for out in train(sampler, 9):
        full = sampler.anneal_epochs > 0 and len(out) == 50
        assert full or len(out) == max(round(50 * keep_ratio), 1)
        assert all(0 <= i < 50 for i in out)
        if not sampler.replacement:
            assert len(set(out)) == len(out)


@pytest.mark.parametrize('name', SAMPLERS)
def test_state_resumes(name):
    sampler = make(name)
    train(sampler, 3)
    list(sampler)  # The next epoch, with feedback on a part of it.
    graph_idx = torch.tensor(list(sampler)[:9])
    sampler.update(LOSS[graph_idx], graph_idx)
    state = copy.deepcopy(sampler.state_dict())
    expected = train(sampler, 3)

    other = make(name, seed=3)
    train(other, 2)
    other.load_state_dict(state)
    assert_same(other.state_dict(), state)
    list(other)  # The rest of the epoch, without feedback.
    assert train(other, 3) == expected
    assert_same(other.state_dict(), sampler.state_dict())


@pytest.mark.parametrize('name', SAMPLERS)
def test_ranks_share_a_draw(name):
    whole = make(name)
    samplers = [make(name, num_replicas=3, rank=rank) for rank in range(3)]
    for _ in range(4):
        expected = train(whole)[0]
        parts = [list(sampler) for sampler in samplers]
        merged = [i for group in zip(*parts) for i in group]
        assert merged[: len(expected)] == expected
        # Without processes, each rank is given the feedback of all ranks:
        factor = 1 + math.sin(whole.epoch)
        for sampler in samplers:
            graph_idx = torch.tensor(expected)
            sampler.update(factor * LOSS[graph_idx], graph_idx)


@pytest.mark.parametrize('name', SAMPLERS)
def test_mini_batches_do_not_matter(name):
    sampler, other = make(name), make(name)
    for _ in range(4):
        # Copies of a graph have one loss here, whose mean is exact enough:
        assert train(sampler, batch_size=7) == train(other, batch_size=1)


@pytest.mark.parametrize('smoothing', [0.0, 0.3, 0.9])
def test_average_losses(smoothing):
    sampler = LossBasedSampler(6, 0.5, 20, smoothing=smoothing)
    assert sampler.losses.isnan().all()
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for _ in range(20):
        graph_idx = torch.tensor(list(sampler))
        loss = torch.rand(3, generator=generator)
        sampler.update(loss, graph_idx)
        for i, new in zip(graph_idx.tolist(), loss.tolist()):
            old = expected.get(i, new)
            expected[i] = smoothing * old + (1 - smoothing) * new
    sampler.set_epoch(20)
    for i, value in enumerate(sampler.losses.tolist()):
        assert value == pytest.approx(expected[i], rel=1e-5)


def test_losses_of_copies_are_averaged():
    sampler = LossBasedSampler(2, 1.0, 2, replacement=True)
    list(sampler)
    sampler.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))
    sampler.update(torch.tensor([4.0]), torch.tensor([0]))
    list(sampler)
    assert sampler.losses.tolist() == [2.5, 2.0]


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('wrong', [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_ignored(name, wrong):
    sampler = make(name)
    train(sampler, 2)
    graph_idx = torch.tensor(list(sampler))
    before = sampler.losses.clone()
    loss = LOSS[graph_idx] + 5
    loss[::2] = wrong
    sampler.update(loss, graph_idx)
    sampler.set_epoch(3)
    ignored = graph_idx[::2]
    torch.testing.assert_close(
        sampler.losses[ignored], before[ignored], equal_nan=True
    )
    others = torch.tensor(sorted({*graph_idx.tolist()} - {*ignored.tolist()}))
    assert (sampler.losses[others] != before[others]).all()
    assert sampler.losses[others].isfinite().all()
    train(sampler, 3)


@withDevice
@pytest.mark.parametrize('name', SAMPLERS)
def test_update(device, name):
    sampler, other = make(name), make(name)
    for _ in range(3):
        graph_idx = torch.tensor(list(sampler), device=device)
        assert graph_idx.tolist() == list(other)
        loss = LOSS.to(device)[graph_idx].requires_grad_()
        out = sampler.update(loss, graph_idx)
        assert out.shape == () and out.device == loss.device
        weight = torch.ones_like(loss)
        if sampler.reweight:
            weight = sampler.loss_weight(graph_idx)
        torch.testing.assert_close(out, (weight * loss).mean())
        (grad,) = torch.autograd.grad(out, loss)
        torch.testing.assert_close(grad, weight / loss.numel())
        other.update(LOSS[graph_idx.cpu()], graph_idx.cpu())
        # What is recorded has no graph of gradients:
        assert not sampler.state_dict()['feedback'].requires_grad
    sampler.set_epoch(3), other.set_epoch(3)
    assert_same(sampler.state_dict(), other.state_dict())


@withDevice
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_losses_of_other_types(device, dtype):
    sampler = InfoBatchSampler(50, 0.4, 9)
    for _ in range(3):
        graph_idx = torch.tensor(list(sampler), device=device)
        loss = LOSS.to(device, dtype)[graph_idx]
        out = sampler.update(loss, graph_idx)
        assert out.dtype == dtype
    sampler.set_epoch(3)
    known = sampler.losses.isfinite()
    assert sampler.losses.dtype == torch.float
    expected = LOSS.to(dtype).float()[known]
    torch.testing.assert_close(sampler.losses[known], expected)


@withDevice
def test_update_does_not_synchronize(device):
    if device.type != 'cuda':
        pytest.skip('needs a GPU')
    sampler = LossSampler(50, 0.4, 9, reweight=True)
    for _ in range(3):
        graph_idx = torch.tensor(list(sampler)).to(device)
        loss = torch.rand(20, device=device)
        torch.cuda.set_sync_debug_mode('error')
        try:
            for _ in range(2):
                sampler.update(loss, graph_idx)
        finally:
            torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize(
    'name, options',
    [
        ('base', dict()),
        ('base', dict(replacement=True)),
        ('info batch', dict()),
        ('info batch', dict(keep_ratio=0.9)),
        ('info batch', dict(keep_ratio=0.9, smoothing=0.8)),
        ('info batch, average', dict(keep_ratio=0.7)),
        ('epsilon-greedy', dict(epsilon=0.3)),
        ('epsilon-greedy', dict(epsilon=0.3, keep_ratio=0.1)),
        ('random', dict()),
        ('large losses', dict()),
        ('large losses', dict(keep_ratio=0.9)),
        ('small losses', dict()),
        ('copies', dict()),
        ('classes', dict()),
        ('minimum', dict()),
    ],
)
def test_reweighted_losses_are_unbiased(name, options):
    num_epochs = 1200
    sampler = make(
        name,
        num_epochs=num_epochs,
        reweight=True,
        **{'anneal_epochs': 0, **options},
    )
    estimates, plain = [], []
    for _ in range(num_epochs):
        graph_idx = torch.tensor(list(sampler))
        estimates.append(sampler.update(LOSS[graph_idx], graph_idx))
        plain.append(LOSS[graph_idx].mean())
    std, mean = torch.std_mean(torch.stack(estimates).double())
    error = float(std) / num_epochs**0.5
    assert float(mean) == pytest.approx(float(LOSS.mean()), abs=4 * error)
    if name not in ['base', 'random']:
        difference = torch.stack(plain).double().mean() - LOSS.mean()
        assert abs(float(difference)) > 5 * error


@pytest.mark.parametrize('name', SAMPLERS)
def test_errors_of_update(name):
    sampler = make(name)
    graph_idx = torch.tensor(list(sampler))
    loss, cls = LOSS[graph_idx], sampler.__class__.__name__
    others = set(range(50)) - set(graph_idx.tolist())
    wrong = graph_idx.clone()
    wrong[3] = min(others)
    for args, error, message in [
        ((loss, None), TypeError, rf"'graph_idx' of '{cls}' .* \(got None\)"),
        ((loss, graph_idx.int()), TypeError, r"'graph_idx' .* torch.int32"),
        ((loss, graph_idx.tolist()), TypeError, r"'graph_idx' .* tensor"),
        ((1.0, graph_idx), TypeError, rf"'loss' of '{cls}' .* tensor"),
        ((loss.mean(), graph_idx), ValueError, rf"'loss' of '{cls}' .*'none'"),
        ((loss[1:], graph_idx), ValueError, r"'loss' .* \[20\], .*\[19\]"),
        ((loss.view(-1, 1), graph_idx), ValueError, r"'loss' .*\[20, 1\]"),
        ((loss, wrong), ValueError, r"'graph_idx' .* current epoch 0"),
    ]:
        with pytest.raises(error, match=message):
            sampler.update(*args)
        assert sampler.state_dict()['graph_idx'].numel() == 0


@pytest.mark.parametrize('name', SAMPLERS)
def test_errors(name):
    for options, message in [
        (dict(smoothing=-0.1), r"'smoothing' .* \(got -0.1\)"),
        (dict(smoothing=1.0), r"'smoothing' .* in \[0, 1\) \(got 1.0\)"),
        (dict(smoothing=math.nan), r"'smoothing' .* \(got nan\)"),
        (dict(keep_ratio=0), r"'keep_ratio' .* \(got 0\)"),
        (dict(num_epochs=0), r"'num_epochs' .* \(got 0\)"),
        (dict(anneal_epochs=-1), r"'anneal_epochs' .* \(got -1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(name, **options)
