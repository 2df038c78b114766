import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn import LayerNorm, Module, ModuleList, ReLU
from torch_geometric.data import Data
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    PNA,
    DeepGCNLayer,
    GCNConv,
    GENConv,
    GPSConv,
    GraphSAGE,
    Linear,
)

from devices import withDevice
from searches import graph, prune
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs

FEW = dict(weight_sparsity=0.4, edge_sparsity=0.1)


class Deep(Module):
    """DeeperGCN, with softmax as its aggregation."""

    def __init__(self, num_layers=28):
        super().__init__()
        self.lins = ModuleList([Linear(5, 8), Linear(8, 3)])
        self.layers = ModuleList()
        for _ in range(num_layers):
            conv = GENConv(8, 8, learn_t=True, num_layers=1)
            layer = DeepGCNLayer(conv, LayerNorm(8), ReLU(), dropout=0.1)
            self.layers.append(layer)

    def forward(self, x, edge_index):
        x = self.lins[0](x)
        for layer in self.layers:
            x = layer(x, edge_index)
        return self.lins[1](x)


class GPS(Module):
    """The local and the global part of GPS."""

    def __init__(self):
        super().__init__()
        self.lins = ModuleList([Linear(5, 8), Linear(8, 3)])
        self.conv = GPSConv(8, GCNConv(8, 8), heads=2)

    def forward(self, x, edge_index):
        batch = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
        return self.lins[1](self.conv(self.lins[0](x), edge_index, batch))


DEG = torch.tensor([1, 3, 4, 3, 2, 1])
MODELS = {
    'gcn': lambda: GCN(5, 8, 2, 3),
    'cached': lambda: GCN(5, 8, 2, 3, cached=True),
    'sage': lambda: GraphSAGE(5, 8, 2, 3),
    'max': lambda: GraphSAGE(5, 8, 2, 3, aggr='max'),
    'std': lambda: GraphSAGE(5, 8, 2, 3, aggr='std'),
    'gin': lambda: GIN(5, 8, 2, 3, norm='batch_norm'),
    'gat': lambda: GAT(5, 8, 2, 3),
    'gatv2': lambda: GAT(5, 8, 2, 3, v2=True),
    'pna': lambda: PNA(
        5,
        8,
        2,
        3,
        aggregators=['mean', 'max', 'std', 'sum'],
        scalers=['identity', 'amplification'],
        deg=DEG,
    ),
    'deep': Deep,
    'gps': GPS,
    'lazy': lambda: GCN(-1, 8, 2, 3),
    'lazy_sage': lambda: GraphSAGE(-1, 8, 2, 3),
    'jump': lambda: GCN(5, 8, 2, 3, jk='cat'),
}


def naive_graph(data, edge_mask):
    """A graph that never had the pruned edges."""
    edges = [
        edge
        for edge, keep in zip(data.edge_index.t().tolist(), edge_mask)
        if keep
    ]
    return torch.tensor(edges).t().contiguous()


@pytest.mark.parametrize(
    'method, edge_score',
    [('fast', 'degree'), ('imp', 'learned')],
)
@pytest.mark.parametrize('name', list(MODELS))
def test_pruner_models(name, method, edge_score):
    torch.manual_seed(0)
    model, data = MODELS[name](), graph()
    if 'lazy' not in name:
        model(data.x, data.edge_index)  # Fills caches.
    ticket = prune(model, data, method=method, edge_score=edge_score, **FEW)
    pairs = EdgePairs(data.edge_index, data.num_nodes)
    kept = sum(int(x.sum()) for x in ticket.weight_masks.values())
    total = sum(x.numel() for x in ticket.weight_masks.values())
    assert kept == round(0.6 * total)
    num_loops = int(pairs.is_loop.sum())
    num_edges = num_loops + 2 * round(0.9 * pairs.num_pairs)
    assert int(ticket.edge_mask.sum()) == num_edges and num_loops > 0

    # The ticket equals a model on a graph without pruned edges:
    dense, small = ticket.apply(model, data)
    sparse, _ = ticket.apply(model, data, sparse=True)
    edge_index = naive_graph(data, ticket.edge_mask)
    assert torch.equal(small.edge_index, edge_index)
    other = MODELS[name]().eval()
    other.load_state_dict(ticket.final_state)
    expected = other(data.x, edge_index)
    out = dense(small.x, small.edge_index)
    assert torch.equal(out, expected)
    out = sparse(small.x, small.edge_index)
    assert torch.allclose(out, expected, atol=1e-4)
    correct = (expected.argmax(dim=-1) == data.y)[data.val_mask]
    metric = max(ticket.metrics.get(x, 0) for x in ['search', 'retrained'])
    assert metric == pytest.approx(float(correct.float().mean()))


def plain_loop(model, data, masks, num_epochs):
    """Train masked weights, and return the first state of the best validation
    accuracy.
    """
    params = dict(model.named_parameters())
    optimizer = sgd(model.parameters())
    best, state = -1.0, {}
    for _ in range(num_epochs):
        for name, mask in masks.items():
            params[name].data *= mask
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        for name, mask in masks.items():
            params[name].grad *= mask
        optimizer.step()
        out = model.eval()(data.x, data.edge_index)
        correct = (out.argmax(dim=-1) == data.y)[data.val_mask]
        if float(correct.float().mean()) > best:
            best = float(correct.float().mean())
            state = copy.deepcopy(model.state_dict())
    return state


def sgd(params):
    return torch.optim.SGD(params, lr=0.3, momentum=0.9)


@withDevice
@pytest.mark.parametrize('name', ['gcn', 'sage', 'max', 'std', 'softmax'])
def test_ticket_is_trained_as_if_no_edge_had_ever_been_there(name, device):
    """Few labels on a sparse graph: the search trains on a subgraph."""
    torch.manual_seed(0)
    make = {**MODELS, 'softmax': lambda: Deep(2)}[name]
    model = make().double().to(device)
    edges = torch.randint(190, (2, 170))
    data = Data(
        x=torch.randn(200, 5, dtype=torch.double),
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        y=torch.arange(200) % 3,
        train_mask=torch.arange(200) % 20 == 0,
        val_mask=torch.arange(200) % 15 == 1,
    ).to(device)
    for module in model.modules():
        if isinstance(module, DeepGCNLayer):
            module.dropout = 0.0
    ticket = prune(
        model,
        data,
        method='one_shot',
        distill=0.0,
        optimizer=sgd,
        retrain_epochs=6,
        evaluate_every=1,
    )
    small = data.clone()
    edge_index = naive_graph(data, ticket.edge_mask).to(device)
    small.edge_index = edge_index
    state = plain_loop(model, small, ticket.weight_masks, 6)
    for key, value in ticket.final_state.items():
        torch.testing.assert_close(value, state[key])


def test_pruner_edge_features():
    data = graph()
    data.edge_attr = torch.arange(data.num_edges).view(-1, 1).float() / 80
    model = GAT(5, 8, 2, 3, edge_dim=1)
    ticket = prune(model, data, edge_score='learned', **FEW)
    model, small = ticket.apply(model, data)
    assert torch.equal(small.edge_attr, data.edge_attr[ticket.edge_mask])
    out = model(small.x, small.edge_index, edge_attr=small.edge_attr)
    correct = (out.argmax(dim=-1) == data.y)[data.val_mask].float().mean()
    metric = max(ticket.metrics.get(x, 0) for x in ['search', 'retrained'])
    assert metric == pytest.approx(float(correct))

    data.edge_weight = torch.rand(data.num_edges)
    ticket = prune(GCN(5, 8, 2, 3), data, **FEW)
    _, small = ticket.apply(GCN(5, 8, 2, 3), data)
    assert torch.equal(small.edge_weight, data.edge_weight[ticket.edge_mask])


def test_pruner_shared_layers():
    class Shared(Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = Linear(5, 5)
            self.conv = GCNConv(5, 3)

        def forward(self, x, edge_index):
            x = self.second(self.first(x).relu()).relu()
            return self.conv(x, edge_index)

    model, data = Shared(), graph()
    ticket = prune(model, data, **FEW)
    assert list(ticket.weight_masks) == ['first.weight', 'conv.lin.weight']
    for weights in ['final', 'initial']:
        outs = []
        for sparse in [True, False]:
            other, small = ticket.apply(
                model, data, sparse=sparse, weights=weights
            )
            assert other.first is other.second
            outs.append(other(small.x, small.edge_index))
        assert torch.allclose(*outs, atol=1e-6)
