import pytest
import torch
from torch_geometric import nn
from torch_geometric.data import Data

from torch_geometric_ext.nn.find_call import NotRunnable, find_call
from torch_geometric_ext.nn.random_trees import draw_trees
from torch_geometric_ext.transforms import ShareComputationTrees


def find(model, shared=None, forward=None):
    graphs = draw_trees(
        1, 0, loops=False, isolated=False, edge_labels=True, normalize=False
    )
    call = find_call(model, shared, graphs, forward)
    plain, _ = call.fill(graphs)
    return call, call(call.model, plain)


def share(dtype=torch.float):
    data = Data(
        x=torch.tensor([[1, 2], [3, 4]], dtype=dtype),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        edge_attr=torch.tensor([[1.0], [2.0]]),
    )
    return ShareComputationTrees(1)(4 * [data])


def test_features_of_the_data_set_come_first():
    call, out = find(nn.GATConv(2, 8, edge_dim=1), share())
    assert sorted(call.node['x'].tolist()) == [[1, 2], [3, 4]]
    assert sorted(call.edge['edge_attr'].tolist()) == [[1], [2]]
    assert out.shape == (42, 8) and out.dtype == torch.double
    call, _ = find(nn.GATConv(2, 8), share(torch.long))
    assert call.node['x'].dtype == torch.double


@pytest.mark.parametrize('shared', [None, share()])
def test_random_features(shared):
    call, out = find(nn.SAGEConv(5, 8), shared)
    assert call.node['x'].size(1) == 5 and out.shape == (42, 8)


def test_random_features_of_edges():
    model = nn.GINEConv(torch.nn.Linear(4, 8), edge_dim=3)
    call, _ = find(model)
    assert call.edge['edge_attr'].size(1) == 3


def test_precision_of_the_model():
    class Cast(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    call, out = find(Cast(2, 3), share())
    assert call.dtype == out.dtype == torch.float


def test_categories():
    call, out = find(torch.nn.Embedding(9, 4), share(torch.long))
    assert call.node['x'].dtype == torch.long
    assert out.shape == (42, 2, 4)


def test_given_forward():
    model = torch.nn.Linear(2, 3)
    call, out = find(model, share(), lambda m, batch: (m(batch.x), None))
    assert out.shape == (42, 3)
    assert call.model is not model


@pytest.mark.parametrize(
    'forward, match',
    [
        (lambda model, batch: batch.missing, 'missing'),
        (lambda model, batch: batch.edge_index, 'no floating-point'),
        (lambda model, batch: model(batch.x) / 0, 'not finite'),
        (lambda model, batch: model(batch.x) / model.training, 'not finite'),
        (lambda model, batch: model(batch.x) / (1 - model.training), 'finite'),
    ],
)
def test_not_runnable(forward, match):
    with pytest.raises(NotRunnable, match=match):
        find(torch.nn.Linear(2, 3), share(), forward)


def test_models_that_cannot_be_copied():
    model = torch.nn.Linear(2, 3)
    model.cache = model(torch.ones(1, 2))
    with pytest.raises(NotRunnable, match='cannot be copied'):
        find(model, share())
