import pytest
import torch

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import SET, RigL, WeightScheduler

POLICIES = [SET, RigL]


@pytest.mark.parametrize('policy', POLICIES)
def test_weight_scheduler_frozen_layers(policy):
    torch.manual_seed(12345)
    first, second = SparseLinear(8, 8), SparseLinear(8, 8)
    model = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    first.values.requires_grad_(False)
    # The optimizer needs to train unfrozen layers only:
    optimizer = torch.optim.SGD(second.parameters(), 0.1)
    kwargs = dict(num_steps=9, update_every=1, drop_fraction=1.0)
    scheduler = policy(model, optimizer, **kwargs)

    def train():
        old = [first.index, second.index]
        model(torch.randn(5, 8)).sum().backward()
        scheduler.step()
        return [not torch.equal(x.index, y) for x, y in zip(model[::2], old)]

    assert train() == [False, True]
    assert scheduler.explored_by_layer['0'] == 6 / 64
    first.values.requires_grad_(True)
    with pytest.raises(ValueError, match="none of the values of '0'"):
        train()
    assert scheduler.last_step == 1
    optimizer.add_param_group({'params': first.parameters()})
    assert train() == [True, True]
    scheduler.remove()


@pytest.mark.parametrize('policy', POLICIES)
def test_weight_scheduler_with_lr_schedulers_and_closures(policy):
    states = []
    for lr_first in [True, False]:
        torch.manual_seed(12345)
        layer = SparseLinear(8, 4, sparsity=0.5, seed=0)
        x = torch.randn(5, 8)
        optimizer = torch.optim.Adam(
            [{'params': [layer.values], 'lr': 0.1}, {'params': [layer.bias]}]
        )
        make_lr = torch.optim.lr_scheduler.StepLR
        if lr_first:
            lr = make_lr(optimizer, 2)
        scheduler = policy(layer, optimizer, num_steps=9, update_every=2)
        if not lr_first:
            lr = make_lr(optimizer, 2)

        def closure(layer=layer, optimizer=optimizer, x=x):
            optimizer.zero_grad()
            loss = layer(x).square().sum()
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(closure)
            scheduler.step()
            lr.step()
        assert scheduler.last_step == lr.last_epoch == 6
        assert layer.values.numel() == 16
        states.append([layer.index, layer.values, scheduler.explored])
    for a, b in zip(*states):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_weight_scheduler_remove():
    layer = SparseLinear(8, 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    scheduler = SET(layer, optimizer, num_steps=9, update_every=1)
    assert scheduler.pending
    scheduler.remove()
    assert not scheduler.pending
    with pytest.raises(RuntimeError, match=r"after 'remove\(\)'"):
        scheduler.step()


@pytest.mark.parametrize('policy', POLICIES)
def test_weight_scheduler_errors(policy):
    layer = SparseLinear(8, 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for kwargs, message in [
        (dict(num_steps=0), r"'num_steps' .* at least one \(got 0\)"),
        (dict(update_every=0), r"'update_every' .* at least one \(got 0\)"),
        (dict(stop=1.5), r"'stop' .* \(0, 1\] \(got 1.5\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            policy(layer, optimizer, **{'num_steps': 1000, **kwargs})

    def build(model, optimizer=optimizer):
        policy(model, optimizer, num_steps=9, update_every=1)

    with pytest.raises(ValueError, match=r"\(got 0 'SparseLinear' without\)"):
        build(torch.nn.Linear(8, 4))
    with pytest.raises(ValueError, match="none of the values of '1'"):
        build(torch.nn.Sequential(layer, SparseLinear(4, 4)))
    with pytest.raises(ValueError, match=r"forward pass .* \(got '0' with"):
        build(torch.nn.Sequential(SparseLinear(-1, 4)))
    other = SparseLinear(8, 4)
    other.values = layer.values
    with pytest.raises(ValueError, match=r"\(got '0' and '1'\); share the"):
        build(torch.nn.Sequential(layer, other))
    with pytest.raises(NotImplementedError, match='LBFGS'):
        build(layer, torch.optim.LBFGS(layer.parameters()))
    layer.values.requires_grad_(False)
    with pytest.raises(ValueError, match=r"\(got 1 'SparseLinear' without\)"):
        build(layer)
    assert len(layer._forward_hooks) == 0
    with pytest.raises(TypeError, match='abstract'):
        WeightScheduler(layer, optimizer, num_steps=9)
