import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import FakeDataset

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.data.graph_sizes import read_sizes


@pytest.mark.parametrize('mode', ['node', 'edge'])
def test_read_sizes(mode, monkeypatch):
    fake = FakeDataset(num_graphs=12)
    subset = Subset(fake[2:], [3, 0, 3])
    expected = [getattr(data, f'num_{mode}s') for data in fake]
    assert len(set(expected)) > 1
    cases = [
        (fake, expected),
        (IndexedDataset(fake[::2]), expected[::2]),
        (IndexedDataset(subset), [expected[i] for i in [5, 2, 5]]),
        ([fake[1], fake[0]], [expected[1], expected[0]]),
    ]
    for dataset, sizes in cases:
        out = read_sizes(dataset, mode)
        assert out.dtype == torch.int64
        assert out.tolist() == sizes

    # Stored graphs are not loaded:
    monkeypatch.setattr(InMemoryDataset, 'get', None)
    monkeypatch.setattr(
        'torch_geometric_ext.data.storage.InMemoryDataset.get', None
    )
    assert read_sizes(subset, mode).tolist() == [
        expected[i] for i in [5, 2, 5]
    ]


def test_read_sizes_applies_transforms():
    def double(data):
        return Data(x=torch.cat([data.x, data.x]))

    fake = FakeDataset(num_graphs=5)
    expected = [2 * data.num_nodes for data in fake]
    fake.transform = double
    assert read_sizes(fake, 'node').tolist() == expected
