import pytest
import torch
from torch.nn import Module
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GCNConv, Linear, Sequential

from torch_geometric_ext.full_batch.call_model import call_model
from torch_geometric_ext.lottery.check import check_data
from torch_geometric_ext.lottery.check_node_task import check_node_task


def graph(**kwargs):
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])
    return Data(x=torch.randn(4, 2), edge_index=edge_index, **kwargs)


def test_check_data():
    check_data(graph())
    check_data([graph()])
    with pytest.raises(NotImplementedError, match='needs to be homogeneous'):
        check_data(HeteroData())
    loader = DataLoader([HeteroData()])
    loader.data = HeteroData()  # As those that sample from a graph.
    with pytest.raises(NotImplementedError, match='needs to be homogeneous'):
        check_data(loader)
    with pytest.raises(TypeError, match='a loader with a length'):
        check_data(iter([graph()]))


def test_check_node_task():
    model = GCN(2, 4, 1, 2)
    y, mask = torch.tensor([0, 1, 1, 0]), torch.tensor([True] * 4)
    data = graph(y=y, train_mask=mask, val_mask=mask)
    check_node_task(data, model, 0.5)

    def check(match, model=model, **kwargs):
        other = data.clone()
        for key, value in kwargs.items():
            other[key] = value
        with pytest.raises(ValueError, match=match):
            check_node_task(other, model, 0.5)

    check(r"needs to hold \['y', 'val_mask'\]", y=None, val_mask=None)
    check(r"\['edge_index'\]", edge_index=None, adj_t=torch.eye(4).to_sparse())
    check('one class for each of the 4', y=torch.rand(4))
    check('one class for each of the 4', y=y.view(-1, 1))
    check('one class for each of the 4', y=y[:2])
    check("'train_mask' .* one split", train_mask=mask.view(4, 1))
    check("'val_mask' .* torch.bool", val_mask=mask.long())
    check("'val_mask' of 'data' selects no node", val_mask=~mask)
    check("called with 'x' and 'edge_index'", model=Linear(2, 2))
    with pytest.raises(ValueError, match="a loader as 'data' needs"):
        check_node_task([data], model, 0.5)
    check_node_task(Batch.from_data_list([data]), model, 0.5)

    sparse = data.x.to_sparse()
    check("'x' of 'data' needs to be dense .* torch.sparse_coo", x=sparse)
    data.x, data.edge_weight = sparse, torch.rand(4)
    check_node_task(data, model, 0.0)


def test_models_that_need_weights_of_edges():
    mask = torch.ones(4, dtype=torch.bool)
    data = graph(y=torch.arange(4) % 2, train_mask=mask, val_mask=mask)
    conv, names = GCNConv(2, 2), 'x, edge_index, edge_weight'
    model = Sequential(names, [(conv, f'{names} -> x')])

    class Weighted(Module):
        def forward(self, x, edge_index, edge_weight):
            return conv(x, edge_index, edge_weight)

    with pytest.raises(ValueError, match="and 'edge_weight' and 'edge_attr'"):
        check_node_task(data, Weighted(), 0.5)
    data.edge_weight = torch.rand(4)
    expected = conv(data.x, data.edge_index, data.edge_weight)
    for other in [Weighted(), model]:
        check_node_task(data, other, 0.5)
        assert torch.equal(call_model(other, data), expected)
