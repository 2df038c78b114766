import math

import pytest
import torch
from torch.nn import BatchNorm1d, Linear, Sequential

from torch_geometric_ext.lottery.stage import Stage
from torch_geometric_ext.lottery.task import CustomTask
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import RigL


def regression(metrics, num_batches=1):
    """A task whose metrics are given."""
    torch.manual_seed(0)
    loader = [torch.randn(8, 6) for _ in range(num_batches)]
    metrics = iter(metrics)
    return CustomTask(
        loader,
        lambda model, x: (model(x) - x[:, :3]).pow(2).mean(),
        lambda model, batches: next(metrics),
    )


def build(metrics, num_epochs, model=None, num_batches=1, **kwargs):
    model = model or Linear(6, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    task = regression(metrics, num_batches)
    return Stage('test', model, task, optimizer, num_epochs, **kwargs)


def run(stage):
    seen, states = [], []

    def callback(stage):
        seen.append(stage.progress)
        states.append(stage.model.state_dict()['0.running_mean'].clone())

    return stage.run(callback), seen, states


def test_stage():
    model = Sequential(BatchNorm1d(6), Linear(6, 3))
    stage = build([1, 3, 3, 2], 7, model, evaluate_every=2)
    outcome, seen, states = run(stage)
    # The last epoch is evaluated, too, and the first of equal ones is best:
    assert [x.epoch for x in seen] == [2, 4, 6, 7]
    assert [x.metric for x in seen] == outcome.history == [1, 3, 3, 2]
    assert [x.best for x in seen] == [1, 3, 3, 3]
    assert (outcome.metric, outcome.epoch) == (3, 4)
    mean = outcome.best.state['0.running_mean']
    assert torch.equal(mean, states[1])
    assert torch.equal(outcome.last.state['0.running_mean'], states[-1])
    assert outcome.seconds > 0 and outcome.scores is None
    assert outcome.best.masks == {}


@pytest.mark.parametrize('evaluate_every', [1, 3, 50])
def test_stage_patience(evaluate_every):
    metrics = [1, 2, 2, 1, 0, 5, 6, 7, 8]
    stage = build(metrics, 9, evaluate_every=evaluate_every, patience=2)
    stage.run(lambda stage: None)
    expected = {1: 4, 3: 9, 50: 9}[evaluate_every]
    assert stage.epoch == expected


def test_stage_moves():
    # A fraction of weights moves, to zeros without momentum:
    torch.manual_seed(0)
    model = Sequential(SparseLinear(6, 3, sparsity=0.5, seed=0))
    stage = build([0.0] * 8, 8, model, num_batches=2)
    stage.scheduler = scheduler = RigL(
        model, stage.optimizer, num_steps=16, update_every=3, drop_fraction=0.5
    )
    layer, step, moved = model[0], scheduler.step, []

    def spy():
        before, due = layer.index.clone(), scheduler.pending
        assert layer.values.grad.shape == layer.values.shape
        step()
        new = ~torch.isin(layer.index, before)
        assert layer.index.numel() == before.numel() == 9
        assert (layer.values[new] == 0).all()
        state = stage.optimizer.state[layer.values]
        assert (state['exp_avg'][new] == 0).all()
        assert (state['exp_avg_sq'][new] == 0).all()
        moved.append(int(new.sum()))
        assert due or moved[-1] == 0

    scheduler.step = spy
    stage.run(lambda stage: None)
    expected = [0] * 16
    for i in [3, 6, 9]:
        fraction = 0.25 * (1 + math.cos(math.pi * i / 12))
        expected[i - 1] = round(fraction * 9)
    assert moved == expected and sum(moved) > 0
    assert not layer._forward_hooks and not layer._forward_pre_hooks


def test_stage_errors():
    with pytest.raises(ValueError, match=r'needs to return a number'):
        build([math.nan], 1).run(lambda stage: None)
    stage = build([0.0] * 9, 9)
    stage.task.loss_fn = lambda model, x: model(x).sum() * math.nan
    with pytest.raises(ValueError, match="diverged .* epoch 1 of .* 'test'"):
        stage.run(lambda stage: None)
