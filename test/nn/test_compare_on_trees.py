import pytest
import torch
import torch.nn.functional as F
from torch_geometric import nn

from devices import withDevice
from torch_geometric_ext.nn import TreeBatchNorm
from torch_geometric_ext.nn.compare_on_trees import compare_on_trees
from torch_geometric_ext.nn.find_call import NotRunnable


@withDevice
def test_compare_on_trees(device):
    model = TreeBatchNorm.convert(nn.GIN(4, 8, 2, norm='batch_norm'))
    assert compare_on_trees(model.to(device), None, 2) is None
    reason = compare_on_trees(torch.nn.Softmax(dim=0).to(device), None, 1)
    assert "'Softmax' is the first to differ" in reason


def test_depth():
    model = nn.GIN(4, 8, num_layers=3)
    assert compare_on_trees(model, None, 3) is None
    assert compare_on_trees(model, None, 4) is None
    assert 'differ' in compare_on_trees(model, None, 2)


def test_buffers_of_lazy_models():
    with pytest.raises(NotRunnable, match='lazy'):
        compare_on_trees(nn.Linear(-1, 4), None, 1)


def test_layers_that_fail_on_isolated_nodes():
    # PyG looks up the quantiles of nodes without neighbors:
    assert compare_on_trees(nn.GraphConv(4, 8, 'median'), None, 1) is None


def test_compiled_models():
    model = torch.compile(nn.GIN(4, 8, 2), backend='eager')
    assert compare_on_trees(model, None, 2) is None


def test_models_of_one_parameter():
    model = torch.nn.Linear(4, 8, bias=False)
    assert compare_on_trees(model, None, 1) is None


def test_dropout():
    class Net(torch.nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), training=self.training)

    assert 'draws dropout' in compare_on_trees(Net(4, 8), None, 1)
    assert compare_on_trees(Net(4, 8), None, 1, dropout=True) is None
