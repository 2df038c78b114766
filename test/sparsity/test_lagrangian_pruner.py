import copy
import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from torch.nn import Linear, Sequential
from torch.nn.parallel import DistributedDataParallel

from devices import withDevice
from torch_geometric_ext.sparsity import ADMM, SLR, LagrangianPruner

PRUNERS = [ADMM, SLR]


class Trainer:
    def __init__(self, Pruner, device=None, **kwargs):
        torch.manual_seed(12345)
        self.x = torch.randn(30, 8, device=device)
        self.y = torch.randn(30, 3, device=device)
        self.model = Sequential(Linear(8, 16), torch.nn.ReLU(), Linear(16, 3))
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        options = dict(sparsity=0.7, update_every=3, min_fan_in=0)
        self.pruner = Pruner(
            self.model, self.optimizer, **{**options, **kwargs}
        )

    def train(self, num_steps):
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            loss = (self.model(self.x) - self.y).square().mean()
            self.pruner.regularize(loss).backward()
            self.optimizer.step()
            self.pruner.step()

    def parts(self):
        return [self.model, self.optimizer, self.pruner]

    def state(self):
        return copy.deepcopy([x.state_dict() for x in self.parts()])


@withDevice
@pytest.mark.parametrize('Pruner', PRUNERS)
def test_training(Pruner, device):
    trainer = Trainer(Pruner, device, rho=3.0, update_every=20)
    before = trainer.pruner.targets['0'].clone()
    trainer.train(2)
    assert torch.equal(trainer.pruner.targets['0'], before)
    trainer.train(598)
    history = trainer.pruner.history()
    assert history['step'] == list(range(20, 601, 20))
    assert history['residual'][-1] < 0.9 * max(history['residual'])
    for target in trainer.pruner.targets.values():
        assert target.device == trainer.x.device
    model = trainer.pruner.finalize()
    assert sum(x.values.numel() for x in [model[0], model[2]]) == round(
        0.3 * (8 * 16 + 16 * 3)
    )


@pytest.mark.parametrize('Pruner', PRUNERS)
def test_lagrangian(Pruner):
    trainer = Trainer(Pruner, rho=0.05)
    trainer.train(7)
    pruner, model = trainer.pruner, trainer.model
    loss = (model(trainer.x) - trainer.y).square().mean()
    expected = loss
    for name, layer in [('0', model[0]), ('2', model[2])]:
        residual = layer.weight - pruner.targets[name]
        expected = expected + (pruner.multipliers[name] * residual).sum()
        expected = expected + 0.05 / 2 * residual.square().sum()
    out = pruner.regularize(loss)
    assert torch.allclose(out, expected)
    weights = [model[0].weight, model[2].weight]
    grads = torch.autograd.grad(out, weights, retain_graph=True)
    for a, b in zip(grads, torch.autograd.grad(expected, weights)):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('Pruner', PRUNERS)
@pytest.mark.parametrize('num_steps', [0, 1, 4, 6])
def test_resume(Pruner, num_steps):
    trainer, other = Trainer(Pruner), Trainer(Pruner)
    trainer.train(num_steps)
    for x, state in zip(other.parts(), trainer.state()):
        x.load_state_dict(state)
    trainer.train(8)
    other.train(8)
    for a, b in zip(trainer.model.parameters(), other.model.parameters()):
        assert torch.equal(a, b)
    assert trainer.pruner.history() == other.pruner.history()


@pytest.mark.parametrize('Pruner', PRUNERS)
def test_state_is_checked_first(Pruner):
    trainer = Trainer(Pruner)
    trainer.train(4)
    good = trainer.pruner.state_dict()
    other = SLR if Pruner is ADMM else ADMM
    changes = [
        dict(policy=other.__name__),
        dict(sizes=[[1, 1]]),
        dict(last_step='x'),
        dict(targets={}),
        dict(targets={k: x[:1] for k, x in good['targets'].items()}),
        dict(multipliers=None),
        dict(records=[1]),
    ]
    if Pruner is SLR:
        changes.append(dict(step_size=None))
    for change in changes:
        before = copy.deepcopy(trainer.pruner.state_dict())
        with pytest.raises(ValueError, match="'state_dict'"):
            trainer.pruner.load_state_dict({**good, **change})
        after = trainer.pruner.state_dict()
        assert str(after) == str(before)


@pytest.mark.parametrize('Pruner', PRUNERS)
def test_frozen_layers_are_not_regularized(Pruner):
    model = Sequential(Linear(4, 4), Linear(4, 4))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, sparsity=0.5)
    assert list(pruner.targets) == ['1']
    frozen = model[0].weight.clone()
    loss = pruner.regularize(model(torch.ones(1, 4)).sum())
    loss.backward()
    optimizer.step()
    assert torch.equal(model[0].weight, frozen)
    pruner.finalize()
    assert not model[0].values.requires_grad
    frozen = Linear(4, 4).requires_grad_(False)
    with pytest.raises(ValueError, match='requires a gradient'):
        Pruner(frozen, torch.optim.SGD([frozen.weight], lr=0.1))


@pytest.mark.parametrize('sparse', [True, False])
@pytest.mark.parametrize('Pruner', PRUNERS)
def test_finalize_releases_memory(Pruner, sparse):
    trainer = Trainer(Pruner)
    trainer.train(4)
    pruner, history = trainer.pruner, trainer.pruner.history()
    name = str(pruner)
    tensors = [*pruner.targets.values(), *pruner.multipliers.values()]
    released = [trainer.optimizer, *tensors]
    released += [trainer.model[0]] if sparse else []
    released = [weakref.ref(x) for x in released]
    pruner.finalize(sparse)
    del trainer, tensors
    gc.collect()
    assert [x() for x in released] == [None] * len(released)
    for value in vars(pruner).values():
        for x in value.values() if isinstance(value, dict) else [value]:
            assert not isinstance(x, torch.Tensor) or x.dim() == 0
    assert str(pruner) == name and pruner.history() == history
    state = pruner.state_dict()
    with pytest.raises(RuntimeError, match='load_state_dict'):
        pruner.load_state_dict(state)


@pytest.mark.parametrize('Pruner', PRUNERS)
def test_losses_of_half_precision(Pruner):
    trainer = Trainer(Pruner, update_every=1)
    out = trainer.pruner.regularize(torch.tensor(0.1, dtype=torch.bfloat16))
    assert out.dtype == torch.float  # A sum in bfloat16 would be inexact.
    trainer.pruner.step()
    assert trainer.pruner.history()['loss'] == [pytest.approx(0.1, rel=1e-2)]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('Pruner', PRUNERS)
def test_statistics_of_half_precision(Pruner, dtype):
    linear = Linear(64, 64).to(dtype)
    with torch.no_grad():
        linear.weight.copy_(20 * torch.randn(64, 64))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    pruner = Pruner(linear, optimizer, 0.9, rho=0.5, update_every=1)
    for _ in range(2):
        pruner.regularize(torch.tensor(1.0))
        pruner.step()
    out = pruner.regularize(torch.tensor(1.0, dtype=dtype))
    residual = (linear.weight - pruner.targets['']).double()
    multiplier = pruner.multipliers[''].double()
    history = pruner.history()
    norm = residual.norm().item()
    assert history['residual'][-1] == pytest.approx(norm, rel=1e-4)
    norm = multiplier.norm().item()
    assert history['multiplier'][-1] == pytest.approx(norm, rel=1e-4)
    expected = 1 + (multiplier * residual).sum() + 0.25 * residual.norm() ** 2
    assert out.item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize('Pruner', PRUNERS)
def test_gradient_accumulation_averages_losses(Pruner):
    trainer = Trainer(Pruner, update_every=1)
    trainer.pruner.regularize(torch.tensor(1.0))
    trainer.pruner.regularize(torch.tensor(3.0))
    trainer.pruner.step()
    assert trainer.pruner.history()['loss'] == [2.0]


@pytest.mark.parametrize('Pruner', PRUNERS)
def test_losses_of_validation_do_not_count(Pruner):
    trainer = Trainer(Pruner, update_every=1)
    with torch.no_grad():
        out = trainer.pruner.regularize(torch.tensor(5.0))
    assert out > 5.0
    trainer.pruner.regularize(torch.tensor(1.0))
    trainer.pruner.step()
    assert trainer.pruner.history()['loss'] == [1.0]


@pytest.mark.parametrize('Pruner', PRUNERS)
def test_errors(Pruner):
    name = Pruner.__name__
    model = Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for key, value in [
        ('rho', 0.0),
        ('rho', float('inf')),
        ('update_every', 0),
        ('update_every', 2.5),
        ('block_size', 0),
    ]:
        with pytest.raises(ValueError, match=f"'{key}' of '{name}'"):
            Pruner(model, optimizer, **{key: value})
    with pytest.raises(TypeError, match=f"'optimizer' of '{name}'"):
        Pruner(model, None)
    other = torch.optim.SGD([model.bias], lr=0.1)
    with pytest.raises(ValueError, match=r"got no weight of \[''\]"):
        Pruner(model, other)
    pruner = Pruner(model, optimizer, update_every=1)
    with pytest.raises(RuntimeError, match='regularize'):
        pruner.step()
    assert pruner.last_step == 0
    for loss in [1.0, torch.ones(2)]:
        with pytest.raises(ValueError, match=f"'loss' of '{name}'"):
            pruner.regularize(loss)
    pruner.finalize()
    with pytest.raises(RuntimeError, match='regularize'):
        pruner.regularize(torch.tensor(1.0))


def test_base_class_is_abstract():
    model = Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match='abstract'):
        LagrangianPruner(model, optimizer)


def test_plot():
    pytest.importorskip('matplotlib').use('Agg')
    trainer = Trainer(SLR)
    trainer.train(6)
    figure = trainer.pruner.plot()
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == [
        'Loss',
        'Residual',
        'Multiplier',
        'Step size',
        'Fell by weights',
        'Fell by targets',
    ]
    assert list(figure.axes[0].lines[0].get_xdata()) == [3, 6]


def run_rank(path):
    rank = dist.get_rank()
    for Pruner in PRUNERS:
        trainer = Trainer(Pruner)
        model = DistributedDataParallel(trainer.model)
        x, y = trainer.x[rank::2], trainer.y[rank::2]
        for _ in range(9):
            trainer.optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            trainer.pruner.regularize(loss).backward()
            trainer.optimizer.step()
            trainer.pruner.step()
        torch.save(trainer.state()[2], f'{path}/{Pruner.__name__}{rank}.pt')


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    for Pruner in PRUNERS:
        first, second = (
            torch.load(tmp_path / f'{Pruner.__name__}{rank}.pt')
            for rank in range(2)
        )
        for key, x in first['targets'].items():
            assert torch.equal(x, second['targets'][key])
        for key, x in first['multipliers'].items():
            assert torch.equal(x, second['multipliers'][key])
        # One rank on all data has the same losses:
        trainer = Trainer(Pruner)
        trainer.train(9)
        expected = trainer.pruner.history()['loss']
        got = [float(record['loss']) for record in first['records']]
        assert got == pytest.approx(expected, rel=1e-4)
