import copy
import math

import pytest
import torch
from torch_geometric.nn import GCNConv

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import (
    SET,
    GradualMagnitude,
    RigL,
    TopologyScheduler,
)

POLICIES = [SET, RigL]


class Trainer:
    """Train a small model with two mini-batches per step."""

    def __init__(self, policy, make=torch.optim.Adam, **kwargs):
        torch.manual_seed(12345)
        self.x, self.y = torch.randn(40, 16), torch.randn(40, 4)
        self.model = torch.nn.Sequential(
            SparseLinear(16, 20, sparsity=0.8, seed=1),
            torch.nn.ReLU(inplace=True),
            SparseLinear(20, 4, sparsity=0.5, seed=2),
        )
        self.optimizer = make(self.model.parameters(), lr=0.01)
        options = dict(num_steps=20, update_every=3, drop_fraction=0.5)
        options.update(kwargs)
        self.scheduler = policy(self.model, self.optimizer, **options)

    @property
    def layers(self):
        return [self.model[0], self.model[2]]

    def step(self):
        self.optimizer.zero_grad()
        loss = 0.0
        for x, y in zip(self.x.split(20), self.y.split(20)):
            part = (self.model(x) - y).square().mean()
            part.backward()
            loss += float(part.detach())
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def state(self):
        states = [self.model, self.optimizer, self.scheduler]
        return copy.deepcopy([x.state_dict() for x in states])


def assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler(policy):
    trainer = Trainer(policy)
    layers, scheduler = trainer.layers, trainer.scheduler
    assert str(scheduler) == (
        f'{policy.__name__}(num_layers=2, num_steps=20, update_every=3)'
    )
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    pointers = [x.data_ptr() for x in tensors]
    updates = []
    for step in range(1, 21):
        old = [layer.index for layer in layers]
        pending = scheduler.pending
        trainer.step()
        new = [layer.index for layer in layers]
        for a, b in zip(old, new):
            assert a.numel() == b.numel()
            fraction = 0.25 * (1 + math.cos(math.pi * step / 15))  # Eq. (1).
            num_dropped = round(fraction * a.numel()) if pending else 0
            assert (~torch.isin(b, a)).sum() == num_dropped
        if pending:
            updates.append(step)
    assert updates == [3, 6, 9, 12]  # Updates stop at step 15.
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    assert [x.data_ptr() for x in tensors] == pointers


@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler_drops_smallest_magnitudes(policy):
    trainer = Trainer(policy, update_every=1)
    layer = trainer.layers[0]
    before = {}

    def record(*args):
        before['index'], before['values'] = layer.index, layer.values.clone()

    trainer.optimizer.register_step_post_hook(record)
    trainer.step()
    remains = torch.isin(before['index'], layer.index)
    assert 0 < remains.sum() < remains.numel()
    magnitude = before['values'].detach().abs()
    assert magnitude[~remains].max() < magnitude[remains].min()
    old = torch.isin(layer.index, before['index'])
    assert torch.equal(layer.values[old], before['values'][remains])
    assert (layer.values[~old] == 0).all()


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('make', [torch.optim.SGD, torch.optim.AdamW])
def test_topology_scheduler_resumes(policy, make, tmp_path):
    expected, first = Trainer(policy, make), Trainer(policy, make)
    for _ in range(20):
        expected.step()
    for _ in range(8):  # The next step is an update.
        first.step()
    torch.save(first.state(), tmp_path / 'state.pt')

    second = Trainer(policy, make, seed=7)
    model, optimizer, scheduler = torch.load(tmp_path / 'state.pt')
    second.scheduler.load_state_dict(scheduler)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    assert second.scheduler.pending
    for _ in range(12):
        second.step()
    assert_equal(second.state(), expected.state())
    assert second.scheduler.explored == expected.scheduler.explored


def test_topology_scheduler_rejects_states():
    trainer = Trainer(SET)
    for _ in range(3):
        trainer.step()
    state, expected = trainer.state()[2], trainer.state()
    for key, value, message in [
        ('policy', 'RigL', "same 'policy' .* SET, got RigL"),
        ('sizes', [[4, 20]], r"same 'sizes' .* got \[\[4, 20\]\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.scheduler.load_state_dict({**state, key: value})
    del state['explored']
    with pytest.raises(ValueError, match=r"got none of \['explored'\]"):
        trainer.scheduler.load_state_dict(state)
    assert_equal(trainer.state(), expected)


@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler_explored(policy):
    trainer = Trainer(policy, update_every=1)
    scheduler, seen = trainer.scheduler, [set(), set()]
    for _ in range(12):
        for positions, layer in zip(seen, trainer.layers):
            positions |= set(layer.index.tolist())
        num_seen = [len(x) for x in seen]
        by_layer = [num_seen[0] / 320, num_seen[1] / 80]
        assert list(scheduler.explored_by_layer) == ['0', '2']
        assert list(scheduler.explored_by_layer.values()) == by_layer
        assert scheduler.explored == sum(num_seen) / 400
        trainer.step()
    assert scheduler.explored > 0.35  # 104 / 400 before training.


@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler_shared_layer(policy):
    torch.manual_seed(12345)
    layer = SparseLinear(8, 8, sparsity=0.75)
    model = torch.nn.Sequential(layer, torch.nn.Tanh(), layer)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = policy(
        model, optimizer, num_steps=10, update_every=1, drop_fraction=1.0
    )
    assert list(scheduler.layers) == ['0']
    old = layer.index
    model(torch.randn(5, 8)).sum().backward()
    optimizer.step()
    scheduler.step()
    fraction = 0.5 * (1 + math.cos(math.pi / 7.5))
    assert torch.isin(layer.index, old).sum() == 16 - round(16 * fraction)


@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler_dense_layer(policy):
    layer = SparseLinear(6, 4, sparsity=0.0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    scheduler = policy(layer, optimizer, num_steps=10, update_every=1)
    for _ in range(3):
        layer(torch.ones(1, 6)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert layer.mask.all() and scheduler.explored == 1


@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler_is_equal_on_all_threads(ext, policy):
    generator = torch.Generator().manual_seed(0)
    # Small integers: sums are exact, and many scores are equal.
    x, grad = (
        torch.randint(-2, 3, (8, size), generator=generator).float()
        for size in [1500, 1000]
    )
    default, outs = torch.get_num_threads(), []
    try:
        for num_threads in [1, 2]:
            torch.set_num_threads(num_threads)
            layer = SparseLinear(1500, 1000, sparsity=0.85, seed=0)
            layer.values.data.copy_(layer.index % 7)
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
            scheduler = policy(layer, optimizer, num_steps=9, update_every=1)
            for _ in range(2):
                layer(x).backward(grad)
                scheduler.step()
            outs.append(layer.index)
    finally:
        torch.set_num_threads(default)
    assert torch.equal(*outs)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler_keeps_infinite_weights(policy, value):
    layer = SparseLinear(16, 8, sparsity=0.5, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    scheduler = policy(layer, optimizer, num_steps=9, update_every=1)
    old, position = layer.index, int(layer.index[5])
    layer(torch.ones(2, 16)).sum().backward()
    layer.values.data[5] = value
    scheduler.step()
    assert not torch.equal(layer.index, old)
    assert not layer.weight[position // 16, position % 16].isfinite()


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_topology_scheduler_other_types(policy, dtype):
    trainer = Trainer(policy, torch.optim.SGD, update_every=1)
    trainer.model.to(dtype)
    trainer.x, trainer.y = trainer.x.to(dtype), trainer.y.to(dtype)
    old = trainer.layers[0].index
    for _ in range(3):
        trainer.step()
    layer = trainer.layers[0]
    assert not torch.equal(layer.index, old)
    assert layer.values.dtype == dtype and layer.values.numel() == 64


def test_topology_scheduler_with_another():
    trainer = Trainer(RigL, update_every=2)
    pruner = GradualMagnitude(
        trainer.model,
        trainer.optimizer,
        num_steps=20,
        sparsity=0.9,
        update_every=2,
    )
    for _ in range(15):
        trainer.step()
        pruner.step()
    assert [x.values.numel() for x in trainer.layers] == [32, 8]
    state = trainer.optimizer.state[trainer.layers[0].values]
    assert state['exp_avg'].shape == (32,)


@pytest.mark.parametrize('policy', POLICIES)
def test_topology_scheduler_learns(policy):
    torch.manual_seed(12345)
    edge_index = torch.randint(30, (2, 90))
    x, y = torch.randn(30, 16), torch.arange(30) % 3
    conv1, conv2 = GCNConv(16, 32), GCNConv(32, 3)
    conv1.lin = SparseLinear(16, 32, bias=False, sparsity=0.9, seed=1)
    conv2.lin = SparseLinear(32, 3, bias=False, sparsity=0.8, seed=2)
    model = torch.nn.ModuleList([conv1, conv2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scheduler = policy(model, optimizer, num_steps=120, update_every=5)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        out = conv2(conv1(x, edge_index).relu(), edge_index)
        loss = torch.nn.functional.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert [conv1.lin.values.numel(), conv2.lin.values.numel()] == [51, 19]


def test_topology_scheduler_warns_if_idle():
    layer = SparseLinear(8, 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with pytest.warns(
        UserWarning, match='is due at step 100, .* stop at step 75'
    ):
        SET(layer, optimizer, num_steps=100)


def test_topology_scheduler_errors():
    layer = SparseLinear(8, 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    message = r"'drop_fraction' of 'SET' .* \(0, 1\] \(got 0\)"
    with pytest.raises(ValueError, match=message):
        SET(layer, optimizer, num_steps=1000, drop_fraction=0)
    with pytest.raises(TypeError, match='abstract'):
        TopologyScheduler(layer, optimizer, num_steps=1000)
