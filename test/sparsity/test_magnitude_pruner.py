import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn import Linear, Sequential
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch_geometric.nn import GCN, GATv2Conv
from torch_geometric.nn import Linear as PyGLinear

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.sparsity import ADMM, SLR, MagnitudePruner


@withDevice
@pytest.mark.parametrize('sparse', [True, False])
def test_magnitude_pruner(device, sparse):
    torch.manual_seed(0)
    model = GCN(50, 20, num_layers=2, out_channels=4).to(device)
    x = torch.randn(6, 50, device=device)
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]], device=device)
    weight = model.convs[0].lin.weight.detach().clone()
    pruner = MagnitudePruner(model, sparsity=0.9)
    assert str(pruner) == 'MagnitudePruner(num_layers=2, sparsity=0.9)'
    loss = torch.tensor(1.0, device=device)
    assert pruner.regularize(loss) is loss
    pruner.step()
    assert pruner.finalize(sparse) is model

    layers = [conv.lin for conv in model.convs]
    kept = [(lin.weight != 0) for lin in layers]
    assert sum(int(mask.sum()) for mask in kept) == pruner.num_weights == 108
    assert isinstance(layers[0], SparseLinear) == sparse
    pruned = layers[0].weight.detach()
    assert torch.equal(pruned, weight * kept[0])
    assert weight[~kept[0]].abs().max() <= weight[kept[0]].abs().min()

    # Pruned weights stay zero in training:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x, edge_index).square().sum().backward()
        optimizer.step()
    assert not torch.equal(layers[0].weight.detach(), pruned)
    for lin, mask in zip(layers, kept):
        assert not lin.weight[~mask].any()


@pytest.mark.parametrize('make', [Linear, PyGLinear])
def test_masks_hold(make):
    torch.manual_seed(0)
    model = Sequential(make(8, 8), torch.nn.ReLU(), make(8, 2))
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):  # The optimizer has moments of all weights.
        optimizer.zero_grad()
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
    MagnitudePruner(model, sparsity=0.5, min_fan_in=0).finalize(sparse=False)
    mask = model[0].weight != 0
    optimizer.zero_grad()
    model(torch.randn(5, 8)).square().sum().backward()
    grad = model[0].parametrizations.weight.original.grad
    assert not grad[~mask].any() and grad[mask].any()
    optimizer.step()
    assert not model[0].weight[~mask].any()

    copied = copy.deepcopy(model)
    x = torch.randn(3, 8)
    assert torch.equal(copied(x), model(x))
    MagnitudePruner(other, sparsity=0.5, min_fan_in=0).finalize(sparse=False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))

    expected = model(x)
    parametrize.remove_parametrizations(model[0], 'weight')
    assert isinstance(model[0].weight, torch.nn.Parameter)
    assert 'weight' in model[0].state_dict()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('sparse', [True, False])
def test_finalize_without_gradients(context, sparse):
    model = Sequential(Linear(8, 8), PyGLinear(8, 2))
    pruner = MagnitudePruner(model, sparsity=0.5, min_fan_in=0)
    with context():
        pruner.finalize(sparse)
    model(torch.randn(5, 8)).square().sum().backward()
    for x in model.parameters():
        assert x.grad is not None


@pytest.mark.parametrize('sparse', [True, False])
def test_layers_replaced_before_finalize(sparse):
    model = Sequential(Linear(8, 8), Linear(8, 8))
    pruner = MagnitudePruner(model, sparsity=0.5)
    model[1] = Linear(8, 3)
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"replaced .*\['1'\]"):
        pruner.finalize(sparse)
    assert torch.equal(model[0].weight, before)
    model = Sequential(Linear(8, 8))
    pruners = [MagnitudePruner(model, sparsity=0.5) for _ in range(2)]
    pruners[0].finalize()
    with pytest.raises(ValueError, match='replaced'):
        pruners[1].finalize(sparse)


@pytest.mark.parametrize('Pruner', [MagnitudePruner, ADMM, SLR])
def test_hooks_since_the_construction(Pruner):
    model = Sequential(Linear(8, 8), Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, sparsity=0.5)
    handle = model[1].register_forward_hook(lambda module, args, out: out + 1)
    modules = list(model.modules())
    with pytest.raises(ValueError, match=r"got '1' \(has hooks\)\)\. Remove"):
        pruner.finalize()
    assert list(model.modules()) == modules
    handle.remove()
    assert isinstance(pruner.finalize()[1], SparseLinear)

    model = Sequential(Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, sparsity=0.5)
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    pruner.finalize(sparse=False)
    x = torch.randn(3, 8)
    out = torch.nn.functional.linear(x, model[0].weight, model[0].bias)
    torch.testing.assert_close(model(x), out + 1)


@pytest.fixture
def process_group():
    store = dist.HashStore()
    dist.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('Pruner', [MagnitudePruner, ADMM, SLR])
def test_distributed_wrapper(Pruner, process_group):
    model = DistributedDataParallel(Sequential(Linear(8, 8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Gradients of layers replaced within the wrapper would not be averaged:
    with pytest.raises(ValueError, match=f"'model' of '{Pruner.__name__}'"):
        Pruner(model, optimizer)
    Pruner(model.module, optimizer)


def test_shared_and_frozen_layers():
    conv = GATv2Conv(16, 8, share_weights=True)
    conv.res = None
    pruner = MagnitudePruner(conv, sparsity=0.5, min_fan_in=0)
    assert list(pruner.layers) == ['lin_l']
    pruner.finalize()
    assert conv.lin_l is conv.lin_r and isinstance(conv.lin_l, SparseLinear)

    model = Sequential(Linear(8, 8), Linear(8, 8))
    model[0].weight.requires_grad_(False)
    MagnitudePruner(model, sparsity=0.5).finalize()
    assert not model[0].values.requires_grad
    assert model[1].values.requires_grad


def test_ignored_layers_and_mappings():
    model = Sequential(Linear(8, 8), Linear(8, 8), Linear(8, 8))
    MagnitudePruner(model, sparsity=0.5, ignored=['1']).finalize()
    kinds = [isinstance(x, SparseLinear) for x in model]
    assert kinds == [True, False, True]

    model = Sequential(Linear(8, 8), Linear(8, 8), Linear(8, 8))
    pruner = MagnitudePruner(model, sparsity={'[02]': 0.75})
    assert list(pruner.layers) == ['0', '2'] and pruner.num_weights == 32
    pruner.finalize()
    assert [getattr(x, 'sparsity', 0.0) for x in model] == [0.75, 0.0, 0.75]


def test_global_without_remaining_weights():
    pruner = MagnitudePruner(Linear(4, 4), None, 0.99, 'global')
    assert pruner.num_weights == 0
    with pytest.warns(UserWarning, match="no weight in.*''"):
        assert pruner.finalize().values.numel() == 0


@pytest.mark.parametrize('sparse', [True, False])
def test_warning_about_empty_layers(sparse):
    model = Sequential(Linear(8, 8), Linear(8, 8))
    with torch.no_grad():
        model[1].weight.mul_(1e-6)
    pruner = MagnitudePruner(model, sparsity=0.5, distribution='global')
    with pytest.warns(UserWarning, match=r"no weight in \['1'\]") as record:
        pruner.finalize(sparse)
    assert record[0].filename == __file__


def test_a_single_layer():
    out = MagnitudePruner(Linear(10, 10), sparsity=0.9).finalize()
    assert isinstance(out, SparseLinear) and out.values.numel() == 10


@pytest.mark.parametrize('Pruner', [MagnitudePruner, ADMM, SLR])
def test_errors(Pruner):
    def make(model, **kwargs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Pruner(model, optimizer, **kwargs)

    name = Pruner.__name__
    with pytest.raises(ValueError, match=f"'model' of '{name}'.*dense"):
        make(sparsify(Linear(8, 8), 0.5))
    with pytest.raises(TypeError, match=f"'optimizer' of '{name}'.*float"):
        Pruner(Linear(8, 8), 0.5)  # The sparsity is the third argument.
    with pytest.raises(ValueError, match='lazy layers'):
        make(Sequential(PyGLinear(-1, 8)))
    with pytest.raises(ValueError, match='linear layer'):
        make(torch.nn.Conv1d(2, 2, 1))
    with pytest.raises(ValueError, match=f"'sparsity' of '{name}'"):
        make(Linear(8, 8), sparsity=1.0)
    model = Linear(8, 8)
    pruner = make(model)
    pruner.finalize()
    with pytest.raises(RuntimeError, match=f"'finalize.*of '{name}'"):
        pruner.finalize()
    with pytest.raises(RuntimeError, match=f"'step.*of '{name}'"):
        pruner.step()
