import torch
from full_batch.models import CHANNELS, LOCAL, make_graph, make_sparse
from torch_geometric.nn import GCN

from devices import withDevice
from torch_geometric_ext.full_batch import Report, StaticGraph, accelerate


@withDevice
def test_report(device):
    torch.manual_seed(0)
    data = make_sparse(make_graph(device))
    model = GCN(CHANNELS, 8, 2, 3, norm='BatchNorm').double().to(device)
    fast = accelerate(model, StaticGraph(data))
    fast.eval()
    fast(data.train_mask)
    report = fast.report()
    assert isinstance(report, Report)
    assert report.num_hops == {'training': None, 'evaluation': 1}
    assert list(report.convs) == ['convs.0', 'convs.1']
    assert report.sparse_input and 0.03 < report.density < 0.07
    assert report.num_bytes == fast.graph.num_bytes > 0
    text = str(report)
    for line in [
        '  training: whole graph',
        '  evaluation: 1 hop',
        '  convs.0: cached aggregation of features',
        '  convs.1: sparse matrix product',
        'nonzero, skips zeros',
        'Not used:',
        "('norms.0.module' normalizes over all nodes in training)",
    ]:
        assert line in text


def test_dense_features():
    fast = accelerate(LOCAL['gcn']().double(), StaticGraph(make_graph()))
    report = fast.report()
    assert not report.sparse_input and report.density == 1
    assert '100.0% nonzero, dense' in str(report)
    assert report.reasons == {} and 'Not used' not in str(report)


def test_convolutions_without_a_faster_version():
    graph = StaticGraph(make_graph())
    reasons = accelerate(LOCAL['sage max']().double(), graph).report().reasons
    assert reasons["sparse products in 'convs.0' (SAGEConv)"] == (
        "its aggregation 'max' is no sum or mean"
    )
    reasons = accelerate(LOCAL['pna']().double(), graph).report().reasons
    assert reasons["sparse products in 'convs.0' (PNAConv)"] == (
        'it has no faster version'
    )


def test_calls_of_one_convolution():
    class Twice(GCN):
        def forward(self, x, edge_index):
            conv = self.convs[0]
            return conv(conv(x, edge_index), edge_index)

    model = Twice(CHANNELS, CHANNELS, 1).double()
    fast = accelerate(model, StaticGraph(make_graph()))
    assert fast.report().num_hops['training'] == 1
    assert fast.report().convs['convs.0']['training'] == (
        'cached aggregation of features and sparse matrix product'
    )
