import pytest
import torch
from torch.nn import BatchNorm1d, Module
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import (
    GCN,
    GraphSAGE,
    Linear,
    SAGEConv,
    global_add_pool,
)

from torch_geometric_ext.utils import GraphLotteryPruner, number_edges
from torch_geometric_ext.utils.lottery.edge_pairs import EdgePairs

FIT = ['loss_fn', 'evaluate']
SHORT = dict(
    weight_sparsity=0.7,
    edge_sparsity=0.3,
    pretrain_epochs=4,
    search_epochs=8,
    retrain_epochs=4,
    update_every=2,
)


def graph(num_nodes=16, seed=0, device=None, undirected=True):
    """A graph with multi-edges, self-loops and an isolated node."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(num_nodes - 1, (2, 40), generator=generator)
    edges[1, :3] = edges[0, :3]
    if undirected:
        between = edges[:, edges[0] != edges[1]]
        edges = torch.cat([edges, between.flip(0)], dim=1)
    y = torch.arange(num_nodes) % 3
    x = torch.randn(num_nodes, 5, generator=generator) + y.view(-1, 1)
    mask = torch.rand(num_nodes, generator=generator) < 0.5
    data = Data(x=x, edge_index=edges, y=y, train_mask=mask, val_mask=~mask)
    return data.to(device)


def prune(model, data, *args, **kwargs):
    fit = {key: kwargs.pop(key) for key in FIT if key in kwargs}
    pruner = GraphLotteryPruner(model, **{**SHORT, **kwargs})
    return pruner.fit(data, *args, **fit)


def equal(ticket, other):
    """Whether tickets are the same, bit for bit."""
    a, b = vars(ticket).copy(), vars(other).copy()
    for values in [a, b]:
        values.pop('seconds')
    return str(flat(a)) == str(flat(b))


def flat(value):
    if isinstance(value, dict):
        return {key: flat(x) for key, x in value.items()}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value


def test_pruner_link_prediction():
    data = graph()
    data.edge_label_index = data.edge_index  # As many as edges.

    def loss_fn(model, data):
        z = model(data.x, data.edge_index)
        assert data.edge_label_index.size(1) == num_edges
        source, target = data.edge_label_index
        positive = (z[source] * z[target]).sum(dim=-1)
        other = torch.randint(16, source.shape)
        negative = (z[source] * z[other]).sum(dim=-1)
        return (negative - positive).sigmoid().mean()

    num_edges = data.num_edges
    ticket = prune(
        GCN(5, 8, 2),
        data,
        loss_fn=loss_fn,
        evaluate=lambda model, data: -float(loss_fn(model, data)),
    )
    assert ticket.edge_sparsity == pytest.approx(0.3, abs=0.03)
    assert ticket.macs[0] > ticket.macs[1]


class Pooled(Module):
    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(5, 8)
        self.norm = BatchNorm1d(8)
        self.lin = Linear(8, 2)

    def forward(self, x, edge_index, batch):
        x = self.norm(self.conv(x, edge_index)).relu()
        return self.lin(global_add_pool(x, batch))


def pooled_loss(model, batch):
    out = model(batch.x, batch.edge_index, batch.batch)
    return torch.nn.functional.cross_entropy(out, batch.label)


def pooled_metric(model, batches):
    return -sum(float(pooled_loss(model, batch)) for batch in batches)


@pytest.mark.parametrize(
    'method, edge_score',
    [('fast', 'learned'), ('imp', 'learned'), ('random', 'degree')],
)
def test_pruner_graph_classification(method, edge_score):
    graphs = [graph(8 + i, seed=i) for i in range(6)]
    for i, data in enumerate(graphs):
        data.label = torch.tensor([i % 2])
    graphs = number_edges(graphs)
    loader = DataLoader(graphs, batch_size=2, shuffle=True)
    kwargs = dict(
        method=method,
        edge_score=edge_score,
        weight_sparsity=0.4,
        edge_sparsity=0.1,
        retrain_epochs=2,
    )
    args = (Pooled(), loader, pooled_loss, pooled_metric)
    ticket = prune(*args, **kwargs)
    total = sum(data.num_edges for data in graphs)
    assert ticket.edge_mask.numel() == total
    assert equal(ticket, prune(*args, **kwargs))
    for data in graphs:
        _, small = ticket.apply(Pooled(), data)
        assert torch.equal(small.e_id, data.e_id[ticket.edge_mask[data.e_id]])
        assert small.num_edges == small.e_id.numel()
    # Without numbers:
    loader = DataLoader([graph()], batch_size=1)
    with pytest.raises(ValueError, match="'number_edges' does that"):
        prune(args[0], loader, *args[2:])


class Subgraphs:
    """Mini-batches of the edges that point to some of the nodes."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 2

    def __iter__(self):
        for i in range(2):
            ids = (self.data.edge_index[1] % 2 == i).nonzero().flatten()
            ids = ids[torch.randperm(ids.numel())]
            batch = self.data.clone()
            batch.edge_index = batch.edge_index[:, ids]
            batch.e_id = ids
            yield batch


@pytest.mark.parametrize('method', ['fast', 'imp'])
def test_pruner_mini_batches(method):
    def loss_fn(model, batch):
        out = model(batch.x, batch.edge_index)
        return torch.nn.functional.cross_entropy(out, batch.y)

    data, num_edges = graph(), []

    def evaluate(model, batches):
        num_edges.append(sum(batch.num_edges for batch in batches))
        return 0.0

    ticket = prune(
        GraphSAGE(5, 8, 2, 3),
        Subgraphs(data),
        loss_fn,
        evaluate,
        method=method,
        edge_score='learned',
        retrain_epochs=2,
    )
    assert num_edges[0] == data.num_edges
    assert num_edges[-1] == int(ticket.edge_mask.sum()) < data.num_edges
    pairs = EdgePairs(data.edge_index, data.num_nodes)
    for pair in range(pairs.num_pairs):
        assert ticket.edge_mask[pairs.pair == pair].unique().numel() == 1


def test_pruner_loss_that_changes_mini_batches():
    def loss_fn(model, batch):
        batch.x = torch.cat([batch.x, batch.x], dim=-1)
        out = model(batch.x, batch.edge_index)
        return torch.nn.functional.cross_entropy(out, batch.y)

    loader = DataLoader([graph(seed=i) for i in range(4)], batch_size=2)
    ticket = prune(
        GraphSAGE(10, 32, 2, 3),
        loader,
        loss_fn,
        lambda model, batches: 0.0,
        edge_sparsity=0.0,
        weight_sparsity=0.95,
    )
    assert ticket.weight_sparsity == pytest.approx(0.95, abs=1e-3)
