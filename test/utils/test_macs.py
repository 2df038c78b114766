import copy

import pytest
import torch
from torch.nn import BatchNorm1d, ReLU, Sequential
from torch.nn.parameter import is_lazy
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import (
    GCN,
    GATConv,
    GCNConv,
    GINConv,
    GPSConv,
    GraphConv,
    HeteroConv,
    Linear,
    SAGEConv,
    SimpleConv,
)
from torch_geometric.utils import subgraph, to_torch_csr_tensor

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.utils import count_macs

N, E = 5, 6
I, H, O = 8, 16, 4  # noqa: E741
EDGES = [[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]]


def graph(device=None):
    edge_index = torch.tensor(EDGES, device=device)
    return torch.randn(N, I, device=device), edge_index


def rows(macs):
    """Return the forward and training MACs of layers with any."""
    return {
        layer.name: (layer.forward, layer.training)
        for layer in macs.layers
        if layer.forward > 0
    }


@withDevice
def test_count_macs_gcn(device):
    x, edge_index = graph(device)
    model = GCN(I, H, num_layers=2, out_channels=O).to(device)
    macs = count_macs(model, x, edge_index)
    lin1, conv1 = N * I * H, (E + N) * H  # Adds self-loops.
    lin2, conv2 = N * H * O, (E + N) * O
    assert rows(macs) == {
        'convs.0': (conv1, 2 * conv1),
        'convs.0.lin': (lin1, 2 * lin1),  # Its input has no gradient.
        'convs.1': (conv2, 2 * conv2),
        'convs.1.lin': (lin2, 3 * lin2),
    }
    assert macs.forward == lin1 + conv1 + lin2 + conv2
    assert macs.training == 2 * (lin1 + conv1 + conv2) + 3 * lin2
    assert macs.num_parameters == I * H + H + H * O + O

    macs = count_macs(model, x.requires_grad_(), edge_index)
    assert rows(macs)['convs.0.lin'] == (lin1, 3 * lin1)
    with torch.inference_mode():
        assert count_macs(model.eval(), x, edge_index) == macs


def test_count_macs_sage():
    conv = SAGEConv(I, O, aggr='mean')
    macs = count_macs(conv, *graph())
    assert rows(macs) == {
        '': (E * I, E * I),  # Messages are raw features.
        'lin_l': (N * I * O, 2 * N * I * O),
        'lin_r': (N * I * O, 2 * N * I * O),
    }


def test_count_macs_gin():
    mlp = Sequential(torch.nn.Linear(I, H), ReLU(), torch.nn.Linear(H, O))
    model = GINConv(mlp, train_eps=True)
    assert rows(count_macs(model, *graph())) == {
        '': (E * I, E * I),
        'nn.0': (N * I * H, 3 * N * I * H),  # Its input depends on 'eps'.
        'nn.2': (N * H * O, 3 * N * H * O),
    }
    model.eps.requires_grad_(False)
    macs = count_macs(model, *graph())
    assert rows(macs)['nn.0'] == (N * I * H, 2 * N * I * H)


@pytest.mark.parametrize('concat', [True, False])
def test_count_macs_gat(concat):
    heads, num_edges = 3, E + N
    conv = GATConv(I, O, heads=heads, concat=concat)
    size = heads * O
    scores, messages = 2 * N * size, num_edges * size
    assert rows(count_macs(conv, *graph())) == {
        '': (scores + messages, 3 * (scores + messages)),
        'lin': (N * I * size, 2 * N * I * size),
    }


@withDevice
def test_count_macs_mlp(device):
    model = Sequential(torch.nn.Linear(I, H), ReLU(), Linear(H, O)).to(device)
    x = torch.randn(2, N, I, device=device)
    macs = count_macs(model, x)
    assert rows(macs) == {
        '0': (2 * N * I * H, 2 * 2 * N * I * H),
        '2': (2 * N * H * O, 3 * 2 * N * H * O),
    }
    assert macs.parameter_bytes == 4 * (I * H + H + H * O + O)
    assert macs.optimizer_bytes == 2 * macs.parameter_bytes

    model[0].requires_grad_(False)
    macs = count_macs(model, x)
    assert rows(macs) == {
        '0': (2 * N * I * H, 2 * N * I * H),
        '2': (2 * N * H * O, 2 * 2 * N * H * O),
    }
    assert macs.optimizer_bytes == 2 * 4 * (H * O + O)


@withDevice
def test_count_macs_sparse(device, ext):
    model = Sequential(
        SparseLinear(I, H, sparsity=0.75),
        ReLU(),
        SparseLinear(H, O, sparsity=0.5, bias=False),
    ).to(device)
    macs = count_macs(model, torch.randn(N, I, device=device))
    nnz1, nnz2 = I * H // 4, H * O // 2
    assert rows(macs) == {
        '0': (N * nnz1, 2 * N * nnz1),
        '2': (N * nnz2, 3 * N * nnz2),
    }
    assert macs.num_parameters == nnz1 + H + nnz2
    assert macs.parameter_bytes == 4 * macs.num_parameters
    boundaries = (I + 1) + (H + 1) + (H + 1) + (O + 1)
    assert macs.index_bytes == 4 * (3 * (nnz1 + nnz2) + boundaries)


@withDevice
def test_count_macs_sparse_features(device, ext):
    layer = SparseLinear(I, O, sparsity=0.5).to(device)
    x = torch.randn(N, I, device=device)
    x[:, 1:] = 0  # The layer multiplies the weights of the first feature.
    num_macs = N * int(layer.mask[:, 0].sum())
    out = count_macs(layer, x.to_sparse_csr())
    assert rows(out) == {'': (num_macs, 2 * num_macs)}


def test_count_macs_sparse_gcn(ext):
    conv = GCNConv(I, O)
    conv.lin = SparseLinear(I, O, bias=False, sparsity=0.5)
    assert rows(count_macs(conv, *graph())) == {
        '': ((E + N) * O, 2 * (E + N) * O),
        'lin': (N * I * O // 2, N * I * O),
    }


def test_count_macs_subgraph():
    x, edge_index = graph()
    edge_index, _ = subgraph([0, 1, 2], edge_index, num_nodes=N)
    macs = count_macs(GCNConv(I, O), x, edge_index)
    assert rows(macs)[''] == ((4 + N) * O, 2 * (4 + N) * O)


@pytest.mark.filterwarnings('ignore:Sparse|Converting sparse')
@pytest.mark.parametrize('layout', [torch.sparse_csr, torch.sparse_coo])
def test_count_macs_layouts(layout):
    x, edge_index = graph()
    adj = to_torch_csr_tensor(edge_index, size=(N, N))
    adj = adj if layout == torch.sparse_csr else adj.to_sparse_coo()
    mlp = torch.nn.Linear(I, O)
    gat = GATConv(I, O, add_self_loops=False)
    for conv in [GCNConv(I, O), SAGEConv(I, O), GINConv(mlp), gat]:
        expected = count_macs(conv, x, edge_index)
        assert count_macs(conv, x, adj) == expected


def test_count_macs_edge_index():
    x, edge_index = graph()
    adj = EdgeIndex(edge_index, sparse_size=(N, N)).sort_by('col')[0]
    conv = GraphConv(I, O)
    assert count_macs(conv, x, adj) == count_macs(conv, x, edge_index)


def test_count_macs_gps():
    conv = GPSConv(H, GCNConv(H, H), heads=4)
    x, edge_index = torch.randn(N, H), graph()[1]
    lin_in, attention, lin_out = N * H * 3 * H, 2 * N * N * H, N * H * H
    assert rows(count_macs(conv, x, edge_index)) == {
        'conv': ((E + N) * H, 2 * (E + N) * H),
        'conv.lin': (N * H * H, 2 * N * H * H),
        'attn': (
            lin_in + attention + lin_out,
            2 * lin_in + 3 * (attention + lin_out),
        ),
        'mlp.0': (N * H * 2 * H, 3 * N * H * 2 * H),
        'mlp.3': (N * H * 2 * H, 3 * N * H * 2 * H),
    }


def test_count_macs_hetero():
    data = HeteroData()
    data['a'].x, data['b'].x = torch.randn(N, I), torch.randn(3, O)
    data['a', 'to', 'b'].edge_index = torch.tensor([[0, 1, 4], [0, 2, 2]])
    data['b', 'to', 'a'].edge_index = torch.tensor([[0, 2], [1, 1]])
    model = HeteroConv(
        {
            ('a', 'to', 'b'): SAGEConv((-1, -1), H),
            ('b', 'to', 'a'): SAGEConv((-1, -1), H),
        }
    )
    macs = count_macs(model, data.x_dict, data.edge_index_dict)
    first, second = 'convs.<a___to___b>', 'convs.<b___to___a>'
    assert rows(macs) == {
        first: (3 * I, 3 * I),
        f'{first}.lin_l': (3 * I * H, 2 * 3 * I * H),
        f'{first}.lin_r': (3 * O * H, 2 * 3 * O * H),
        second: (2 * O, 2 * O),
        f'{second}.lin_l': (N * O * H, 2 * N * O * H),
        f'{second}.lin_r': (N * I * H, 2 * N * I * H),
    }
    assert sum(is_lazy(param) for param in model.parameters()) == 4


def test_count_macs_shared_layers():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = GCNConv(I, I, bias=False)
            self.unused = Linear(I, O)
            self.lazy = Linear(-1, O)

        def forward(self, data):
            x = self.first(data.x, data.edge_index)
            return self.second(x, data.edge_index)

    x, edge_index = graph()
    batch = Batch.from_data_list([Data(x=x, edge_index=edge_index)] * 2)
    macs = count_macs(Model(), batch)
    conv, lin = 2 * (E + N) * I, 2 * N * I * I
    assert rows(macs) == {
        'first': (2 * conv, 4 * conv),
        'first.lin': (2 * lin, 5 * lin),
    }
    assert [layer.name for layer in macs.layers][2:] == ['unused', 'lazy']
    assert macs.num_parameters == I * I + I * O + O + O


def test_count_macs_state():
    model = Sequential(Linear(-1, H), BatchNorm1d(H), torch.nn.Dropout())
    model[1].eval()
    x = torch.randn(N, I)
    seed, state = torch.random.get_rng_state(), copy.deepcopy(model[1:])
    macs = count_macs(model, x)
    assert macs.forward == N * I * H
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert is_lazy(model[0].weight)
    assert [layer.training for layer in model] == [True, False, True]
    assert all(not layer._forward_hooks for layer in model.modules())
    assert torch.backends.cudnn.enabled and torch.backends.mkldnn.enabled

    model.train()
    count_macs(model, x)
    for key, value in state.state_dict().items():
        assert torch.equal(model[1:].state_dict()[key], value)

    conv = GCNConv(I, O, cached=True)
    count_macs(conv, *graph())
    assert conv._cached_edge_index is None


def test_count_macs_compiled():
    x, edge_index = graph()
    model = GCN(I, H, num_layers=2, out_channels=O)
    expected = count_macs(model, x, edge_index)
    compiled = torch.compile(model, backend='aot_eager')
    assert count_macs(compiled, x, edge_index) == expected

    model.convs[0] = torch.compile(model.convs[0], backend='aot_eager')
    model(x, edge_index)
    assert count_macs(model, x, edge_index) == expected


def test_count_macs_optimizer():
    model, x = torch.nn.Linear(I, O), torch.randn(N, I)
    size = 4 * (I * O + O)
    for cls, kwargs, expected in [
        (torch.optim.SGD, {}, 0),
        (torch.optim.SGD, {'momentum': 0.9}, size),
        (torch.optim.Adam, {}, 2 * (size + 4)),  # Two step counters.
        (torch.optim.Adam, {'amsgrad': True}, 3 * size + 8),
    ]:
        optimizer = cls(model.parameters(), lr=0.1, **kwargs)
        macs = count_macs(model, x, optimizer=optimizer)
        assert macs.optimizer_bytes == expected
        assert not optimizer.state and model.weight.grad is None

        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert count_macs(model, x, optimizer=optimizer) == macs


def test_count_macs_without_parameters():
    macs = count_macs(ReLU(), torch.randn(N, I))
    assert macs.layers == () and macs.forward == macs.num_parameters == 0
    assert str(macs) == (
        'Layer  Forward MACs  Training MACs  Parameters\n'
        'Total             0              0           0\n'
        'Bytes: 0 parameters, 0 indices, 0 optimizer'
    )
    conv = SimpleConv()
    assert rows(count_macs(conv, *graph())) == {'': (E * I, E * I)}


def test_count_macs_errors():
    model, x = torch.nn.Linear(I, O), torch.randn(N, I)
    with pytest.raises(TypeError, match="'model' .* 'torch.nn.Module' .got"):
        count_macs(torch.relu, x)
    with pytest.raises(TypeError, match="'optimizer' .* 'torch.optim.Opt"):
        count_macs(model, x, optimizer='adam')
    with pytest.raises(TypeError, match=r'missing 1 .* argument'):
        count_macs(model)
    with pytest.raises(RuntimeError, match='cannot be multiplied'):
        count_macs(model, x.t())
    assert torch.backends.cudnn.enabled and torch.backends.mkldnn.enabled


def test_count_macs_with_a_cached_sparse_matrix():
    index = torch.tensor([[0, 1, 2, 0], [1, 0, 1, 2]])
    adj = torch.sparse_coo_tensor(index, torch.ones(4), (3, 3)).to_sparse_csr()
    conv = GCNConv(4, 2, cached=True)
    x = torch.randn(3, 4)
    expected = count_macs(conv, x, adj).forward
    conv(x, adj)
    assert count_macs(conv, x, adj).forward == expected
