import pytest
import torch
import torch_geometric.nn as pyg

from torch_geometric_ext.nn import SparseLinear, densify, sparsify
from torch_geometric_ext.sparsity import (
    ADMM,
    SET,
    SLR,
    GradualMagnitude,
    MagnitudePruner,
    RigL,
    WeightScheduler,
)

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
    with pytest.raises(ValueError, match=r"no weight of \['0'\]"):
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

    with pytest.raises(ValueError, match=r"got 0 .* 'sparsify\(model, ...\)"):
        build(torch.nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"no weight of \['1'\]"):
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


@pytest.mark.parametrize('policy', [SET, RigL, GradualMagnitude, SLR, ADMM])
def test_optimizers_of_replaced_parameters(policy):
    model = pyg.GCN(16, 16, num_layers=2, out_channels=8)
    if policy in (SLR, ADMM):
        optimizer = torch.optim.Adam(sparsify(model, 0.5).parameters())
        densify(model)
    else:
        optimizer = torch.optim.Adam(model.parameters())
        sparsify(model, 0.5)
    kwargs = {'sparsity': 0.9} if policy is GradualMagnitude else {}
    if policy not in (SLR, ADMM):
        kwargs['num_steps'] = 1000
    expected = (
        r"no weight of \['convs.0.lin', 'convs.1.lin'\]\)\. "
        r"Create the optimizer after 'sparsify'"
    )
    with pytest.raises(ValueError, match=expected):
        policy(model, optimizer, **kwargs)
    policy(model, torch.optim.Adam(model.parameters()), **kwargs)


class Wrapper:
    """Hold an optimizer, as PyTorch Lightning and Accelerate do."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    @property
    def optimizer(self):
        return self._optimizer

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


class Snapshot(Wrapper):
    """Hold a copy of the attributes, which becomes outdated."""

    def __init__(self, optimizer):
        self.__dict__ = dict(optimizer.__dict__)
        self._optimizer = optimizer
        bases = (Snapshot, type(optimizer))
        self.__class__ = type('Snapshot', bases, {})


@pytest.mark.parametrize('wrap', [Wrapper, Snapshot])
def test_wrapped_optimizers(wrap):
    torch.manual_seed(12345)
    layer, x = SparseLinear(8, 8, sparsity=0.5), torch.randn(5, 8)
    optimizer = torch.optim.Adam(layer.parameters())
    wrapper = wrap(optimizer)
    kwargs = dict(num_steps=9, update_every=1, sparsity=0.9)
    scheduler = GradualMagnitude(layer, wrapper, **kwargs)
    layer(x).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())  # Replaces its state.
    scheduler.step()
    state = optimizer.state[layer.values]
    assert state['exp_avg'].shape == layer.values.shape < (32,)
    with pytest.raises(TypeError, match="'optimizer' of 'Grad.*StepLR"):
        lr = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        GradualMagnitude(layer, lr, **kwargs)


@pytest.mark.parametrize('Pruner', [MagnitudePruner, ADMM, SLR])
def test_wrapped_optimizers_of_pruners(Pruner):
    linear = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam(linear.parameters())
    assert Pruner(linear, Wrapper(optimizer)).optimizer is optimizer
