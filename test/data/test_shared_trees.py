import copy
import dataclasses
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from devices import withDevice
from torch_geometric_ext.data import SharedTreeBatch, SharedTrees
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.transforms import ShareComputationTrees

FILES = Path(__file__).with_name('files')


@pytest.fixture
def shared():
    # Two stars of three leaves and a path of two, twice:
    star = torch.tensor([[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]])
    path = torch.tensor([[0, 1], [1, 0]])
    graphs = []
    for edge_index, num_nodes in [(star, 4), (path, 2)]:
        data = Data(
            x=torch.ones(num_nodes, 1),
            edge_index=edge_index,
            edge_attr=torch.zeros(edge_index.size(1), 2),
            y=torch.tensor([num_nodes]),
        )
        graphs += [data, data]
    return ShareComputationTrees(num_layers=2)(graphs)


def assert_same_trees(out, expected):
    assert out.num_trees == expected.num_trees
    for level, other in zip(out.levels, expected.levels):
        assert all(map(torch.equal, level, other))
    for name in ['node_attrs', 'edge_attrs', 'graph_attrs']:
        table, other = getattr(out, name), getattr(expected, name)
        assert table.keys() == other.keys()
        assert all(torch.equal(table[key], other[key]) for key in table)
    for name in ['graph_ptr', 'tree', 'count']:
        assert torch.equal(getattr(out, name), getattr(expected, name))
    assert out.report() == expected.report()


def test_shared_trees(shared):
    # Depth 1: leaf or end, center. Depth 2: end of a path, leaf, center.
    assert str(shared) == 'SharedTrees(4, num_layers=2, num_trees=[1, 2, 3])'
    assert len(shared) == 4
    assert shared.graph_attrs['y'].tolist() == [4, 4, 2, 2]
    assert shared.graph_ptr.tolist() == [0, 2, 4, 5, 6]
    assert shared.tree.tolist() == [1, 2, 1, 2, 0, 0]
    assert shared.count.tolist() == [3, 1, 3, 1, 2, 2]
    level = shared.levels[-1]
    assert level.ptr.tolist() == [0, 1, 2, 5]
    assert level.child.tolist() == [0, 1, 0, 0, 0]


def test_report(shared):
    report = shared.report()
    assert (report.num_graphs, report.num_nodes, report.num_edges) == (
        4,
        12,
        16,
    )
    assert report.num_trees == [1, 2, 3]
    assert report.num_shared_edges == 4 + 5
    assert report.node_ratio == 12 / 6
    assert report.tree_ratio == 24 / 6
    # x: 4 bytes a node. Edges: 16 bytes and 2 features of 4. y: 8 bytes.
    assert report.num_bytes == 12 * 4 + 16 * 24 + 4 * 8
    lines = str(report).splitlines()
    assert lines[1].split() == ['nodes', '12', '6', '2.0x']
    assert lines[2].split() == ['edges', '16', '9', '1.8x']
    assert lines[-1] == (
        'distinct trees: 1 (depth 0), 2 (depth 1), 3 (depth 2)'
    )
    assert len({len(line) for line in lines[:-1]}) == 1


def test_save_and_load(shared, tmp_path):
    shared.save(tmp_path / 'trees.pt')
    assert_same_trees(SharedTrees.load(tmp_path / 'trees.pt'), shared)
    assert [path.name for path in tmp_path.iterdir()] == ['trees.pt']


def test_files_and_pickles_of_version_0_1(shared):
    assert_same_trees(SharedTrees.load(FILES / 'shared_trees.pt'), shared)
    content = (FILES / 'shared_trees.pickle').read_bytes()
    assert_same_trees(pickle.loads(content), shared)


def test_copies(shared):
    assert_same_trees(SharedTrees.from_dict(shared.to_dict()), shared)
    assert_same_trees(pickle.loads(pickle.dumps(shared)), shared)
    assert_same_trees(copy.deepcopy(shared), shared)


def test_arguments_are_keywords(shared):
    with pytest.raises(TypeError, match='positional'):
        SharedTrees(*shared.to_dict().values())


def test_load_something_else(tmp_path):
    path = tmp_path / 'other.pt'
    for content in [{'x': torch.ones(1)}, torch.ones(1), None]:
        torch.save(content, path)
        with pytest.raises(ValueError, match="does not hold 'SharedTrees'"):
            SharedTrees.load(path)
    path.write_text('text')
    with pytest.raises(ValueError, match="does not hold 'SharedTrees'"):
        SharedTrees.load(path)
    with pytest.raises(FileNotFoundError):
        SharedTrees.load(tmp_path / 'missing.pt')


def test_save_into_missing_folder(shared, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/a' does"):
        shared.save(tmp_path / 'a' / 'trees.pt')


def test_comparison(shared):
    assert shared == shared and shared in [shared]
    assert shared != dataclasses.replace(shared)


@withDevice
def test_batch(shared, device):
    batch = next(iter(SharedTreeLoader(shared, batch_size=2))).to(device)
    assert isinstance(batch, SharedTreeBatch)
    assert batch.num_graphs == batch.batch_size == 2
    assert batch.num_layers == 2
    assert (
        batch.root.device
        == batch.x.device
        == torch.empty(0, device=device).device
    )
    assert batch.validate()
    with pytest.raises(AttributeError, match="no 'batch'.*RootAggregation"):
        batch.batch  # noqa: B018


@pytest.mark.parametrize('edge_attr', [False, True])
@pytest.mark.parametrize('index', [[0], [5, 1, 1], [3, 0, 7, 2], []])
def test_index_select(edge_attr, index):
    generator = torch.Generator().manual_seed(len(index))
    graphs = [
        Data(
            x=torch.randint(3, (n, 1), generator=generator),
            edge_index=torch.randint(n, (2, 2 * n), generator=generator),
            edge_attr=torch.randint(3, (2 * n,), generator=generator),
            y=torch.tensor([n]),
        )
        for n in range(1, 9)
    ]
    transform = ShareComputationTrees(2, edge_attr=edge_attr)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Random graphs share little.
        shared = transform(graphs)
        expected = transform([graphs[i] for i in index or [0]])
    out = shared.index_select(torch.tensor(index).long())
    if not index:
        assert out.num_trees == [0, 0, 0] and len(out) == 0
        return
    # Bytes of the plain graphs and self-loops are those of all graphs:
    assert_same_trees(
        out,
        dataclasses.replace(expected, num_bytes=out.num_bytes),
    )


@pytest.mark.parametrize(
    'idx, expected',
    [
        (slice(None, 2), [0, 1]),
        (slice(None, None, -2), [3, 1]),
        (slice(3, 1), []),
        ([3, 0, 0], [3, 0, 0]),
        ([], []),
        ([False, True, True, False], [1, 2]),
        (np.array([2, -1]), [2, 3]),
        (torch.tensor([True, False, False, True]), [0, 3]),
    ],
)
def test_getitem(shared, idx, expected):
    out = shared.index_select(torch.tensor(expected, dtype=torch.long))
    assert_same_trees(shared[idx], out)


@pytest.mark.parametrize('idx', [0, torch.tensor(0), None])
def test_getitem_is_no_graph(shared, idx):
    with pytest.raises(TypeError, match="'idx' of 'SharedTrees' .*Loader'"):
        shared[idx]


def test_index_select_mask(shared):
    mask = torch.tensor([False, True, False, True])
    out = shared.index_select(mask)
    assert_same_trees(out, shared.index_select(mask.nonzero().view(-1)))
    assert out.num_bytes == shared.num_bytes // 2
    with pytest.raises(IndexError):
        shared.index_select(torch.tensor([4]))
