import math

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data, InMemoryDataset

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.data.graph_labels import (
    read_labels,
    read_stored_labels,
    to_classes,
)


class Graphs(InMemoryDataset):
    """Graphs in memory."""

    def __init__(self, graphs, transform=None):
        super().__init__(None, transform)
        self.data, self.slices = self.collate(graphs)


@pytest.fixture
def no_loading(monkeypatch):
    """Fails if a graph is loaded."""

    def get(dataset, idx):
        raise AssertionError(f'loads graph {idx}')

    monkeypatch.setattr(InMemoryDataset, 'get', get)


def make_graphs(labels):
    return [
        Data(x=torch.ones(i % 3 + 1, 1), y=label)
        for i, label in enumerate(labels)
    ]


LABELS = [2, 0, 1, 1, 2, 0, 0]
ROWS = [torch.tensor([label]) for label in LABELS]


def relabel(graph):
    graph.y = 1 - graph.y
    return graph


def test_in_memory(no_loading):
    dataset = Graphs(make_graphs(ROWS))
    for read in [read_stored_labels, read_labels]:
        assert read(dataset).tolist() == LABELS
        assert read(IndexedDataset(dataset)).tolist() == LABELS
        assert read(dataset[2:5]).tolist() == LABELS[2:5]
        assert read(dataset[[5, 1, 1]]).tolist() == [0, 0, 0]
        assert read(dataset[2:][1:3]).tolist() == LABELS[3:5]


@pytest.mark.parametrize('convert', [list, tuple, np.array, torch.tensor])
def test_subset(convert, no_loading):
    dataset = Graphs(make_graphs(ROWS))
    subset = Subset(dataset[1:], convert([4, 0, 1, 1]))
    for read in [read_stored_labels, read_labels]:
        assert read(subset).tolist() == [0, 0, 1, 1]
        assert read(Subset(subset, [1, 2])).tolist() == [0, 1]
        assert read(IndexedDataset(subset)).tolist() == [0, 0, 1, 1]
    subset = Subset(make_graphs(ROWS), convert([0, 2]))
    for read in [read_stored_labels, read_labels]:
        assert read(subset).tolist() == [[2], [1]]


def test_transform_is_applied():
    dataset = Graphs(make_graphs(ROWS), transform=relabel)
    for data in [dataset, Subset(dataset, range(7)), IndexedDataset(dataset)]:
        assert read_stored_labels(data) is None
        expected = [1 - label for label in LABELS]
        assert read_labels(data).view(-1).tolist() == expected
    assert to_classes(read_labels(dataset)).tolist() == [
        2 - label for label in LABELS
    ]


def test_list_of_graphs():
    for rows in [
        LABELS,
        ROWS,
        [torch.tensor(label) for label in LABELS],
        [row.view(1, 1) for row in ROWS],
        [row.float() for row in ROWS],
    ]:
        graphs = make_graphs(rows)
        for data in [graphs, tuple(graphs), IndexedDataset(graphs)]:
            for read in [read_stored_labels, read_labels]:
                assert read(data).tolist() == [[label] for label in LABELS]
        assert to_classes(read_labels(graphs)).tolist() == LABELS


def test_stored_shapes():
    dataset = Graphs(make_graphs([row.view(1, 1) for row in ROWS]))
    assert read_stored_labels(dataset).tolist() == [[x] for x in LABELS]
    assert to_classes(read_labels(dataset)).tolist() == LABELS
    rows = [torch.rand(1, 3) for _ in range(4)]  # Several labels.
    dataset = Graphs(make_graphs(rows))
    assert torch.equal(read_labels(dataset), torch.cat(rows))
    assert to_classes(read_labels(dataset)) is None


def test_labels_of_nodes_are_no_labels_of_graphs():
    rows = [torch.zeros(i + 1) for i in range(4)]
    assert read_stored_labels(Graphs(make_graphs(rows))) is None
    assert read_labels(Graphs(make_graphs(rows))) is None
    assert read_labels(make_graphs(rows)) is None
    rows = [torch.zeros(1), torch.zeros(2), torch.zeros(0)]
    for data in [Graphs(make_graphs(rows)), make_graphs(rows)]:
        assert read_labels(data) is None
    # Of the same number in each graph:
    rows = [torch.zeros(3, dtype=torch.long) for _ in range(4)]
    for data in [Graphs(make_graphs(rows)), make_graphs(rows)]:
        assert to_classes(read_labels(data)) is None


def test_without_labels():
    graphs = [Data(x=torch.ones(2, 1)) for _ in range(3)]
    for data in [graphs, Graphs(graphs), 3, [], [1, 2]]:
        assert read_stored_labels(data) is None
        assert to_classes(read_labels(data)) is None
    graphs[0].y = torch.tensor([1])  # The others have none.
    assert read_labels(graphs) is None
    for label in ['toxic', ['toxic'], [None]]:
        assert read_labels(make_graphs([label, label])) is None


@pytest.mark.parametrize(
    'y, classes',
    [
        (torch.tensor([5, -1, 5, 9]), [1, 0, 1, 2]),
        (torch.tensor([[5], [-1], [5]]), [1, 0, 1]),
        (torch.tensor([1.0, 0.0, 1.0]), [1, 0, 1]),
        (torch.tensor([[1.0], [0.0]]).half(), [1, 0]),
        (torch.tensor([True, False]), [1, 0]),
        (torch.tensor([3, 3], dtype=torch.uint8), [0, 0]),
        (torch.tensor([7]), [0]),
        (torch.tensor([1.0, math.nan]), None),
        (torch.tensor([1.0, math.inf]), None),
        (torch.tensor([0.5, 1.0]), None),
        (torch.tensor([[0, 1], [1, 0]]), None),
        (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), None),
        (torch.tensor([]), None),
        (torch.empty(0, 1), None),
        (None, None),
    ],
)
def test_to_classes(y, classes):
    out = to_classes(y)
    if classes is None:
        assert out is None
    else:
        assert out.dtype == torch.int64 and out.tolist() == classes
