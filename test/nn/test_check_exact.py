import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch_geometric import nn
from torch_geometric.data import Data

from torch_geometric_ext.nn import (
    LevelwiseConv,
    RootAggregation,
    TreeBatchNorm,
    check_exact,
    shared_batch,
)
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
        nn.GENConv(4, 8, norm='instance'),  # Of the channels of each node.
    ],
)
@pytest.mark.filterwarnings('ignore:input.s size at dim=0')
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
        (nn.MeanSubtractionNorm(), 'mixes the nodes'),
        (nn.HeteroBatchNorm(4, 1), 'mixes the nodes'),
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
    conv = nn.GCNConv(4, 8)
    conv.normalize = False  # Adds no self-loops either.
    check_exact(conv, share(gcn_norm=True))
    with pytest.raises(ValueError, match="'gcn_norm=False'"):
        check_exact(nn.GIN(4, 8, 2), share(gcn_norm=True))
    for conv in [
        nn.GATConv(4, 8, edge_dim=2),
        nn.GINEConv(torch.nn.Linear(4, 8), edge_dim=2),
        nn.CGConv(4, dim=2),
        nn.GeneralConv(4, 8, in_edge_channels=2),
        nn.NNConv(4, 8, torch.nn.Linear(2, 32)),
        nn.GENConv(4, 8, norm='layer', edge_dim=2),
    ]:
        check_exact(conv)
        with pytest.raises(ValueError, match="reads 'edge_attr'"):
            check_exact(conv, share())
    for conv in [nn.CGConv(4), nn.GeneralConv(4, 8), nn.GraphConv(4, 8)]:
        check_exact(conv, share())
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
    with pytest.raises(ValueError) as error:
        check_exact(OwnConv(width='any', num_hops='many'))
    assert 'does not run on inputs guessed' in str(error.value)
    assert "TypeError: 'str' object cannot be" in str(error.value)


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


class Layers(torch.nn.Module):
    """A convolution, a layer or function, and a linear layer."""

    def __init__(self, layer, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.SAGEConv(width, 4)
        self.layer = layer if isinstance(layer, torch.nn.Module) else None
        self.function = layer
        self.lin = torch.nn.Linear(4, 4)

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        return self.lin(self.function(h))


class TypeNorm(torch.nn.Module):
    """A norm that no list knows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.HeteroBatchNorm(4, 1)
        self.norm.__class__ = type('Norm', (nn.HeteroBatchNorm,), {})

    def forward(self, x):
        return self.norm(x, torch.zeros(x.size(0), dtype=torch.long))


WIDE = Data(
    x=torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 2]]),
    edge_index=torch.tensor([[0, 1], [1, 0]]),
    edge_attr=torch.tensor([[1.0, 0], [0, 1]]),
)


def share_wide(num_layers=1, graph=WIDE, **kwargs):
    return ShareComputationTrees(num_layers, **kwargs)(8 * [graph])


EQUIVALENCE = 'equivalence check on random graphs'


@pytest.mark.parametrize('use_trees', [True, False])
@pytest.mark.parametrize(
    'layer, reason',
    [
        (torch.nn.Softmax(dim=0), r"'layer' \(Softmax\) is the first"),
        (lambda h: h - h.mean(0), r"before 'lin' \(Linear\) differs, by"),
        (lambda h: h + h[:1], "before 'lin'"),
        (lambda h: h + torch.randn_like(h), "before 'lin'"),
        (lambda h: F.batch_norm(h, None, None, training=True), "before 'lin'"),
        (F.dropout, "draws dropout in 'forward'"),
    ],
)
def test_layers_and_functions_that_no_list_knows(layer, reason, use_trees):
    shared = share_wide() if use_trees else None
    with pytest.raises(ValueError, match=f'{EQUIVALENCE}.*\n.*{reason}'):
        check_exact(Layers(layer), shared)


def test_norms_that_no_list_knows(monkeypatch):
    module = sys.modules[check_exact.__module__]
    monkeypatch.setattr(module, 'MIXING_NORMS', ())
    for norm in [TypeNorm(), nn.MeanSubtractionNorm(), nn.PairNorm()]:
        with pytest.raises(ValueError, match=EQUIVALENCE):
            check_exact(Layers(norm), share_wide())


def test_gradients_are_compared():
    class Detach(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad - grad.mean(0)

    with pytest.raises(ValueError, match=r"gradients of 'conv\.lin_l\..*by"):
        check_exact(Layers(Detach.apply))


@pytest.mark.parametrize(
    'layer',
    [
        torch.nn.Softmax(dim=1),
        torch.nn.Identity(),
        TreeBatchNorm(4),
        lambda h: F.normalize(h, dim=1),
        lambda h: F.dropout(h, 0.5, training=False),
        lambda h: F.dropout(h, 0.0),
        lambda h: h.cumsum(1),
    ],
)
def test_exact_layers_and_functions(layer):
    check_exact(Layers(layer))
    check_exact(Layers(layer), share_wide())


def test_accepted_dropout():
    for layer in [F.dropout, torch.nn.RReLU(), torch.nn.Dropout1d()]:
        check_exact(Layers(layer), dropout=True)


def test_accepted_modules_may_differ():
    class Net(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.first = torch.nn.Softmax(dim)
            self.conv = nn.SGConv(4, 4)
            self.last = torch.nn.Linear(4, 4)

        def forward(self, x, edge_index):
            return self.last(self.conv(self.first(x), edge_index))

    check_exact(Net(dim=1), share_wide(), allow=[nn.SGConv])
    with pytest.raises(ValueError, match="'first' .* first to differ"):
        check_exact(Net(dim=0), share_wide(), allow=[nn.SGConv])


@pytest.mark.parametrize('dim', [0, 1])
def test_layers_of_containers_are_run_one_by_one(dim):
    layers = torch.nn.ModuleList(
        [nn.SAGEConv(4, 8), torch.nn.ModuleDict({'x': torch.nn.Softmax(dim)})]
    )
    if dim == 1:
        check_exact(layers)
    else:
        with pytest.raises(ValueError, match=r"'1\.x' \(Softmax\): "):
            check_exact(layers)


def test_forward():
    model = Layers(torch.nn.Softmax(dim=0))
    model.forward = lambda x, edge_index, time: x / time.missing
    check_exact(torch.nn.ModuleList([model.conv, model.lin]), share_wide())
    with pytest.warns(UserWarning, match="set 'forward' .*'missing'"):
        check_exact(model, share_wide())

    def forward(model, batch):
        return model.function(model.conv(batch.x, batch.edge_index))

    for shared in [None, share_wide()]:
        with pytest.raises(ValueError, match="'layer' .* is the first"):
            check_exact(model, shared, forward=forward)
    with pytest.raises(ValueError, match="'forward' .* division by zero"):
        check_exact(model, share_wide(), forward=lambda model, batch: 1 / 0)


class Net(torch.nn.Module):
    """A model that takes mini-batches, embeds categories and pools."""

    def __init__(self, is_exact=True):
        super().__init__()
        self.encoder = torch.nn.Embedding(3, 4)
        self.gnn = nn.GIN(4, 8, num_layers=2)
        self.aggr = RootAggregation('mean')
        self.is_exact = is_exact

    def forward(self, batch):
        with shared_batch(batch):
            h = self.encoder(batch.x[:, 0].long())
            h = self.gnn(h, batch.edge_index)
        if self.is_exact:
            return self.aggr(h, batch)
        return h.mean(dim=0, keepdim=True)


@pytest.mark.parametrize('dtype', [torch.long, torch.float])
def test_whole_models(dtype):
    graph = Data(x=WIDE.x.to(dtype), edge_index=WIDE.edge_index)
    check_exact(Net(), share_wide(2, graph))
    with pytest.raises(ValueError, match=EQUIVALENCE):
        check_exact(Net(is_exact=False), share_wide(2, graph))


def test_models_that_cast_their_input():
    model = Layers(torch.nn.Identity())
    forward = model.conv.forward
    model.conv.forward = lambda x, edge_index: forward(x.float(), edge_index)
    check_exact(model, share_wide(), allow=[nn.SAGEConv])


def test_features_of_other_widths():
    # An encoder runs before the layers:
    check_exact(Layers(torch.nn.Identity(), width=9), share_wide())
    check_exact(nn.GAT(9, 8, num_layers=2, edge_dim=7), share_wide(2))


def test_normalized_trees():
    shared = share_wide(2, gcn_norm=True)
    kwargs = dict(normalize=False, add_self_loops=False)
    check_exact(nn.GCN(4, 8, num_layers=2, **kwargs), shared)
    model = torch.nn.ModuleList(
        [nn.GCNConv(4, 8, **kwargs), torch.nn.Softmax(dim=0)]
    )
    with pytest.raises(ValueError, match="'1' .* first to differ"):
        check_exact(model, shared)


def test_runs_on_graphs_but_not_on_trees():
    model = Layers(lambda h: h + torch.zeros(42, 1))
    with pytest.raises(ValueError, match='but not on their trees .*size'):
        check_exact(model)


@pytest.mark.parametrize('training', [True, False])
def test_compared_models_stay_as_they_are(training):
    model = Layers(TreeBatchNorm(4)).train(training)
    model.lin.eval()
    model.lin.weight.grad = torch.ones(4, 4)
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.no_grad():
        check_exact(model, share_wide())
    assert torch.equal(torch.rand(3), expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert modes == [module.training for module in model.modules()]
    assert model.lin.weight.grad.eq(1).all() and model.lin.bias.grad is None
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    assert not any(hooks)


def test_equivalence_check_without_kernels(ext):
    check_exact(Layers(torch.nn.Identity()), share_wide())
    with pytest.raises(ValueError, match=EQUIVALENCE):
        check_exact(Layers(torch.nn.Softmax(dim=0)), share_wide())
