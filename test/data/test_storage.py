import copy

import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import FakeDataset, FakeHeteroDataset

from torch_geometric_ext.data.storage import (
    add_graph_attr,
    from_tensors,
    get_graphs,
    graph_bytes,
    read_storage,
    to_tensors,
)


def make_dataset(**kwargs):
    graphs = [Data(num_nodes=n, **kwargs) for n in [2, 0, 3]]
    out = InMemoryDataset()
    out.data, out.slices = InMemoryDataset.collate(graphs)
    return out


def test_read_storage():
    dataset = FakeDataset(num_graphs=5)
    storage = read_storage(dataset[[4, 1, 1]])
    assert storage.positions.tolist() == [4, 1, 1]
    sizes = [data.num_nodes for data in dataset]
    assert storage.num_nodes.tolist() == sizes
    assert storage.data.num_nodes == sum(sizes)


def test_read_storage_without_features():
    storage = read_storage(make_dataset())
    assert storage.num_nodes.tolist() == [2, 0, 3]
    dataset = FakeDataset(num_graphs=5, num_channels=0)
    sizes = [data.num_nodes for data in dataset]
    assert read_storage(dataset).num_nodes.tolist() == sizes


def test_other_data_sets_have_no_storage():
    class Zeros(FakeDataset):
        def get(self, idx):
            return Data(x=torch.zeros(1, 1))

    for dataset in [
        Zeros(num_graphs=2),
        FakeHeteroDataset(num_graphs=2),
        FakeDataset(num_graphs=1),  # Collation keeps a single graph as it is.
        list(FakeDataset(num_graphs=2)),
        InMemoryDataset(),
    ]:
        assert read_storage(dataset) is None


def test_from_tensors():
    dataset = FakeDataset(num_graphs=4)
    out = from_tensors(**to_tensors(dataset))
    for data, other in zip(out, dataset):
        assert data.to_dict().keys() == other.to_dict().keys()
        assert all(torch.equal(data[key], other[key]) for key in data.keys())


def test_add_graph_attr():
    dataset = FakeDataset(num_graphs=4)
    before = copy.copy(dataset[2])
    out = add_graph_attr(dataset, 'idx', torch.arange(4))
    for _ in range(2):  # The second time from the cache of data objects.
        items = get_graphs(out, [2, 0, 2])
        assert [int(data.idx) for data in items] == [2, 0, 2]
        assert torch.equal(items[0].x, before.x)
        items[0].idx = 7  # Items are copies.
    assert 'idx' not in dataset[2]


def test_graph_bytes():
    dataset = FakeDataset(num_graphs=4)
    assert graph_bytes(dataset).tolist() == [
        sum(x.numel() * x.element_size() for x in data.to_dict().values())
        for data in dataset
    ]
    y = torch.zeros(1, 5, dtype=torch.half)
    assert graph_bytes(make_dataset(y=y)).tolist() == [10, 10, 10]
