import math

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GraphSAGE, Linear

from torch_geometric_ext.utils.lottery import task as task_module
from torch_geometric_ext.utils.lottery.known_graph import KnownGraph, call
from torch_geometric_ext.utils.lottery.task import (
    CustomTask,
    NodeTask,
    check_data,
    check_node_task,
    prune_edges,
    whole_graph,
)

MASK = torch.tensor([True, False, True, True])


def graph(**kwargs):
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])
    return Data(x=torch.randn(4, 2), edge_index=edge_index, **kwargs)


def test_prune_edges():
    data = graph(
        edge_attr=torch.arange(4),
        edge_weight=torch.rand(4),
        # As many labels of edges as edges, and as many edges as nodes:
        edge_label=torch.ones(4),
        edge_label_index=torch.ones(2, 4).long(),
        y=torch.arange(4),
    )
    keys, before = data.keys(), data.clone()
    out = prune_edges(data, MASK)
    assert out.edge_index.tolist() == [[0, 2, 3], [1, 3, 3]]
    assert out.edge_attr.tolist() == [0, 2, 3]
    assert torch.equal(out.edge_weight, data.edge_weight[MASK])
    for key in ['x', 'y', 'edge_label', 'edge_label_index']:
        assert torch.equal(out[key], data[key])
    assert data.keys() == keys
    assert all(torch.equal(data[key], before[key]) for key in keys)


def test_prune_edges_numbered():
    data = graph(e_id=torch.tensor([3, 1, 1, 0]))
    out = prune_edges(data, MASK)
    assert out.e_id.tolist() == [3, 0]
    assert out.edge_index.tolist() == [[0, 3], [1, 3]]
    # It can be pruned again:
    again = prune_edges(out, ~MASK)
    assert again.num_edges == 0 and again.num_nodes == 4
    with pytest.raises(ValueError, match='needs to have the 3 edges'):
        prune_edges(graph(), MASK[:3])


def test_prune_edges_of_seeds():
    # As many seeds, layers and graphs as edges:
    seeds = dict(
        input_id=torch.arange(4),
        src_index=torch.arange(4),
        dst_pos_index=torch.arange(4),
        dst_neg_index=torch.arange(4),
        num_sampled_nodes=[1, 1, 1, 1],
        ptr=torch.arange(4),
    )
    data = graph(e_id=torch.arange(4), **seeds)
    data.x = torch.randn(6, 2)
    out = prune_edges(data, MASK)
    assert out.num_edges == out.e_id.numel() == 3
    assert all(out[key] is value for key, value in seeds.items())


def test_prune_edges_of_hops():
    edge_index = torch.tensor([[1, 2, 3, 4, 1], [0, 0, 1, 1, 2]])
    hops = dict(num_sampled_nodes=[1, 2, 2], num_sampled_edges=[2, 3])
    data = Data(x=torch.randn(5, 2), edge_index=edge_index, **hops)
    data.e_id = torch.tensor([4, 2, 0, 1, 3])
    out = prune_edges(data, torch.tensor([True, True, False, False, True]))
    assert out.num_sampled_edges == [1, 2]
    assert data.num_sampled_edges == [2, 3]
    model = GraphSAGE(2, 4, 2, 3).eval()
    trimmed = model(
        out.x,
        out.edge_index,
        num_sampled_nodes_per_hop=out.num_sampled_nodes,
        num_sampled_edges_per_hop=out.num_sampled_edges,
    )
    whole = model(out.x, out.edge_index)
    torch.testing.assert_close(trimmed[0], whole[0])


def test_prune_edges_of_changed_batches():
    data = graph(e_id=torch.arange(3))  # A transform added an edge.
    with pytest.raises(ValueError, match='got 3 numbers of 4 edges'):
        prune_edges(data, MASK)
    data = graph(e_id=torch.arange(4))
    data.edge_index = None
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        prune_edges(data, MASK)


@pytest.mark.filterwarnings('ignore:Unable to accurately infer')
def test_prune_edges_without_features():
    data = Data(edge_index=torch.tensor([[0, 4], [1, 0]]))
    out = prune_edges(data, torch.tensor([True, False]))
    assert out.num_nodes == data.num_nodes == 5
    assert 'num_nodes' not in data


def test_node_task():
    mask = torch.tensor([True, True, False, False])
    data = graph(y=torch.tensor([0, 1, 1, 0]), train_mask=mask, val_mask=~mask)
    model = GCN(2, 4, 1, 2)
    task = NodeTask(KnownGraph(data))
    out = model(data.x, data.edge_index)
    log_prob = out.log_softmax(dim=-1)
    loss = -(log_prob[0, 0] + log_prob[1, 1]) / 2
    assert torch.allclose(task.loss(model, data), loss)
    correct = (out.argmax(dim=-1) == data.y)[2:]
    assert task.evaluate(model) == float(correct.float().mean())

    other = task.distilled(model, 0.25, torch.Generator()).pruned(MASK)
    small = other.batches()[0]
    assert small.num_edges == 3
    prob = (2 * log_prob).softmax(dim=-1).detach()  # At temperature 1/2.
    out = model(small.x, small.edge_index).log_softmax(dim=-1)
    loss = 0.75 * -(out[0, 0] + out[1, 1]) / 2
    loss = loss + 0.25 * -(prob * out).sum(dim=-1).mean()
    assert torch.allclose(other.loss(model, small), loss)


@pytest.mark.parametrize('num_labels, num_targets', [(1, 2), (3, 3)])
def test_targets_are_of_some_nodes(monkeypatch, num_labels, num_targets):
    monkeypatch.setattr(task_module, 'MIN_TARGETS', 2)
    mask = torch.arange(4) < num_labels
    data = graph(y=torch.tensor([0, 1, 1, 0]), train_mask=mask, val_mask=~mask)
    model = GCN(2, 4, 1, 2)
    task, found = NodeTask(KnownGraph(data)), set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        other = task.distilled(model, 1.0, generator)
        nodes, prob = other.targets
        assert nodes.unique().numel() == nodes.numel() == num_targets
        found.add(tuple(nodes.tolist()))
        log_prob = model(data.x, data.edge_index).log_softmax(dim=-1)
        assert torch.allclose(prob, (2 * log_prob[nodes]).softmax(dim=-1))
        loss = -(prob * log_prob[nodes]).sum(dim=-1).mean()
        assert torch.allclose(other.loss(model, data), loss)
    assert len(found) == math.comb(4, num_targets)


def test_custom_task():
    def evaluate(model, batches):
        assert not torch.is_grad_enabled() and not model.training
        return sum(batch.num_edges for batch in batches)

    loader = [graph(e_id=torch.tensor([0, 1, 2, 3])), graph(e_id=MASK.long())]
    task = CustomTask(loader, lambda model, batch: batch.x.sum(), evaluate)
    assert task.num_batches == 2
    assert task.evaluate(Linear(2, 2)) == 8
    small = task.pruned(MASK)
    assert small.num_batches == 2
    assert [batch.num_edges for batch in small.batches()] == [3, 1]
    assert small.evaluate(Linear(2, 2)) == 4
    assert small.loss(None, loader[0]) == loader[0].x.sum()
    generator = torch.Generator()
    assert small.distilled(Linear(2, 2), 0.5, generator) is small


def test_call():
    data = graph(edge_weight=torch.rand(4), edge_attr=torch.rand(4, 1))

    def check(forward, expected):
        model = Linear(2, 2)
        model.forward = forward
        assert call(model, data) == expected

    check(lambda x, edge_index: 0, 0)
    check(
        lambda feat, adj, edge_weight: float(edge_weight.sum()),
        float(data.edge_weight.sum()),
    )
    check(lambda x, e, edge_attr=None: edge_attr.shape, (4, 1))


def test_whole_graph():
    data = graph()
    assert whole_graph(data) is data

    class Loader(list):
        data = graph()

    assert whole_graph(Loader()) is Loader.data
    Loader.data, Loader.dataset = None, [graph(e_id=torch.arange(4))]
    assert whole_graph(Loader()).num_edges == 4
    assert whole_graph([graph(e_id=torch.arange(4))]).num_edges == 4
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph([data])
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        whole_graph(Data(x=torch.randn(2, 2)))
    both = graph(adj_t=torch.eye(4).to_sparse())
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        whole_graph(both)
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        prune_edges(both, torch.ones(4, dtype=torch.bool))
    Loader.data = graph(e_id=torch.tensor([5, 6, 7, 8]))  # Of another graph.
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph(Loader())
    Loader.data, Loader.dataset = None, [graph()]
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph(Loader())
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph(graph(e_id=torch.tensor([5, 6, 7, 8])))


def test_check_data():
    check_data(graph())
    check_data([graph()])
    with pytest.raises(NotImplementedError, match='needs to be homogeneous'):
        check_data(HeteroData())
    loader = DataLoader([HeteroData()])
    loader.data = HeteroData()  # As those that sample from a graph.
    with pytest.raises(NotImplementedError, match='needs to be homogeneous'):
        check_data(loader)
    with pytest.raises(TypeError, match='a loader with a length'):
        check_data(iter([graph()]))


def test_check_node_task():
    model = GCN(2, 4, 1, 2)
    y, mask = torch.tensor([0, 1, 1, 0]), torch.tensor([True] * 4)
    data = graph(y=y, train_mask=mask, val_mask=mask)
    check_node_task(data, model)

    def check(match, model=model, **kwargs):
        other = data.clone()
        for key, value in kwargs.items():
            other[key] = value
        with pytest.raises(ValueError, match=match):
            check_node_task(other, model)

    check(r"needs to hold \['y', 'val_mask'\]", y=None, val_mask=None)
    check(r"\['edge_index'\]", edge_index=None, adj_t=torch.eye(4).to_sparse())
    check('one class for each of the 4', y=torch.rand(4))
    check('one class for each of the 4', y=y.view(-1, 1))
    check('one class for each of the 4', y=y[:2])
    check("'train_mask' .* one split", train_mask=mask.view(4, 1))
    check("'val_mask' .* torch.bool", val_mask=mask.long())
    check("'val_mask' of 'data' selects no node", val_mask=~mask)
    check("called with 'x' and 'edge_index'", model=Linear(2, 2))
    with pytest.raises(ValueError, match="a loader as 'data' needs"):
        check_node_task([data], model)
    check_node_task(Batch.from_data_list([data]), model)
