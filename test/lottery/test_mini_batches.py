import pytest
import torch
from torch.nn import BatchNorm1d, Module
from torch_geometric.loader import (
    DataLoader,
    LinkNeighborLoader,
    NeighborLoader,
    NodeLoader,
    RandomNodeLoader,
)
from torch_geometric.nn import (
    GCN,
    GraphSAGE,
    Linear,
    SAGEConv,
    global_add_pool,
)
from torch_geometric.testing import onlyNeighborSampler
from torch_geometric.transforms import AddSelfLoops

from searches import equal, graph, prune
from torch_geometric_ext.loader import NeighborSampler
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.utils import number_edges


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
    with pytest.raises(ValueError, match="number them with 'number_edges'"):
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


def weighted_graph():
    """A graph of some sixty edges, each with a number of its own."""
    data = graph(num_nodes=24)
    data.edge_attr = torch.arange(data.num_edges).float().view(-1, 1)
    data.edge_weight = torch.rand(data.num_edges)
    return data


class Recorder:
    """A loss and a metric that compare mini-batches with their graph."""

    def __init__(self, data):
        self.data = data
        self.seen = []

    def loss_fn(self, model, batch):
        edge_index = batch.n_id[batch.edge_index]
        expected = self.data.edge_index[:, batch.e_id]
        assert torch.equal(edge_index, expected)
        assert torch.equal(batch.edge_attr.view(-1), batch.e_id.float())
        weight = self.data.edge_weight[batch.e_id]
        assert torch.equal(batch.edge_weight, weight)
        assert batch.input_id.numel() == batch.batch_size
        self.seen.append(batch.e_id)
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        y = batch.y[: batch.batch_size]
        return torch.nn.functional.cross_entropy(out, y)

    def evaluate(self, model, batches):
        return -sum(float(self.loss_fn(model, batch)) for batch in batches)

    def check(self, ticket):
        """Check that the batches of the last stage hold no pruned edge."""
        assert not ticket.edge_mask[torch.cat(self.seen)].all()
        # At last, MACs are counted before and after:
        assert ticket.edge_mask[torch.cat(self.seen[-8:-2])].all()
        pairs = EdgePairs(self.data.edge_index, self.data.num_nodes)
        assert pairs.undirected
        assert ticket.edge_mask[pairs.is_loop].all()
        for pair in range(pairs.num_pairs):
            assert ticket.edge_mask[pairs.pair == pair].unique().numel() == 1
        num_kept = round(0.7 * pairs.num_pairs)
        kept = ticket.edge_mask[~pairs.is_loop]
        assert int(kept.sum()) == 2 * num_kept


def neighbor_loader(data, num_neighbors, *, replace=False, **kwargs):
    sampler = NeighborSampler(data, num_neighbors, replace=replace)
    return NodeLoader(data, sampler, **kwargs)


@pytest.mark.parametrize('method', ['fast', 'imp', 'one_shot', 'random'])
@pytest.mark.parametrize('num_neighbors', [[-1, -1], [3, 3]])
def test_pruner_neighbor_loader(num_neighbors, method):
    data = weighted_graph()
    loader = neighbor_loader(data, num_neighbors, batch_size=8, shuffle=True)
    recorder, model = Recorder(data), GraphSAGE(5, 8, 2, 3)
    kwargs = dict(method=method, retrain_epochs=2)
    args = (loader, recorder.loss_fn, recorder.evaluate)
    ticket = prune(model, *args, **kwargs)
    assert ticket.weight_sparsity == pytest.approx(0.7, abs=0.01)
    recorder.check(ticket)
    if num_neighbors == [3, 3]:
        assert equal(ticket, prune(model, *args, **kwargs))
        return
    small_model, small_data = ticket.apply(model, data)
    expected = small_model(small_data.x, small_data.edge_index)
    for batch in loader:
        _, batch = ticket.apply(model, batch)
        out = small_model(batch.x, batch.edge_index)[: batch.batch_size]
        torch.testing.assert_close(out, expected[batch.input_id])


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(num_workers=2),
        dict(num_workers=2, persistent_workers=True),
        dict(replace=True),
    ],
)
def test_pruner_neighbor_loader_options(kwargs):
    data = graph()
    loader = neighbor_loader(data, [3, 3], batch_size=4, **kwargs)
    check_neighbor_loader(loader)


def check_neighbor_loader(loader):
    seen = []

    def loss_fn(model, batch):
        seen.append(batch.e_id)
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        y = batch.y[: batch.batch_size]
        return torch.nn.functional.cross_entropy(out, y)

    ticket = prune(
        GraphSAGE(5, 8, 2, 3),
        loader,
        loss_fn,
        lambda model, batches: -sum(float(loss_fn(model, x)) for x in batches),
        edge_score='learned',
        pretrain_epochs=2,
        search_epochs=4,
        retrain_epochs=2,
    )
    assert not ticket.edge_mask[torch.cat(seen)].all()
    assert ticket.edge_mask[torch.cat(seen[-8:-2])].all()


@onlyNeighborSampler
@pytest.mark.parametrize('subgraph_type', ['induced', 'bidirectional'])
def test_pruner_neighbor_loader_of_subgraphs(subgraph_type):
    data = graph()
    loader = NeighborLoader(
        data, [3, 3], batch_size=4, subgraph_type=subgraph_type
    )
    check_neighbor_loader(loader)


def test_pruner_one_neighbor():
    # Mostly, there are as many seeds as edges:
    data = weighted_graph()
    loader = neighbor_loader(data, [1], batch_size=4, shuffle=True)
    recorder = Recorder(data)
    args = (loader, recorder.loss_fn, recorder.evaluate)
    prune(GraphSAGE(5, 8, 1, 3), *args, method='random', retrain_epochs=2)


@onlyNeighborSampler
@pytest.mark.parametrize('neg_sampling', ['binary', 'triplet'])
def test_pruner_link_neighbor_loader(neg_sampling):
    data, seen = graph(), []
    loader = LinkNeighborLoader(
        data,
        [3, 3],
        edge_label_index=data.edge_index[:, ::2],
        neg_sampling=neg_sampling,
        batch_size=8,
        shuffle=True,
    )

    def loss_fn(model, batch):
        edge_index = batch.n_id[batch.edge_index]
        assert torch.equal(edge_index, data.edge_index[:, batch.e_id])
        seen.append(batch.e_id)
        z = model(batch.x, batch.edge_index)
        if neg_sampling == 'triplet':
            positive = (z[batch.src_index] * z[batch.dst_pos_index]).sum(-1)
            negative = (z[batch.src_index] * z[batch.dst_neg_index]).sum(-1)
            return (negative - positive).sigmoid().mean()
        source, target = batch.edge_label_index
        return torch.nn.functional.binary_cross_entropy_with_logits(
            (z[source] * z[target]).sum(dim=-1), batch.edge_label
        )

    ticket = prune(
        GraphSAGE(5, 8, 2),
        loader,
        loss_fn,
        lambda model, batches: -sum(float(loss_fn(model, x)) for x in batches),
    )
    assert ticket.edge_sparsity == pytest.approx(0.3, abs=0.03)
    assert ticket.edge_mask[torch.cat(seen[-8:-2])].all()


def test_pruner_transform_of_batches():
    loader = neighbor_loader(
        graph(), [3], batch_size=8, transform=AddSelfLoops()
    )
    with pytest.raises(ValueError, match='transform it before it is sampled'):
        prune(GraphSAGE(5, 8, 1, 3), loader, unseen, unseen)


def unseen(model, data):
    raise AssertionError('nothing is to be trained')


def test_pruner_random_node_loader():
    data, model = graph(), GraphSAGE(5, 8, 2, 3)
    with pytest.raises(ValueError, match="their numbers 'e_id'"):
        prune(model, RandomNodeLoader(data, 2), unseen, unseen)
    data, num_edges = number_edges([data])[0], []

    def loss_fn(model, batch):
        num_edges.append(batch.num_edges)
        out = model(batch.x, batch.edge_index)
        return torch.nn.functional.cross_entropy(out, batch.y)

    loader = RandomNodeLoader(data, 2, shuffle=True)
    ticket = prune(model, loader, loss_fn, lambda model, batches: 0.0)
    assert ticket.edge_sparsity == pytest.approx(0.3, abs=0.03)
    assert max(num_edges[-8:]) < max(num_edges)
