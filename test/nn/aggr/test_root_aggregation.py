import copy
import functools
import sys
import warnings

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn.aggr import MedianAggregation, SoftmaxAggregation

from devices import withDevice
from torch_geometric_ext.data import SharedTreeBatch
from torch_geometric_ext.nn import (
    RootAggregation,
    TreeBatchNorm,
    shared_batch,
)

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
    out = RootAggregation('mean')(h, batch)
    assert out[0] == 1 and out.dtype == torch.bfloat16
    batch.root_count = torch.tensor([259, 2, 1, 3])
    h[2] = 0.5  # In half precision, 259 is 260, and the sum 262.
    assert RootAggregation('sum')(h, batch)[0] == 260


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


@pytest.mark.parametrize('size', [(2,), (4,), (3, 1), ()])
def test_wrong_index(size):
    index = torch.zeros(size, dtype=torch.long)
    with pytest.raises(ValueError, match=r"'batch' .* 3 rows of 'h' .*got \["):
        RootAggregation()(torch.zeros(3, 2), index)


def normalized_batch():
    batch, _, _ = shared_batch_and_rows()
    batch.own = torch.tensor([3, 4, 4, 3, 4])
    batch.edge_index = torch.empty(2, 0, dtype=torch.long)
    batch.num_sampled_edges = [0]
    return batch


class Normalized(torch.nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.lin = torch.nn.Linear(1, 4)
        self.norm = norm
        self.aggr = RootAggregation('sum')

    def forward(self, batch):
        h = self.lin(batch.x)
        return self.aggr(h if self.norm is None else self.norm(h), batch)


@pytest.mark.parametrize('block', [True, False])
def test_warning_of_plain_batch_norm(block):
    model, batch = Normalized(torch.nn.BatchNorm1d(4)), normalized_batch()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        model.eval()(batch)  # Running statistics are exact.
        assert found == []
        model.train()
        for _ in range(3):
            with shared_batch(batch if block else Data(), levelwise=False):
                model(batch).sum().backward()
    assert len(found) == 1
    assert "'TreeBatchNorm.convert(model)'" in str(found[0].message)
    assert found[0].filename == __file__


def test_no_warning_of_batch_norm():
    batch = normalized_batch()
    plain = Batch.from_data_list([Data(x=torch.randn(n, 1)) for n in (2, 4)])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with shared_batch(batch):
            Normalized(TreeBatchNorm(4))(batch)
        Normalized(None)(batch)
        Normalized(torch.nn.InstanceNorm1d(batch.x.size(0)))(batch)
        Normalized(torch.nn.BatchNorm1d(4))(plain)
        # Of graphs, after pooling:
        head = torch.nn.BatchNorm1d(4)
        head(Normalized(None)(batch))
        with torch.no_grad():
            Normalized(torch.nn.BatchNorm1d(4))(batch)


def test_models_without_batch_norm_are_searched_once(monkeypatch):
    batch, model = normalized_batch(), Normalized(None)
    calls = []
    module = sys.modules[RootAggregation.__module__]
    monkeypatch.setattr(
        module, '_norm_modes', lambda node: calls.append(node) or []
    )
    for _ in range(3):
        model(batch)
    assert len(calls) == 1


def test_gradcheck():
    batch, _, _ = shared_batch_and_rows()
    h = torch.randn(5, 2, dtype=torch.double, requires_grad=True)
    for module in [RootAggregation('sum'), RootAggregation('mean')]:
        function = functools.partial(module, batch=batch)
        assert torch.autograd.gradcheck(function, h)


def test_compile():
    batch, _, _ = shared_batch_and_rows()
    module, h = RootAggregation('sum'), torch.randn(5, 4)
    h.requires_grad_()
    explanation = torch._dynamo.explain(module)(h * 2, batch)
    assert explanation.graph_break_count == 0
    model = Normalized(torch.nn.BatchNorm1d(4))
    out = torch.compile(model, backend='eager')(batch)
    assert out.shape == (3, 4)


@withDevice
@pytest.mark.parametrize('aggr', AGGRS)
def test_device(aggr, device):
    batch, rows, index = shared_batch_and_rows()
    module = RootAggregation(aggr).to(device)
    h = torch.randn(5, 4, device=device)
    expected = module.aggr(h[rows.to(device)], index.to(device), dim_size=3)
    assert torch.allclose(module(h, batch.to(device)), expected, atol=1e-6)
