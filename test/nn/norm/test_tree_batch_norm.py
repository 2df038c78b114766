import copy

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GIN, BatchNorm

from devices import withDevice
from torch_geometric_ext.data import SharedTreeBatch
from torch_geometric_ext.nn import TreeBatchNorm, shared_batch
from torch_geometric_ext.nn.current_batch import thread
from torch_geometric_ext.nn.tree_levels import Rows, mark_rows, rows_of


def make_batch():
    """Three trees that occur 2, 1 and 3 times, above two others."""
    return SharedTreeBatch(
        x=torch.zeros(5, 1),
        edge_index=torch.empty(2, 0, dtype=torch.long),
        root=torch.tensor([0, 2, 1, 2]),
        root_ptr=torch.tensor([0, 2, 4]),
        root_count=torch.tensor([2, 1, 1, 2]),
        own=torch.tensor([3, 4, 4, 3, 4]),
        num_roots=6,
        num_sampled_nodes=[3, 2],
        num_sampled_edges=[0],
    )


ROWS = torch.tensor([0, 0, 2, 1, 2, 2])


@withDevice
@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('affine', [True, False])
def test_equals_batch_norm(momentum, affine, device):
    kwargs = dict(momentum=momentum, affine=affine, device=device)
    plain = torch.nn.BatchNorm1d(4, **kwargs).double()
    norm = TreeBatchNorm(4, **kwargs).double()
    batch, rows = make_batch().to(device), ROWS.to(device)
    for _ in range(3):
        x = torch.randn(5, 4, dtype=torch.double, device=device)
        x.requires_grad_()
        weight = torch.randn(6, 4, dtype=torch.double, device=device)
        expected = plain(x[rows])
        with shared_batch(batch):
            out = norm(x)
        assert out.shape == x.shape
        assert torch.allclose(out[rows], expected)
        inputs = [x, *norm.parameters()]
        grads = torch.autograd.grad((out[rows] * weight).sum(), inputs)
        inputs = [x, *plain.parameters()]
        others = torch.autograd.grad((expected * weight).sum(), inputs)
        assert all(map(torch.allclose, grads, others))
    for key, value in plain.state_dict().items():
        assert torch.allclose(norm.state_dict()[key], value)

    x = torch.randn(5, 4, dtype=torch.double, device=device)
    norm.load_state_dict(plain.state_dict())
    with shared_batch(Data(x=x)):  # Plain graphs.
        assert torch.equal(norm(x), plain(x))
    with shared_batch(batch):
        assert torch.allclose(norm.eval()(x), plain.eval()(x))


def test_without_running_statistics():
    plain = torch.nn.BatchNorm1d(4, track_running_stats=False).eval()
    norm = TreeBatchNorm(4, track_running_stats=False).eval()
    x = torch.randn(5, 4)
    with shared_batch(make_batch()):
        assert torch.allclose(norm(x)[ROWS], plain(x[ROWS]), atol=1e-5)


@withDevice
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_half_precision(dtype, device):
    # Neither the counts nor the offset fit into half precision:
    batch = make_batch().to(device)
    batch.root_count *= 30_000
    x = (torch.randn(5, 4, device=device) + 10).to(dtype).float()
    norm = TreeBatchNorm(4, device=device)
    with shared_batch(batch):
        expected = norm(x)
        state = copy.deepcopy(norm.state_dict())
        norm.reset_running_stats()
        with torch.autocast(device.type, dtype):
            assert torch.allclose(norm(x), expected)
        for key, value in norm.state_dict().items():
            assert torch.equal(value, state[key])
        out = norm.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert torch.allclose(out, expected.to(dtype))


def test_convert():
    model = GIN(3, 8, num_layers=2, norm='batch_norm')
    state = copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    assert TreeBatchNorm.convert(model) is model
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) > 0
    assert all(isinstance(m, TreeBatchNorm) for m in norms)
    assert all(map(torch.equal, model.state_dict().values(), state.values()))
    for parameter, other in zip(model.parameters(), parameters):
        assert parameter is other
    norm = TreeBatchNorm.convert(torch.nn.BatchNorm1d(4))
    assert str(norm) == str(TreeBatchNorm(4))
    assert isinstance(TreeBatchNorm.convert(BatchNorm(4)), BatchNorm)


def test_wrong_rows():
    with shared_batch(make_batch()):
        for size in [2, 4, 6]:  # Neither one level nor both.
            with pytest.raises(ValueError, match=rf"'x' .*got \[{size}, 4\]"):
                TreeBatchNorm(4)(torch.randn(size, 4))


def test_contexts_nest_and_end():
    norm, x = TreeBatchNorm(4), torch.randn(5, 4)
    plain = torch.nn.BatchNorm1d(4)
    with shared_batch(make_batch()):
        expected = norm(x)
        with shared_batch(Data(x=x)):
            assert torch.equal(norm(x), plain(x))
        assert torch.equal(norm(x), expected)
    with pytest.raises(KeyError):
        with shared_batch(make_batch()):
            raise KeyError
    with pytest.raises(RuntimeError, match='cannot tell trees from nodes'):
        norm(x)
    norm.eval()(x)


def test_as_many_channels_as_trees():
    """Statistics are not taken for rows of trees."""
    norm, batch = TreeBatchNorm(3), make_batch()
    plain = torch.nn.BatchNorm1d(3)
    for _ in range(2):
        x = torch.randn(3, 3)
        with shared_batch(batch):
            mark_rows(x, Rows(thread.block.context.levels, 1, False))
            out = norm(x)
            assert rows_of(out) == rows_of(x)
        torch.testing.assert_close(out[ROWS], plain(x[ROWS]))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert rows_of(norm.running_mean) is None
