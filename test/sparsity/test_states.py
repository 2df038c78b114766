"""Load damaged states of schedulers and pruners."""

import copy
from functools import cache

import pytest
import torch
from hostile_states import assert_same, check_hostile_states
from torch.nn import Linear, ReLU, Sequential

from torch_geometric_ext.nn import sparsify
from torch_geometric_ext.sparsity import (
    ADMM,
    SET,
    SLR,
    GradualMagnitude,
    RigL,
)

PRUNERS = [ADMM, SLR]
OPTIONAL = ['rho', 'update_every', 'granularity', 'block_size', 'num_weights']


class Training:
    """Train a small model with a scheduler or a pruner."""

    def __init__(self, cls, **kwargs):
        generator = torch.manual_seed(0)
        self.x = torch.randn(5, 6, generator=generator)
        model = Sequential(Linear(6, 5), ReLU(), Linear(5, 3))
        if cls in PRUNERS:
            kwargs = {'sparsity': 0.5, 'update_every': 2, **kwargs}
        else:
            model = sparsify(model, sparsity=0.4, seed=0)
            kwargs = {'num_steps': 40, 'update_every': 2, **kwargs}
        if cls is GradualMagnitude:
            kwargs['sparsity'] = 0.8
        self.model = model
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9
        )
        self.scheduler = cls(model, self.optimizer, **kwargs)
        self.regularize = getattr(self.scheduler, 'regularize', lambda x: x)

    def train(self, num_steps):
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            loss = self.regularize(self.model(self.x).square().mean())
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
        return self


@cache
def make_state(cls):
    """Return the state of a scheduler after five steps."""
    return Training(cls).train(5).scheduler.state_dict()


def make(cls):
    """Return a scheduler that belongs to a training, and a later state."""
    state = make_state(cls)
    training = Training(cls).train(3)
    training.scheduler.training = training
    return training.scheduler, state


def behave(scheduler):
    training = scheduler.training.train(5)
    record = [list(training.model.state_dict().values())]
    if isinstance(scheduler, SLR):
        record.append(scheduler.history())
    return copy.deepcopy([*record, scheduler.state_dict()])


@pytest.mark.parametrize('cls', [SET, RigL, GradualMagnitude, ADMM, SLR])
def test_hostile_states(cls):
    optional = OPTIONAL if cls in PRUNERS else ()
    check_hostile_states(lambda: make(cls), behave, optional)


@pytest.mark.parametrize('cls', PRUNERS)
@pytest.mark.parametrize(
    'key, kwargs',
    [
        ('rho', dict(rho=0.5)),
        ('update_every', dict(update_every=3)),
        ('granularity', dict(granularity='row')),
        ('block_size', dict(block_size=2)),
        ('num_weights', dict(sparsity=0.8)),
        ('num_weights', dict(distribution='global')),
    ],
)
def test_states_of_other_arguments(cls, key, kwargs):
    state = Training(cls, **kwargs).train(5).scheduler.state_dict()
    pruner = Training(cls).train(3).scheduler
    before = copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match=f"needs to have the same '{key}'"):
        pruner.load_state_dict(state)
    assert_same(pruner.state_dict(), before)
