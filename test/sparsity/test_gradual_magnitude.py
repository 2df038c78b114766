import copy

import pytest
import torch
import torch.distributed as dist

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import GradualMagnitude


class Trainer:
    def __init__(self, make=torch.optim.Adam, device=None, **kwargs):
        torch.manual_seed(12345)
        self.x = torch.randn(30, 10, device=device)
        self.model = torch.nn.Sequential(
            SparseLinear(10, 20, sparsity=0.0, seed=0),
            torch.nn.ReLU(),
            SparseLinear(20, 10, sparsity=0.5, seed=0),
        ).to(device)
        self.layers = [self.model[0], self.model[2]]
        self.optimizer = make(self.model.parameters(), lr=0.01)
        options = dict(num_steps=20, sparsity=0.9, update_every=2)
        self.scheduler = GradualMagnitude(
            self.model, self.optimizer, **{**options, **kwargs}
        )

    def train(self, num_steps):
        losses, num_weights = [], []
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            loss = (self.model(self.x) - self.x).square().mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss)  # Keeps the graphs of all steps alive.
            num_weights.append([x.values.numel() for x in self.layers])
        return losses, num_weights

    def state(self):
        states = [self.model, self.optimizer, self.scheduler]
        return copy.deepcopy([x.state_dict() for x in states])


@withDevice
def test_gradual_magnitude(device):
    trainer = Trainer(device=device)
    assert str(trainer.scheduler) == (
        'GradualMagnitude(num_layers=2, num_steps=20, update_every=2)'
    )
    parameters = list(trainer.model.parameters())
    losses, num_weights = trainer.train(20)
    expected, sizes = [], [200, 100]
    for step in range(1, 21):
        if step in [2, 4, 6, 8, 10, 12, 14, 15]:  # And at `stop`.
            rest = (1 - step / 15) ** 3  # Eq. (1).
            sparsities = [0.9 - 0.9 * rest, 0.9 - 0.4 * rest]
            sizes = [round(200 * (1 - x)) for x in sparsities]
        expected.append(sizes)
    assert num_weights == expected and expected[-1] == [20, 20]
    assert losses[-1] < losses[0]
    assert all(a is b for a, b in zip(parameters, trainer.model.parameters()))
    for layer in trainer.layers:
        assert layer.sparsity == pytest.approx(0.9)
        state = trainer.optimizer.state[layer.values]
        assert state['exp_avg'].shape == layer.values.grad.shape == (20,)


def test_gradual_magnitude_prunes_the_smallest_weights():
    for global_ranking in [False, True]:
        trainer = Trainer(
            torch.optim.SGD, update_every=1, global_ranking=global_ranking
        )
        trainer.optimizer.param_groups[0]['lr'] = 0.0
        dense = [layer.weight.detach().abs() for layer in trainer.layers]
        trainer.train(15)
        assert sum(x.values.numel() for x in trainer.layers) == 40
        active = [a[b.mask] for a, b in zip(dense, trainer.layers)]
        pruned = [a[~b.mask] for a, b in zip(dense, trainer.layers)]
        if global_ranking:
            active, pruned = [torch.cat(active)], [torch.cat(pruned)]
            assert trainer.layers[0].values.numel() != 20
        for a, b in zip(active, pruned):
            assert a.min() > b.max()


def test_gradual_magnitude_start():
    trainer = Trainer(start=0.5, update_every=3)
    _, num_weights = trainer.train(20)
    first, second = zip(*num_weights)
    assert first[:11] == (200,) * 11 and first[11] < 200
    assert first[14:] == (20,) * 6 and second[14:] == (20,) * 6


def test_gradual_magnitude_skips_sparser_and_frozen_layers():
    trainer = Trainer(sparsity=0.25)
    trainer.train(20)
    assert [x.values.numel() for x in trainer.layers] == [150, 100]
    trainer = Trainer()
    trainer.layers[0].values.requires_grad_(False)
    trainer.train(20)
    assert [x.values.numel() for x in trainer.layers] == [200, 20]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0)])
def test_gradual_magnitude_resumes(order, tmp_path):
    expected, first, second = Trainer(), Trainer(), Trainer()
    expected.train(20)
    first.train(7)
    torch.save(first.state(), tmp_path / 'state.pt')
    states = torch.load(tmp_path / 'state.pt')
    objects = [second.model, second.optimizer, second.scheduler]
    for i in order:
        objects[i].load_state_dict(states[i])
    second.train(13)

    model, optimizer, scheduler = expected.state()
    out = second.state()
    assert out[2] == scheduler
    for key, x in model.items():
        assert torch.equal(out[0][key], x)
    for i, state in optimizer['state'].items():
        for key, x in state.items():
            assert torch.equal(out[1]['state'][i][key], x)


def test_gradual_magnitude_errors():
    layer = SparseLinear(8, 4, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for kwargs, message in [
        (dict(sparsity=1), r"'sparsity' .* \[0, 1\) \(got 1\)"),
        (dict(start=0.8), r"'start' .* \[0, 0.75\), .* \(got 0.8\)"),
        (dict(stop=0), r"'start' .* \[0, 0\), .* \(got 0.0\)"),
        (dict(update_every=0), r"'update_every' .* \(got 0\)"),
        (dict(sparsity=0.3), r'\(got 0.3, and layers of .* \[0.5\]\)'),
    ]:
        kwargs = {'num_steps': 9, 'sparsity': 0.9, **kwargs}
        with pytest.raises(ValueError, match=message):
            GradualMagnitude(layer, optimizer, **kwargs)

    scheduler = GradualMagnitude(layer, optimizer, num_steps=9, sparsity=0.9)
    scheduler.remove()
    with pytest.raises(RuntimeError, match='must not be called'):
        scheduler.step()


def test_gradual_magnitude_rejects_distributed_training(monkeypatch):
    layer = SparseLinear(8, 4, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    kwargs = dict(num_steps=9, sparsity=0.9, update_every=1)
    scheduler = GradualMagnitude(layer, optimizer, **kwargs)
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_world_size', lambda: 2)
    message = "'GradualMagnitude' changes the size of parameters"
    with pytest.raises(NotImplementedError, match=message):
        GradualMagnitude(layer, optimizer, **kwargs)
    with pytest.raises(NotImplementedError, match=message):
        scheduler.step()
    assert scheduler.last_step == 0 and layer.values.numel() == 16
