"""Models and a graph on which accelerated and plain models are compared."""

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    PNA,
    ARMAConv,
    ClusterGCNConv,
    EdgeCNN,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GENConv,
    GINConv,
    GPSConv,
    GraphConv,
    GraphNorm,
    GraphSAGE,
    GraphUNet,
    LayerNorm,
    PairNorm,
    Sequential,
    SGConv,
    TAGConv,
)

NUM_NODES, CHANNELS = 300, 12


def make_graph(device=None, dtype=torch.double, directed=False):
    """A sparse graph with multi-edges, self-loops and isolated nodes, most of
    it outside of the receptive field of few labels.
    """
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(NUM_NODES - 9, (2, 260), generator=generator)
    edges[1, :5] = edges[0, :5]
    edges = torch.cat([edges, edges[:, 9:12]], dim=1)
    if not directed:
        edges = torch.cat([edges, edges[:, 5:].flip(0)], dim=1)
    x = torch.randn(NUM_NODES, CHANNELS, generator=generator)
    data = Data(x=x.to(dtype), edge_index=edges)
    data.y = torch.arange(NUM_NODES) % 3
    data.train_mask = torch.arange(NUM_NODES) % 40 == 0
    data.val_mask = torch.arange(NUM_NODES) % 30 == 3
    return data.to(device)


def add_edge_values(data):
    """Add edge weights and edge features, of both directions of an edge."""
    generator = torch.Generator().manual_seed(1)
    size = data.num_edges
    data.edge_weight = torch.rand(size, generator=generator).to(data.x)
    data.edge_attr = torch.rand(size, 2, generator=generator).to(data.x)
    return data


def make_sparse(data):
    """Replace the features by bags of few words."""
    mask = torch.rand(data.x.shape, generator=torch.Generator().manual_seed(2))
    data.x = data.x * (mask < 0.05).to(data.x)
    return data


class Net(nn.Module):
    """Two convolutions, on features that may be transformed before."""

    def __init__(self, make, lin=True, residual=False, norm=None):
        super().__init__()
        size = 8 if lin else CHANNELS
        self.lin = nn.Linear(CHANNELS, 8) if lin else nn.Identity()
        self.convs = nn.ModuleList([make(size, 8), make(8, 8)])
        self.head = nn.Linear(8, 3)
        self.residual, self.norm = residual, norm

    def forward(self, x, edge_index):
        h = self.lin(x)
        for conv in self.convs:
            out = conv(h, edge_index)
            h = h + out if self.residual else out.relu()
            h = h if self.norm is None else self.norm(h)
        return self.head(h)


class WithEdges(nn.Module):
    """Two convolutions that take edge weights or edge features."""

    def __init__(self, make, key):
        super().__init__()
        self.convs = nn.ModuleList([make(CHANNELS, 8), make(8, 3)])
        self.key = key

    def forward(self, x, edge_index, edge_weight, edge_attr):
        values = {'edge_weight': edge_weight, 'edge_attr': edge_attr}
        for i, conv in enumerate(self.convs):
            x = conv(x if i == 0 else x.tanh(), edge_index, values[self.key])
        return x


class GCN2(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.head = nn.Linear(CHANNELS, 8), nn.Linear(8, 3)
        self.convs = nn.ModuleList(
            [GCN2Conv(8, 0.1, 0.5, i + 1) for i in range(2)]
        )

    def forward(self, x, edge_index):
        x = x0 = self.lin(x).relu()
        for conv in self.convs:
            x = conv(x, x0, edge_index).relu()
        return self.head(x)


class LocalGPS(GPSConv):
    """A layer of GPS without attention over all nodes."""

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index) + x
        return h + self.mlp(h)


def predict_then_propagate(conv):
    layers = [
        (nn.Linear(CHANNELS, 3), 'x -> x'),
        (conv, 'x, edge_index -> x'),
    ]
    return Sequential('x, edge_index', layers)


def gin(in_channels, out_channels, **kwargs):
    layers = [nn.Linear(in_channels, out_channels), nn.ReLU()]
    return GINConv(nn.Sequential(*layers), **kwargs)


LOCAL = {
    'gcn': lambda: GCN(CHANNELS, 8, 2, 3),
    'gcn wide': lambda: GCN(CHANNELS, 20, 2, 3),
    'gcn cached': lambda: GCN(CHANNELS, 8, 2, 3, cached=True),
    'deep': lambda: GCN(CHANNELS, 8, 3, 3, jk='cat'),
    'jk lstm': lambda: GCN(CHANNELS, 8, 2, 3, jk='lstm'),
    'sage': lambda: GraphSAGE(CHANNELS, 8, 2, 3),
    'sage sum': lambda: GraphSAGE(CHANNELS, 8, 2, 3, aggr='sum'),
    'sage max': lambda: GraphSAGE(CHANNELS, 8, 2, 3, aggr='max'),
    'sage project': lambda: GraphSAGE(CHANNELS, 8, 2, 3, project=True),
    'sage normalize': lambda: GraphSAGE(CHANNELS, 8, 2, 3, normalize=True),
    'gin': lambda: GIN(CHANNELS, 8, 2, 3, train_eps=True),
    'gin sequential': lambda: Net(gin, lin=False),
    'gin mean': lambda: Net(lambda a, b: gin(a, b, aggr='mean', eps=0.5)),
    'gat': lambda: GAT(CHANNELS, 8, 2, 3, heads=2),
    'gat mean': lambda: GAT(CHANNELS, 8, 2, 3, aggr='mean'),
    'gatv2': lambda: GAT(CHANNELS, 8, 2, 3, heads=2, v2=True),
    'gatv2 residual': lambda: Net(GATv2Conv, residual=True),
    'graph conv': lambda: Net(GraphConv, residual=True),
    'graph conv first': lambda: Net(GraphConv, lin=False),
    'gcn2': GCN2,
    'appnp': lambda: predict_then_propagate(APPNP(2, 0.1)),
    'gps': lambda: Net(lambda a, b: LocalGPS(a, GCNConv(a, b), norm=None)),
    'layer norm': lambda: Net(GCNConv, norm=LayerNorm(8, mode='node')),
    'pna': lambda: PNA(
        CHANNELS,
        8,
        2,
        3,
        aggregators=['mean', 'std'],
        scalers=['identity', 'amplification'],
        deg=torch.tensor([0, 3, 5]),
    ),
    'edge': lambda: EdgeCNN(CHANNELS, 8, 2, 3),
    'gen': lambda: Net(lambda a, b: GENConv(a, b, norm='layer')),
    'sg': lambda: SGConv(CHANNELS, 3, K=2),
    # These need one hop more, to know the degrees of neighbors:
    'subclass': lambda: Net(type('Mine', (GCNConv,), {})),
    'tag': lambda: Net(lambda a, b: TAGConv(a, b, K=1)),
    'arma': lambda: Net(ARMAConv),
    'cluster': lambda: Net(ClusterGCNConv),
    'flow': lambda: Net(lambda a, b: GraphConv(a, b, flow='target_to_source')),
}

WITH_EDGES = {
    'gcn': lambda: WithEdges(GCNConv, 'edge_weight'),
    'graph conv': lambda: WithEdges(GraphConv, 'edge_weight'),
    'gat': lambda: WithEdges(
        lambda a, b: GAT(a, b, 1, edge_dim=2).convs[0], 'edge_attr'
    ),
    'gat mean': lambda: WithEdges(
        lambda a, b: GAT(a, b, 1, edge_dim=2, fill_value='mean').convs[0],
        'edge_attr',
    ),
    'gatv2': lambda: WithEdges(
        lambda a, b: GATv2Conv(a, b, edge_dim=1), 'edge_weight'
    ),
}


class Mean(nn.Module):
    """Reads all nodes, in ways that are easily missed."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = GCNConv(CHANNELS, 8)
        self.lin = nn.Linear(8, 3)
        self.gate = nn.Parameter(torch.zeros(1))
        self.register_buffer('mean', torch.zeros(8))

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        if self.kind == 'gate':  # Zero at first.
            h = h + self.gate * h.mean(dim=0)
        elif self.kind == 'statistics':
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(dim=0)
            h = h - self.mean
        elif self.kind == 'seen':
            if not hasattr(self, 'first'):
                self.first = h.detach().mean(dim=0)
            h = h - self.first
        elif self.kind == 'number':
            h = h * x.size(0)
        elif self.kind == 'largest':
            h = h * (1 + edge_index.max())
        elif self.kind == 'median':
            h = h - h.median(dim=0).values
        elif self.kind == 'random':
            h = h + torch.randn_like(h)
        return self.lin(h.relu())


class Embedding(GCN):
    """Has a parameter for each node."""

    def __init__(self):
        super().__init__(CHANNELS, 8, 2, 3)
        self.embedding = nn.Parameter(torch.randn(NUM_NODES, CHANNELS))

    def forward(self, x, edge_index):
        return super().forward(x + self.embedding, edge_index)


KINDS = ['gate', 'statistics', 'seen', 'number', 'largest', 'median', 'random']
GLOBAL = {
    **{kind: lambda kind=kind: Mean(kind) for kind in KINDS},
    'pair norm': lambda: Net(GCNConv, norm=PairNorm()),
    'unet': lambda: GraphUNet(CHANNELS, 8, 3, depth=2),
    'graph norm': lambda: Net(GCNConv, norm=GraphNorm(8)),
    'attention': lambda: Net(
        lambda a, b: GPSConv(a, GCNConv(a, b), norm=None)
    ),
    'sg cached': lambda: SGConv(CHANNELS, 3, cached=True),
    'layer norm': lambda: GCN(CHANNELS, 8, 2, 3, norm='LayerNorm'),
    'embedding': Embedding,
}


def plain(model, data, nodes=None):
    """Return the outputs of some nodes as the model computes them."""
    kwargs = {}
    if data.get('edge_weight') is not None:
        kwargs = {
            'edge_weight': data.edge_weight,
            'edge_attr': data.edge_attr,
        }
    out = model(data.x, data.edge_index, **kwargs)
    return out if nodes is None else out[nodes]


def grads(model, out):
    """Return the gradients of a weighted sum of outputs."""
    weight = torch.linspace(1, 2, out.numel(), device=out.device)
    loss = (out * weight.to(out).view_as(out)).sum()
    params = list(model.parameters())
    return torch.autograd.grad(loss, params, allow_unused=True)


def assert_equal(fast, model, data, nodes=None):
    """Compare outputs and gradients with those of a copy of the model, which
    is not accelerated.
    """
    digits = 1e-10 if data.x.dtype == torch.double else 1e-5
    found, expected = [], []
    with torch.random.fork_rng():
        for values, net, run in [
            (found, fast.model, lambda: fast(nodes)),
            (expected, model, lambda: plain(model, data, nodes)),
        ]:
            torch.manual_seed(0)
            out = run()
            values += [out, *grads(net, out)] if out.requires_grad else [out]
    for a, b in zip(found, expected):
        if a is None or b is None:
            # A gradient that is missing may be one of zeros in the other way.
            assert all(x is None or not x.any() for x in [a, b])
        else:
            scale = 1 + float(b.detach().abs().max()) if b.numel() > 0 else 1.0
            torch.testing.assert_close(a, b, rtol=0, atol=digits * scale)
