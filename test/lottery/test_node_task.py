import copy
import math

import pytest
import torch
import torch.nn.functional as F
from full_batch.models import CHANNELS, NUM_NODES, make_graph
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import GCN

from torch_geometric_ext.lottery import node_task as module
from torch_geometric_ext.lottery.node_task import (
    NodeTask,
)

MASK = torch.tensor([True, False, True, True])


def graph(**kwargs):
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])
    return Data(x=torch.randn(4, 2), edge_index=edge_index, **kwargs)


def test_node_task():
    mask = torch.tensor([True, True, False, False])
    data = graph(y=torch.tensor([0, 1, 1, 0]), train_mask=mask, val_mask=~mask)
    model = GCN(2, 4, 1, 2)
    task = NodeTask(data)
    out = model(data.x, data.edge_index)
    log_prob = out.log_softmax(dim=-1)
    loss = -(log_prob[0, 0] + log_prob[1, 1]) / 2
    assert torch.allclose(task.loss(model, data), loss)
    correct = (out.argmax(dim=-1) == data.y)[2:]
    assert task.evaluate(model) == float(correct.float().mean())

    other = task.distilled(model, 0.25).pruned(MASK)
    small = other.batches()[0]
    assert small.num_edges == 3
    prob = (2 * log_prob).softmax(dim=-1).detach()  # At temperature 1/2.
    out = model(small.x, small.edge_index).log_softmax(dim=-1)
    loss = 0.75 * -(out[0, 0] + out[1, 1]) / 2
    loss = loss + 0.25 * -(prob * out).sum(dim=-1).mean()
    assert torch.allclose(other.loss(model, small), loss)


@pytest.mark.parametrize('num_labels, num_targets', [(1, 2), (3, 3)])
def test_targets_may_be_of_some_nodes(monkeypatch, num_labels, num_targets):
    monkeypatch.setattr(module, 'MIN_TARGETS', 2)
    mask = torch.arange(4) < num_labels
    data = graph(y=torch.tensor([0, 1, 1, 0]), train_mask=mask, val_mask=~mask)
    task, found = NodeTask(data), set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        sample = task.distilled(GCN(2, 4, 1, 2), 1.0, generator).sample
        assert sample.unique().numel() == sample.numel() == num_targets
        found.add(tuple(sample.tolist()))
    assert len(found) == math.comb(4, num_targets)
    assert task.distilled(GCN(2, 4, 1, 2), 1.0).sample is None


def test_any_integers_are_classes():
    mask = torch.ones(4, dtype=torch.bool)
    y = torch.tensor([0, 1, 1, 0])
    data = graph(y=y, train_mask=mask, val_mask=mask)
    model = GCN(2, 4, 1, 2)
    loss = NodeTask(data).loss(model, data)
    for dtype in [torch.int32, torch.uint8]:
        data.y = y.to(dtype)
        assert NodeTask(data).loss(model, data) == loss


class Constant(Module):
    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, edge_index):
        return self.out


@pytest.mark.parametrize('out', [torch.ones(4), (torch.ones(4, 2), 0)])
def test_other_results_of_models(out):
    mask = torch.ones(4, dtype=torch.bool)
    y = torch.zeros(4, dtype=torch.long)
    data = graph(y=y, train_mask=mask, val_mask=mask)
    with pytest.raises(ValueError, match='a score of each class'):
        NodeTask(data).loss(Constant(out), data)


def large_graph():
    data = make_graph()
    data.edge_index = data.edge_index[:, :300]
    return data


def check(task, model):
    """Compare losses and gradients with those of an accelerated task."""
    other = copy.deepcopy(model)
    fast = task.accelerate(model)
    loss, expected = fast.loss(model, None), task.loss(other, task.data)
    torch.testing.assert_close(loss, expected)
    grads = [
        torch.autograd.grad(x, list(net.parameters()))
        for x, net in [(loss, model), (expected, other)]
    ]
    torch.testing.assert_close(*grads)
    assert fast.evaluate(model) == task.evaluate(other)
    model.train()
    return fast


def test_accelerate():
    torch.manual_seed(0)
    task, model = NodeTask(large_graph()), GCN(CHANNELS, 8, 2, 3).double()
    fast = check(task, model)
    assert fast.batches()[0].num_nodes < 0.5 * NUM_NODES
    mask = torch.arange(task.data.num_edges) % 3 > 0
    check(task.pruned(mask), GCN(CHANNELS, 8, 2, 3).double())


def test_graphs_that_are_not_static():
    torch.manual_seed(0)
    data = large_graph()
    data.x.requires_grad_()
    task, model = NodeTask(data), GCN(CHANNELS, 8, 2, 3).double()
    assert task.accelerate(model) is task
    task.loss(model, data).backward()
    assert data.x.grad.abs().sum() > 0


@pytest.mark.parametrize('fraction', [0.5, 1.0])
def test_distilled_tasks_train_on_all_nodes(fraction):
    torch.manual_seed(0)
    model = GCN(CHANNELS, 8, 2, 3).double()
    task = NodeTask(large_graph()).distilled(copy.deepcopy(model), fraction)
    fast = check(task, model)
    assert fast.nodes is None and fast.target_rows is None


@pytest.mark.parametrize('prune', [False, True])
def test_distilled_tasks_train_on_samples(monkeypatch, prune):
    monkeypatch.setattr(module, 'MIN_TARGETS', 20)
    torch.manual_seed(0)
    model = GCN(CHANNELS, 8, 2, 3).double()
    task = NodeTask(large_graph())
    task = task.distilled(copy.deepcopy(model), 0.75, torch.Generator())
    if prune:
        task = task.pruned(torch.arange(task.data.num_edges) % 3 > 0)
    fast = task.accelerate(model)
    assert fast.batches()[0].num_nodes < 0.5 * NUM_NODES
    assert task.sample.numel() == 20

    data, mask = task.data, task.data.train_mask
    out = copy.deepcopy(model).train()(data.x, data.edge_index)
    loss = 0.25 * F.cross_entropy(out[mask], data.y[mask])
    targets = task.targets[task.sample]
    loss = loss + 0.75 * F.cross_entropy(out[task.sample], targets)
    model.train()
    torch.testing.assert_close(fast.loss(model, None), loss)


def test_all_targets_are_used_where_that_is_free(monkeypatch):
    monkeypatch.setattr(module, 'MIN_TARGETS', 280)
    torch.manual_seed(0)
    model = GCN(CHANNELS, 8, 2, 3, norm='graph_norm').double()
    task = NodeTask(make_graph())
    task = task.distilled(copy.deepcopy(model), 0.75, torch.Generator())
    fast = task.accelerate(model)
    assert fast.batches()[0].num_nodes == NUM_NODES
    assert fast.nodes is None and fast.target_rows is None
