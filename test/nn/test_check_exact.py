import copy

import pytest
import torch
from torch_geometric import nn
from torch_geometric.data import Data

from torch_geometric_ext.nn import LevelwiseConv, TreeBatchNorm, check_exact
from torch_geometric_ext.transforms import ShareComputationTrees

LCM = dict(in_channels=4, out_channels=4)
EDGE_NORM = nn.EdgeConv(nn.MLP([8, 8, 8]))


def share(num_layers=2, loop=False, **kwargs):
    edge_index = [[0, 1, 0], [1, 0, 0]] if loop else [[0, 1], [1, 0]]
    data = Data(
        x=torch.zeros(2, 1),
        edge_index=torch.tensor(edge_index),
        y=torch.tensor([0]),
    )
    return ShareComputationTrees(num_layers, **kwargs)(8 * [data])


@pytest.mark.parametrize(
    'model',
    [
        nn.GIN(4, 8, num_layers=2),
        nn.GraphSAGE(4, 8, num_layers=2, jk='cat'),
        nn.GAT(4, 8, num_layers=2, heads=2),
        nn.GATv2Conv(4, 8),
        nn.GENConv(4, 8, norm='layer'),
        nn.GraphConv(4, 8, aggr='max'),
        nn.SAGEConv(4, 8, aggr=['mean', 'std']),
        TreeBatchNorm.convert(nn.GIN(4, 8, 2, norm='batch_norm')),
        LevelwiseConv.convert(nn.GIN(4, 8, num_layers=2)),
        nn.LayerNorm(8, mode='node'),
        torch.nn.LayerNorm(8),
    ],
)
def test_exact(model):
    check_exact(model)
    check_exact(model, share())


@pytest.mark.parametrize(
    'model, reason',
    [
        (nn.TAGConv(4, 8), 'one hop'),
        (nn.ChebConv(4, 8, K=2), 'one hop'),
        (nn.APPNP(2, 0.1), 'one hop'),
        (nn.SGConv(4, 8), 'one hop'),
        (nn.MixHopConv(4, 8), 'one hop'),
        (nn.GatedGraphConv(8, num_layers=2), 'one hop'),
        (nn.GCN2Conv(8, 0.1), 'one hop'),
        (nn.GPSConv(8, nn.GINConv(torch.nn.Linear(8, 8))), 'mixes the nodes'),
        (nn.GCN(4, 8, 2), "'normalize=False'"),
        (nn.GIN(4, 8, 2, norm='batch_norm'), 'TreeBatchNorm.convert'),
        (nn.GENConv(4, 8), 'TreeBatchNorm.convert'),
        (nn.GIN(4, 8, 2, norm='graph_norm'), 'mixes the nodes'),
        (nn.GIN(4, 8, 2, norm='pair_norm'), 'mixes the nodes'),
        (nn.LayerNorm(8, mode='graph'), 'mode="node"'),
        (nn.SAGEConv(4, 8, aggr='lstm'), 'order of neighbors'),
        (nn.GIN(4, 8, 2, dropout=0.5), "'dropout=True'"),
        (nn.GATConv(4, 8, dropout=0.5), "'dropout=True'"),
        (nn.TopKPooling(8), 'several graphs'),
        (nn.SAGEConv(4, 8, aggr='lcm', aggr_kwargs=LCM), 'order of neighb'),
        (nn.MLP([4, 8, 8], dropout=0.5, norm=None), "'dropout=True'"),
        (torch.nn.RReLU(), "'dropout=True'"),
        (torch.nn.SyncBatchNorm(4), 'TreeBatchNorm.convert'),
        (nn.BatchNorm(4, allow_single_element=True), 'allow_single_element'),
        (EDGE_NORM, 'normalizes messages'),
        (TreeBatchNorm.convert(copy.deepcopy(EDGE_NORM)), 'messages'),
        (nn.DenseGCNConv(4, 8), 'dense graphs'),
        (nn.SAGEConv(4, 8, flow='target_to_source'), 'source_to_target'),
    ],
)
def test_not_exact(model, reason):
    with pytest.raises(ValueError, match=reason):
        check_exact(model)


def test_options():
    check_exact(nn.GIN(4, 8, 2, dropout=0.5), dropout=True)
    check_exact(nn.SGConv(4, 8), allow=[nn.SGConv])


def test_parallel_convolutions():
    branches = torch.nn.ModuleList([nn.GIN(4, 8, 2), nn.SAGEConv(4, 8)])
    with pytest.raises(ValueError, match="3 convolutions .*'num_hops'"):
        check_exact(branches, share())
    check_exact(branches, share(), num_hops=2)
    check_exact(branches, share(), allow=[nn.SAGEConv])


def test_with_trees():
    with pytest.raises(ValueError, match='3 convolutions .* depth 2'):
        check_exact(nn.GIN(4, 8, num_layers=3), share(2))
    gcn = nn.GCN(4, 8, 2, normalize=False, add_self_loops=False)
    check_exact(gcn, share(gcn_norm=True))
    with pytest.raises(ValueError, match="'gcn_norm=True'"):
        check_exact(gcn, share())
    with pytest.raises(ValueError, match="'gcn_norm=False'"):
        check_exact(nn.GIN(4, 8, 2), share(gcn_norm=True))
    for conv in [
        nn.GATConv(4, 8, edge_dim=2),
        nn.GINEConv(torch.nn.Linear(4, 8), edge_dim=2),
        nn.CGConv(4, dim=2),
    ]:
        check_exact(conv)
        with pytest.raises(ValueError, match="reads 'edge_attr'"):
            check_exact(conv, share())
    check_exact(nn.CGConv(4), share())
    gat = nn.GAT(4, 8, num_layers=2)
    check_exact(gat, share(loop=True, self_loops='remove'))
    with pytest.raises(ValueError, match='self_loops="remove"'):
        check_exact(gat, share(loop=True))


class OwnConv(nn.MessagePassing):
    """A convolution that no list knows."""

    def __init__(self, num_hops=1, order=False, width=4):
        super().__init__(aggr='sum')
        self.in_channels, self.num_hops = width, num_hops
        self.order = order
        self.lin = torch.nn.Linear(4, 4)

    def forward(self, x, edge_index, edge_weight=None):
        for _ in range(self.num_hops):
            x = self.propagate(edge_index, x=self.lin(x)).tanh()
        return x

    def message(self, x_j, index):
        if self.order:  # The last neighbor counts twice.
            last = torch.zeros(index.numel() + 1, 1, dtype=x_j.dtype)
            position = torch.arange(index.numel())
            end = torch.full((int(index.max()) + 1,), index.numel())
            end = end.scatter(0, index, position)
            last[end] = 1
            return x_j * (1 + last[:-1])
        return x_j


def test_convolutions_of_your_own():
    check_exact(OwnConv())
    for conv in [OwnConv(num_hops=2), OwnConv(order=True)]:
        with pytest.raises(ValueError, match='reads more than one hop'):
            check_exact(conv)
        check_exact(conv, allow=[OwnConv])
    conv = OwnConv()
    conv.lin = torch.nn.Identity()  # Does not tell the width.
    check_exact(conv)
    conv.forward = None
    with pytest.raises(ValueError, match='does not run on inputs guessed'):
        check_exact(OwnConv(width='any', num_hops='many'))


def test_model_and_random_numbers_stay_as_they_are():
    model = nn.GIN(4, 8, 2, norm='layer_norm', norm_kwargs={'mode': 'node'})
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_exact(model)
    assert torch.equal(torch.rand(3), expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert model.training and all(p.grad is None for p in model.parameters())


def test_all_reasons_are_listed():
    model = nn.GIN(4, 8, 2, norm='graph_norm', dropout=0.5)
    with pytest.raises(ValueError) as error:
        check_exact(model)
    for line in ["'norms.0' (GraphNorm)", "'dropout' (Dropout)"]:
        assert line in str(error.value)
