import math

import pytest
import torch
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
    data = graph(y=torch.arange(4) % 2, train_mask=mask, val_mask=mask)
    with pytest.raises(ValueError, match='a score of each class'):
        NodeTask(data).loss(Constant(out), data)
