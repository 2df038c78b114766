import copy
import functools

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn.aggr import MedianAggregation, SoftmaxAggregation
from torch_geometric.testing import withCUDA

from torch_geometric_ext.data import SharedTreeBatch
from torch_geometric_ext.nn import RootAggregation

AGGRS = ['sum', 'mean', 'max', 'min', 'std', 'softmax', 'median']


def shared_batch_and_rows():
    """Two graphs of three trees, and the rows that they stand for."""
    batch = SharedTreeBatch(
        x=torch.zeros(5, 1),
        root=torch.tensor([0, 2, 1, 2]),
        root_ptr=torch.tensor([0, 2, 2, 4]),
        root_count=torch.tensor([2, 1, 1, 3]),
        num_roots=7,
        num_sampled_nodes=[3, 2],
    )
    rows = torch.tensor([0, 0, 2, 1, 2, 2, 2])
    index = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    return batch, rows, index


@pytest.mark.parametrize('aggr', AGGRS)
@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_shared_trees(aggr, dtype):
    batch, rows, index = shared_batch_and_rows()
    module = RootAggregation(aggr)
    assert str(module).startswith('RootAggregation(')
    h = torch.randn(5, 4, dtype=dtype, requires_grad=True)
    expected = module.aggr(h[rows], index, dim_size=3)
    out = module(h, batch)
    assert out.shape == (3, 4)
    assert torch.allclose(out, expected)
    weight = torch.randn_like(out)
    grads = [
        torch.autograd.grad((x * weight).sum(), h)[0] for x in (out, expected)
    ]
    assert torch.allclose(*grads)
    # The rows of the highest level are enough:
    assert torch.equal(module(h[:3], batch), out)


@pytest.mark.parametrize('aggr', ['sum', 'max'])
def test_ties_share_the_gradient(aggr):
    batch, rows, index = shared_batch_and_rows()
    module = RootAggregation(aggr)
    grads = []
    for shared in [True, False]:
        h = torch.ones(5, 2, requires_grad=True)
        out = module(h, batch) if shared else module.aggr(h[rows], index)
        out[2].sum().backward()
        grads.append(h.grad)
    assert torch.allclose(*grads)


@pytest.mark.parametrize('aggr', AGGRS)
def test_root_mask(aggr):
    graphs = [
        Data(
            x=torch.randn(4, 3),
            root_mask=torch.tensor([True, False, True, False]),
            root_count=torch.tensor([2, 0, 1, 0]),
        ),
        Data(
            x=torch.randn(2, 3),
            root_mask=torch.tensor([False, True]),
            root_count=torch.tensor([0, 3]),
        ),
    ]
    batch = Batch.from_data_list(graphs)
    module = RootAggregation(aggr)
    rows, index = [0, 0, 2, 5, 5, 5], torch.tensor([0, 0, 0, 1, 1, 1])
    expected = module.aggr(batch.x[rows], index)
    assert torch.allclose(module(batch.x, batch), expected)
    out = module(graphs[0].x, graphs[0])  # One graph that is not batched.
    assert torch.allclose(out, expected[:1])

    for data in graphs:
        del data.root_count
    batch = Batch.from_data_list(graphs)
    expected = module.aggr(batch.x[[0, 2, 5]], torch.tensor([0, 0, 1]))
    assert torch.allclose(module(batch.x, batch), expected)


@pytest.mark.parametrize('aggr', AGGRS)
def test_plain_graphs(aggr):
    batch = Batch.from_data_list([Data(x=torch.randn(n, 3)) for n in (2, 4)])
    module = RootAggregation(aggr)
    expected = module.aggr(batch.x, batch.batch)
    assert torch.equal(module(batch.x, batch), expected)
    assert torch.equal(module(batch.x, batch.batch), expected)
    data = Data(x=batch.x)
    expected = module.aggr(batch.x, torch.zeros_like(batch.batch))
    assert torch.equal(module(batch.x, data), expected)


def test_given_aggregations():
    module = RootAggregation(SoftmaxAggregation(learn=True))
    assert len(list(module.parameters())) == 1
    module.reset_parameters()
    assert isinstance(RootAggregation('median').aggr, MedianAggregation)
    module = RootAggregation('softmax', t=2.0)
    assert module.aggr.t == 2.0
    copy.deepcopy(module)


def test_ordered_aggregation():
    with pytest.raises(ValueError, match="'aggr' .* 'LSTMAggregation'"):
        RootAggregation('lstm', in_channels=4, out_channels=4)


def test_empty_batch():
    batch = SharedTreeBatch(
        x=torch.zeros(0, 1),
        root=torch.empty(0, dtype=torch.long),
        root_ptr=torch.zeros(3, dtype=torch.long),
        root_count=torch.empty(0, dtype=torch.long),
        num_roots=0,
        num_sampled_nodes=[0],
    )
    for aggr in ['sum', 'mean', 'max']:
        out = RootAggregation(aggr)(torch.zeros(0, 3), batch)
        assert out.tolist() == 2 * [3 * [0]]


def test_large_counts_in_half_precision():
    batch, _, _ = shared_batch_and_rows()
    batch.root_count = torch.tensor([1001, 1, 1, 3])
    h = torch.ones(5, 1, dtype=torch.bfloat16)
    assert RootAggregation('mean')(h, batch)[0] == 1


def test_rows_off_the_roots_do_not_matter():
    data = Data(
        x=torch.tensor([[1.0], [float('nan')]], requires_grad=True),
        root_mask=torch.tensor([True, False]),
    )
    for aggr in ['sum', 'mean', 'max']:
        out = RootAggregation(aggr)(data.x, data)
        assert out.tolist() == [[1]]
        (grad,) = torch.autograd.grad(out.sum(), data.x)
        assert grad.tolist() == [[1], [0]]


def test_wrong_rows():
    batch, _, _ = shared_batch_and_rows()
    for size in [2, 6]:
        with pytest.raises(ValueError, match=rf"'h' .* 5 nodes .*got {size}"):
            RootAggregation()(torch.zeros(size, 2), batch)
    batch = Batch.from_data_list([Data(x=torch.randn(2, 3))])
    with pytest.raises(ValueError, match=r"'h' .* 2 nodes .*got 3"):
        RootAggregation()(torch.zeros(3, 2), batch)


def test_gradcheck():
    batch, _, _ = shared_batch_and_rows()
    h = torch.randn(5, 2, dtype=torch.double, requires_grad=True)
    for module in [RootAggregation('sum'), RootAggregation('mean')]:
        function = functools.partial(module, batch=batch)
        assert torch.autograd.gradcheck(function, h)


def test_compile():
    batch, _, _ = shared_batch_and_rows()
    module, h = RootAggregation('sum'), torch.randn(5, 4)
    explanation = torch._dynamo.explain(module)(h, batch)
    assert explanation.graph_break_count == 0


@withCUDA
@pytest.mark.parametrize('aggr', AGGRS)
def test_device(aggr, device):
    batch, rows, index = shared_batch_and_rows()
    module = RootAggregation(aggr).to(device)
    h = torch.randn(5, 4, device=device)
    expected = module.aggr(h[rows.to(device)], index.to(device), dim_size=3)
    assert torch.allclose(module(h, batch.to(device)), expected, atol=1e-6)
