import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN

import torch_geometric_ext.sparsity.rigl as rigl
from devices import withDevice
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.sparsity import SET, RigL


def build(layer, **kwargs):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    options = dict(num_steps=100, update_every=1, drop_fraction=0.4)
    return optimizer, RigL(layer, optimizer, **{**options, **kwargs})


def integers(*size, seed=0, device=None):
    """Numbers whose products and sums are exact, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, size, generator=generator).float().to(device)


def expected_growth(gradient, index, num_weights):
    """The oracle: the whole dense gradient, sorted."""
    score = gradient.abs().flatten()
    score[index] = -1
    perm = score.sort(descending=True, stable=True).indices
    return perm[:num_weights].sort().values


def grown(layer, old):
    return layer.index[~torch.isin(layer.index, old)]


@withDevice
@pytest.mark.parametrize('block_size', [1, 50, 1 << 22])
def test_rigl(device, block_size, monkeypatch):
    monkeypatch.setattr(rigl, 'BLOCK_SIZE', block_size)
    layer = SparseLinear(24, 15, sparsity=0.7, seed=0).to(device)
    optimizer, scheduler = build(layer)
    x = integers(9, 24, device=device)
    weight = integers(9, 15, seed=1, device=device)

    dense = layer.to_dense()
    (dense(x) * weight).sum().backward()
    old = layer.index
    (layer(x) * weight).sum().backward()
    assert torch.equal(dense.weight.grad.flatten()[old], layer.values.grad)
    optimizer.step()
    scheduler.step()

    expected = expected_growth(dense.weight.grad, old, 43)
    assert torch.equal(grown(layer, old), expected)
    assert layer.values.numel() == 108
    assert torch.equal(
        layer.values.grad[layer.values == 0], torch.zeros(43, device=device)
    )


@pytest.mark.parametrize('shape', [(24,), (4, 24), (2, 3, 24), (0, 24)])
def test_rigl_sums_over_all_passes(shape):
    layer = SparseLinear(24, 24, sparsity=0.8, seed=0)
    dense = layer.to_dense()
    optimizer, scheduler = build(layer, update_every=2)
    old = layer.index
    for step in range(2):
        dense.zero_grad()
        optimizer.zero_grad()
        for seed in range(3):
            x, more = integers(*shape, seed=seed), integers(5, 24, seed=7)
            weight = integers(*shape, seed=seed + 10)
            for model in [dense, layer]:  # Twice within each pass.
                out = model(x=x) if model is layer else model(x)
                (out * weight).sum().add(model(more).sum()).backward()
            layer(x)  # A pass forward does not count.
            with torch.no_grad():
                layer(x)
        scheduler.step()
        assert torch.equal(layer.index, old) == (step == 0)
    expected = expected_growth(dense.weight.grad, old, 46)
    assert torch.equal(grown(layer, old), expected)


@pytest.mark.parametrize('case', ['in_place', 'leaf', 'twice', 'checkpoint'])
def test_rigl_sees_the_gradient(case):
    layer = SparseLinear(12, 12, sparsity=0.8, seed=0)
    dense = layer.to_dense()
    x = torch.nn.Parameter(integers(6, 12))
    optimizer = torch.optim.SGD([*layer.parameters(), x], lr=1.0)
    scheduler = RigL(layer, optimizer, num_steps=9, update_every=1)
    old, weight = layer.index, integers(6, 12, seed=1)
    for model in [dense, layer]:
        if case == 'in_place':
            out = torch.nn.functional.relu(model(x), inplace=True)
        elif case == 'checkpoint':
            out = checkpoint(model, x, use_reentrant=False)
        else:  # The optimizer overwrites the input of the layer.
            out = model(x)
        loss = (out * weight).sum()
        loss.backward(retain_graph=case == 'twice')
        if case == 'twice':
            loss.backward()
    optimizer.step()
    scheduler.step()
    num_grown = grown(layer, old).numel()
    expected = expected_growth(dense.weight.grad, old, num_grown)
    assert num_grown > 5 and torch.equal(grown(layer, old), expected)


def test_rigl_shared_layer():
    layer = SparseLinear(12, 12, sparsity=0.8, seed=0)
    dense = layer.to_dense()
    optimizer, scheduler = build(torch.nn.ModuleList([layer, layer]))
    x, old = torch.randn(5, 12), layer.index
    for model in [dense, layer]:
        model(model(x).tanh()).square().sum().backward()
    scheduler.step()
    expected = expected_growth(dense.weight.grad, old, 12)
    assert torch.equal(grown(layer, old), expected)


def test_rigl_autocast():
    layer = SparseLinear(32, 16, sparsity=0.8, seed=0)
    dense = layer.to_dense()
    optimizer, scheduler = build(layer)
    x, weight, old = integers(9, 32), integers(9, 16, seed=1), layer.index
    (dense(x) * weight).sum().backward()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (layer(x) * weight).sum().mul(1024.0).backward()
        scheduler.step()
    num_grown = grown(layer, old).numel()
    expected = expected_growth(dense.weight.grad, old, num_grown)
    assert num_grown > 30 and torch.equal(grown(layer, old), expected)


def test_rigl_records_before_updates_only():
    model = torch.nn.Sequential(SparseLinear(8, 8), SparseLinear(8, 8))
    optimizer, scheduler = build(model, update_every=3)
    x = torch.randn(5, 8)
    for step in range(1, 8):
        num_hooks = [len(layer._forward_hooks) for layer in model]
        assert num_hooks == ([1, 1] if step % 3 == 0 else [0, 0])
        assert scheduler.pending == (step % 3 == 0)
        model(x).sum().backward()
        pairs = [r.pairs for r in scheduler._recorders.values()]
        assert [len(x) for x in pairs] == num_hooks[: len(pairs)]
        scheduler.step()
        assert all(len(x) == 0 for x in pairs)


def test_rigl_remove():
    layer = SparseLinear(8, 8)
    optimizer, scheduler = build(layer)
    out = layer(torch.randn(5, 8))
    out.sum().backward(retain_graph=True)
    (pairs,) = (r.pairs for r in scheduler._recorders.values())
    assert len(pairs) == 1
    scheduler.remove()
    out.sum().backward()  # The hooks of tensors are gone, too.
    assert len(pairs) == 0 and len(layer._forward_hooks) == 0


def test_rigl_unused_layers():
    model = torch.nn.ModuleList([SparseLinear(8, 8), SparseLinear(8, 8)])
    optimizer, scheduler = build(model)
    unused, used = (layer.index for layer in model)
    model[1](torch.randn(5, 8)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert torch.equal(model[0].index, unused)
    assert not torch.equal(model[1].index, used)


@pytest.mark.parametrize('value', [float('inf'), float('nan')])
def test_rigl_overflow(value):
    model = torch.nn.ModuleList([SparseLinear(8, 8), SparseLinear(8, 8)])
    optimizer, scheduler = build(model)
    overflow, finite = (layer.index for layer in model)
    x = torch.randn(5, 8)
    (model[0](x).sum() * value + model[1](x).sum()).backward()
    scheduler.step()
    assert torch.equal(model[0].index, overflow)
    assert not torch.equal(model[1].index, finite)


@pytest.mark.parametrize('compile_first', [True, False])
def test_rigl_compiled(compile_first):
    layer = SparseLinear(8, 8)
    x = torch.randn(5, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend='eager')
    if compile_first:
        compiled(x)
    optimizer, scheduler = build(layer)
    compiled(x).sum().backward()
    with pytest.raises(RuntimeError, match='compiled, run the steps where'):
        scheduler.step()

    old = layer.index
    (layer if scheduler.pending else compiled)(x).sum().backward()
    scheduler.step()
    assert not torch.equal(layer.index, old)
    torch.testing.assert_close(compiled(x), layer(x))


class Trainer:
    """Trains on the mini-batches of some ranks."""

    def __init__(self, policy):
        torch.manual_seed(12345)
        self.model = torch.nn.Sequential(
            SparseLinear(16, 20, sparsity=0.8),
            torch.nn.ReLU(),
            SparseLinear(20, 16, sparsity=0.8),
        )
        self.unused = SparseLinear(4, 4, sparsity=0.5)
        layers = torch.nn.ModuleList([self.model, self.unused])
        self.layers = [self.model[0], self.model[2], self.unused]
        self.optimizer = torch.optim.Adam(layers.parameters(), lr=0.01)
        self.scheduler = policy(
            layers, self.optimizer, num_steps=12, update_every=2
        )
        self.batches = torch.randn(24, 6, 16)

    def train(self, model, ranks):
        for step in range(12):
            self.optimizer.zero_grad()
            for rank in ranks:
                x = self.batches[2 * step + rank]
                loss = (model(x) - x).square().mean()
                (loss / len(ranks)).backward()
            self.optimizer.step()
            self.scheduler.step()
        return [(layer.index, layer.values.detach()) for layer in self.layers]


def run_rank(path):
    rank = dist.get_rank()
    out = {}
    for policy in [SET, RigL]:
        trainer = Trainer(policy)
        model = torch.nn.parallel.DistributedDataParallel(trainer.model)
        out[policy.__name__] = trainer.train(model, [rank])
    torch.save(out, f'{path}/{rank}.pt')


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    first, second = (torch.load(tmp_path / f'{r}.pt') for r in range(2))
    for policy in [SET, RigL]:
        trainer = Trainer(policy)
        old = [layer.index for layer in trainer.layers]
        # One process that sees the mini-batches of both ranks does the same:
        expected = trainer.train(trainer.model, [0, 1])
        outs = [expected, first[policy.__name__], second[policy.__name__]]
        for index, layer, other, rank in zip(old, *outs):
            assert torch.equal(other[0], rank[0])
            assert torch.equal(other[1], rank[1])
            assert torch.equal(layer[0], rank[0])
            torch.testing.assert_close(layer[1], rank[1])
            unused = layer[0].numel() == 8 and policy is RigL
            assert torch.equal(layer[0], index) == unused


@pytest.mark.parametrize('scale', [float('nan'), float('inf'), 1e30])
def test_rigl_with_inputs_of_infinite_gradient(scale):
    lin = SparseLinear(8, 8, sparsity=0.5, seed=0)
    optimizer = torch.optim.SGD(lin.parameters(), lr=0.0)
    scheduler = RigL(
        lin, optimizer, num_steps=10, update_every=1, drop_fraction=1.0
    )
    index = lin.index
    x = torch.ones(4, 8)
    x[:, 1:] = scale
    lin(x).backward(torch.full((4, 8), 1e30))
    scheduler.step()
    assert torch.equal(lin.index, index)


@pytest.mark.parametrize('block_size', [1, 8])
def test_rigl_with_nan_in_rows_without_loss(block_size, monkeypatch):
    monkeypatch.setattr(rigl, 'BLOCK_SIZE', 16)
    monkeypatch.setattr(rigl, 'MIN_ROWS', 1)
    lin = SparseLinear(32, 32, sparsity=0.5, block_size=block_size)
    _, scheduler = build(lin)
    index = lin.index
    x = torch.ones(4, 32)
    x[0] = float('nan')
    lin(x)[1:].sum().backward()
    scheduler.step()
    assert torch.equal(lin.index, index)


def test_rigl_copy():
    lin = SparseLinear(8, 8, sparsity=0.5, seed=0)
    args = lin, *build(lin)
    assert args[-1].pending
    runs = [args, copy.deepcopy(args), pickle.loads(pickle.dumps(args))]
    for model, _, scheduler in runs:
        model(torch.arange(8.0)).sum().backward()
        scheduler.step()
        assert torch.equal(model.index, lin.index)


@withDevice
@pytest.mark.parametrize('block_size', [1, 50, 1 << 22])
def test_rigl_sparse_features(device, ext, block_size, monkeypatch):
    monkeypatch.setattr(rigl, 'BLOCK_SIZE', block_size)
    layer = SparseLinear(24, 15, sparsity=0.7, seed=0).to(device)
    optimizer, scheduler = build(layer)
    x = integers(9, 24, device=device)
    x = x * (integers(9, 24, seed=2, device=device) > 0)
    weight = integers(9, 15, seed=1, device=device)
    dense, old = layer.to_dense(), layer.index
    for scale in [1, 2]:  # Sums over passes, of both layouts.
        (dense(x) * weight * scale).sum().backward()
    (layer(x.to_sparse_csr()) * weight).sum().backward()
    (layer(x) * weight * 2).sum().backward()
    assert torch.equal(dense.weight.grad.flatten()[old], layer.values.grad)
    optimizer.step()
    scheduler.step()
    expected = expected_growth(dense.weight.grad, old, 43)
    assert torch.equal(grown(layer, old), expected)


@pytest.mark.parametrize('cls', [RigL, SET])
def test_sparse_features_train_as_dense_ones(ext, cls):
    x = integers(30, 24) * (integers(30, 24, seed=2) > 0)
    edge_index = torch.randint(30, (2, 80))
    outs = []
    for inputs in [x, x.to_sparse_csr()]:
        torch.manual_seed(0)
        model = sparsify(GCN(24, 8, 2, 3), 0.7).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        scheduler = cls(model, optimizer, num_steps=20, update_every=3)
        for _ in range(10):
            optimizer.zero_grad()
            model(inputs.double(), edge_index).square().mean().backward()
            optimizer.step()
            scheduler.step()
        outs.append((model.convs[0].lin.index, model(x.double(), edge_index)))
    torch.testing.assert_close(*outs)


@withDevice
@pytest.mark.parametrize('block_size', [1, 50, 1 << 22])
def test_rigl_allowed(device, block_size, monkeypatch):
    monkeypatch.setattr(rigl, 'BLOCK_SIZE', block_size)
    layer = SparseLinear(24, 15, sparsity=0.7, seed=0).to(device)
    allowed = torch.rand(15, 24, generator=torch.Generator().manual_seed(1))
    allowed = (allowed < 0.5).to(device)
    optimizer, scheduler = build(layer, allowed={'': allowed})
    x = integers(9, 24, device=device)
    weight = integers(9, 15, seed=1, device=device)
    dense, old = layer.to_dense(), layer.index
    assert not allowed.flatten()[old].all()  # They need not be allowed.
    for model in [dense, layer]:
        (model(x) * weight).sum().backward()
    optimizer.step()
    scheduler.step()
    gradient = dense.weight.grad.masked_fill(~allowed, 0)
    assert int((gradient != 0).sum()) > old.numel() + 43
    assert torch.equal(grown(layer, old), expected_growth(gradient, old, 43))


def test_rigl_allowed_without_room():
    # Two of the four allowed positions are free, so that two weights move:
    layer = SparseLinear(4, 4, sparsity=0.5, seed=0)
    layer.set_weights(torch.tensor([0, 1, 14, 15]), torch.arange(1.0, 5.0))
    allowed = torch.zeros(4, 4, dtype=torch.bool)
    allowed[0] = True
    optimizer, scheduler = build(
        layer, allowed={'': allowed}, drop_fraction=1.0
    )
    for _ in range(2):
        layer(torch.randn(5, 4)).sum().backward()
        scheduler.step()
        # All positions of the mask are taken after the first update:
        assert layer.index.tolist() == [2, 3, 14, 15]
        allowed[0, :2] = False


def test_rigl_allowed_names_some_layers():
    model = torch.nn.ModuleList([SparseLinear(8, 8), SparseLinear(8, 8)])
    allowed = {'0': torch.zeros(8, 8, dtype=torch.bool)}
    optimizer, scheduler = build(model, allowed=allowed)
    fixed, moved = (layer.index for layer in model)
    x = torch.randn(5, 8)
    (model[0](x).sum() + model[1](x).sum()).backward()
    scheduler.step()
    assert torch.equal(model[0].index, fixed)
    assert not torch.equal(model[1].index, moved)


def test_rigl_allowed_of_infinite_gradient():
    # Only gradients of allowed positions need to be finite:
    layer = SparseLinear(8, 8, sparsity=0.5, seed=0)
    allowed = torch.ones(8, 8, dtype=torch.bool)
    allowed[:, 1:] = False
    optimizer, scheduler = build(layer, allowed={'': allowed})
    old, x = layer.index, torch.ones(4, 8)
    x[:, 1:] = 1e30
    layer(x).backward(torch.full((4, 8), 1e30))
    scheduler.step()
    assert not torch.equal(layer.index, old)


def test_rigl_allowed_errors():
    layer = SparseLinear(6, 4)
    mask = torch.ones(4, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"layers among \[''\] \(got 'lin'\)"):
        build(layer, allowed={'lin': mask})
    for other in [mask.t(), mask.long(), None, mask.tolist()]:
        with pytest.raises(ValueError, match=r"shape \[4, 6\] for '' \(got"):
            build(layer, allowed={'': other})
    assert not layer._forward_hooks


def test_rigl_warns_at_the_line_of_the_caller():
    layer = SparseLinear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match='will move no weights') as seen:
        RigL(layer, optimizer, num_steps=2, update_every=5)
    assert [x.filename for x in seen] == [__file__]
