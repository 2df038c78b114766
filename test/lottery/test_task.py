import torch
from torch_geometric.data import Data
from torch_geometric.loader import CachedLoader, DataLoader
from torch_geometric.nn import Linear

from torch_geometric_ext.lottery.task import CustomTask

MASK = torch.tensor([True, False, True, True])


def graph(**kwargs):
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])
    return Data(x=torch.randn(4, 2), edge_index=edge_index, **kwargs)


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


def test_first_batch_leaves_caches_of_loaders_complete():
    loader = CachedLoader(DataLoader([graph()] * 3))
    task = CustomTask(loader, unused, unused)
    assert task.first_batch().num_nodes == 4
    assert len(list(loader)) == 3


def unused(*args):
    raise AssertionError
