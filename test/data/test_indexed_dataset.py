import math
import pickle

import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data, Dataset, InMemoryDataset, OnDiskDataset
from torch_geometric.datasets import FakeDataset, FakeHeteroDataset
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Constant

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset


class FileLikeDataset(Dataset):
    """Returns the same objects at every access."""

    def __init__(self, data_list):
        super().__init__()
        self.data_list = data_list

    def len(self):
        return len(self.data_list)

    def get(self, idx):
        return self.data_list[idx]


def make_graphs(num_graphs=10):
    # The feature of a graph is its number:
    return [
        Data(
            x=torch.full((2, 1), float(i)), edge_index=torch.tensor([[0], [1]])
        )
        for i in range(num_graphs)
    ]


def in_memory(tmp_path):
    dataset = InMemoryDataset()
    dataset.data, dataset.slices = dataset.collate(make_graphs())
    return dataset


def on_disk(tmp_path):
    dataset = OnDiskDataset(str(tmp_path))
    dataset.extend(make_graphs())
    return dataset


DATASETS = {
    'list': (lambda _: make_graphs(), None),
    'in memory': (in_memory, None),
    'in memory, sliced': (lambda path: in_memory(path)[7:1:-2], [7, 5, 3]),
    'in memory, repeated': (
        lambda path: in_memory(path)[[4, 4, 2]],
        [4, 4, 2],
    ),
    'on disk': (on_disk, None),
    'on disk, sliced': (lambda path: on_disk(path)[[6, 1, 3]], [6, 1, 3]),
    'file-like': (lambda _: FileLikeDataset(make_graphs()), None),
    'subset': (lambda path: Subset(in_memory(path), [8, 0, 5]), [8, 0, 5]),
    'subset of list': (lambda _: Subset(make_graphs(), [8, 0, 5]), [8, 0, 5]),
    'indexed': (
        lambda path: IndexedDataset(in_memory(path))[5:],
        range(5, 10),
    ),
}


@pytest.mark.parametrize('name', DATASETS)
def test_indexed_dataset(name, tmp_path):
    make, identity = DATASETS[name]
    dataset = make(tmp_path)
    identity = list(range(10) if identity is None else identity)
    indexed = IndexedDataset(dataset)
    assert len(indexed) == len(dataset) == len(identity)

    for i, data in enumerate(indexed):
        assert data.graph_idx.dtype == torch.long
        assert data.graph_idx.tolist() == [i]
        assert data.x[0, 0] == identity[i]
    assert indexed[-1].graph_idx.tolist() == [len(identity) - 1]
    assert indexed[torch.tensor(1)].graph_idx.tolist() == [1]
    if name != 'indexed':
        assert 'graph_idx' not in dataset[0]

    order = [2, 0, 1, 2]
    for num_workers in [0, 2]:
        loader = DataLoader(indexed, 4, sampler=order, num_workers=num_workers)
        (batch,) = loader
        assert batch.graph_idx.tolist() == order
        assert batch.x[::2, 0].tolist() == [identity[i] for i in order]

    mask = torch.zeros(len(indexed), dtype=torch.bool)
    mask[1:3] = True
    for idx in [
        slice(1, 3),
        [1, 2],
        torch.tensor([1, 2]),
        mask,
        mask.numpy(),
        mask.tolist(),
    ]:
        part = indexed[idx]
        assert isinstance(part, IndexedDataset) and len(part) == 2
        assert [data.graph_idx.item() for data in part] == [0, 1]
        assert [data.x[0, 0] for data in part] == identity[1:3]
    assert len(indexed[:1][[True]]) == 1

    if 'disk' not in name:  # Database connections cannot be pickled.
        other = pickle.loads(pickle.dumps(indexed))
        assert other[1].graph_idx.tolist() == [1]
        assert other[1].x[0, 0] == identity[1]


def test_indexed_dataset_of_one_graph():
    dataset = FakeDataset(num_graphs=1)
    assert IndexedDataset(dataset)[0].graph_idx.tolist() == [0]


def test_indexed_dataset_with_transform():
    def forget(data):  # Returns an object without `graph_idx`.
        return Data(x=data.x + 1, num_nodes=data.num_nodes)

    for transform in [Constant(), forget]:
        dataset = FakeDataset(num_graphs=4, transform=transform)
        indexed = IndexedDataset(dataset)
        for i in range(4):
            assert indexed[i].graph_idx.tolist() == [i]
            assert torch.equal(indexed[i].x, dataset[i].x)

    # A transform that is set later is applied, too:
    dataset = FakeDataset(num_graphs=4)
    indexed = IndexedDataset(dataset)
    dataset.transform = forget
    assert torch.equal(indexed[2].x, dataset[2].x)


def test_indexed_dataset_with_hetero_data():
    dataset = FakeHeteroDataset(num_graphs=4)
    loader = DataLoader(IndexedDataset(dataset), batch_size=3)
    assert [b.graph_idx.tolist() for b in loader] == [[0, 1, 2], [3]]


@withDevice
def test_indexed_dataset_device(device):
    loader = DataLoader(IndexedDataset(make_graphs(3)), batch_size=2)
    batches = [batch.to(device) for batch in loader]
    assert [b.graph_idx.tolist() for b in batches] == [[0, 1], [2]]
    assert all(b.graph_idx.device == device for b in batches)


def test_indexed_dataset_attributes():
    dataset = FakeDataset(num_graphs=8, num_classes=3)
    indexed = IndexedDataset(Subset(dataset, [1, 2]))
    assert str(indexed) == 'IndexedDataset(Subset(2))'
    assert str(IndexedDataset(dataset)) == 'IndexedDataset(FakeDataset(8))'
    assert indexed.num_classes == dataset.num_classes
    assert indexed.num_features == dataset.num_features
    with pytest.raises(AttributeError, match="no attribute 'shuffle'"):
        indexed.shuffle()


@pytest.mark.parametrize(
    'labels, num_classes',
    [
        ([0, 2, 1], 3),
        ([True, False, False], 2),
        ([torch.tensor([1]), torch.tensor([0]), torch.tensor([1])], 2),
        ([torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([0.0])], 2),
        (list(torch.zeros(3, 1, 5)), 5),  # Several labels per graph.
    ],
)
def test_indexed_dataset_attributes_of_a_list(labels, num_classes):
    graphs = make_graphs(3)
    for graph, label in zip(graphs, labels):
        graph.y = label
    for dataset in [graphs, tuple(graphs), Subset(graphs, [1])]:
        indexed = IndexedDataset(dataset)
        assert indexed.num_classes == num_classes
        assert indexed.num_features == graphs[0].num_features


def test_indexed_dataset_without_classes():
    graphs = make_graphs(2)
    graphs[0].y = torch.tensor([1.0])
    for y, got in [(None, 'none'), (0.5, 'such as 0.5'), (math.inf, 'inf')]:
        graphs[1].y = y
        with pytest.raises(AttributeError, match=f"'num_classes' .*{got}"):
            IndexedDataset(graphs).num_classes  # noqa: B018
    assert not hasattr(IndexedDataset([]), 'num_classes')
    assert not hasattr(IndexedDataset([]), 'num_features')
    assert not hasattr(IndexedDataset(graphs), 'num_colors')


def test_indexed_dataset_errors():
    with pytest.raises(TypeError, match="'dataset' of 'IndexedDataset' needs"):
        IndexedDataset(iter([]))
    with pytest.raises(TypeError, match="item of <class 'int'>"):
        IndexedDataset([1, 2])[0]
    with pytest.raises(IndexError, match=r'\[-2, 2\) \(got 2\)'):
        IndexedDataset(make_graphs(2))[2]
