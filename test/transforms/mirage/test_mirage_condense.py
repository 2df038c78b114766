import copy
import pickle
import warnings

import pytest
import torch
from torch.utils.data import Subset, WeightedRandomSampler
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.loader import DataLoader

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset, SharedTrees
from torch_geometric_ext.transforms import (
    Discretize,
    MirageCondense,
    ShareComputationTrees,
)


def make_graphs(num_graphs=24, seed=0, num_classes=2, edge_attr=True):
    generator = torch.Generator().manual_seed(seed)

    def randint(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    graphs = []
    for i in range(num_graphs):
        num_nodes = 1 + int(randint(5))
        data = Data(
            x=randint(2, num_nodes, 1),
            edge_index=randint(num_nodes, 2, int(randint(7))),
            y=torch.tensor([i % num_classes]),
        )
        if edge_attr:
            data.edge_attr = randint(2, data.num_edges, 1)
        graphs.append(data)
    return graphs


def share(graphs, num_layers=2, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Random graphs share little.
        return ShareComputationTrees(num_layers, **kwargs)(graphs)


def tensors_of(out):
    if isinstance(out, SharedTrees):
        levels = {
            f'{key}{i}': value
            for i, level in enumerate(out.levels)
            for key, value in level._asdict().items()
        }
        tables = [out.node_attrs, out.edge_attrs, out.graph_attrs, levels]
        rest = dict(ptr=out.graph_ptr, tree=out.tree, count=out.count)
        return {k: v for table in [*tables, rest] for k, v in table.items()}
    out = {f'{i}.{k}': v for i, data in enumerate(out) for k, v in data}
    return out


def assert_equal(out, expected):
    out, expected = tensors_of(out), tensors_of(expected)
    assert list(out) == list(expected)
    for key, value in out.items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key])


def num_bytes(data):
    return sum(x.numel() * x.element_size() for x in data.to_dict().values())


@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
@pytest.mark.parametrize('gcn_norm', [False, True])
def test_mirage_condense(selection, gcn_norm):
    graphs = make_graphs(num_classes=3)
    condense = MirageCondense(
        2, num_graphs=9, selection=selection, gcn_norm=gcn_norm
    )
    assert str(condense) == (
        f"MirageCondense(num_layers=2, num_graphs=9, selection='{selection}', "
        f'share=False)'
    )
    small = condense(graphs)
    assert isinstance(small, InMemoryDataset) and len(small) == 9
    for y in small.y.split(3):  # Classes take turns.
        assert y.unique().tolist() == [0, 1, 2]
    dtypes = {
        'x': torch.long,
        'edge_index': torch.long,
        'y': torch.long,
        'root_mask': torch.bool,
        'root_count': torch.long,
        'weight': torch.float,
    }
    key = 'edge_weight' if gcn_norm else 'edge_attr'
    dtypes[key] = torch.float if gcn_norm else torch.long
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for data in small:
            assert data.validate()
            assert {k: v.dtype for k, v in data} == dtypes
            assert data[key].size(0) == data.num_edges
            assert torch.equal(data.root_count > 0, data.root_mask)
    assert torch.allclose(small.weight.sum(), torch.tensor(1.0))


def test_data_set_features():
    graphs = make_graphs(30, num_classes=3)
    small = MirageCondense(2, num_graphs=7)(graphs)
    assert small.num_classes == 3 and small.num_features == 1
    assert torch.equal(small[3].x, small.get(3).x)
    assert [int(data.y) for data in small[[0, 2]]] == [0, 2]
    assert len(small[small.y == 1]) == 2
    assert_equal(small.copy(), small)
    assert_equal(small.copy([2, 1]), small[[2, 1]])
    assert_equal(pickle.loads(pickle.dumps(small)), small)
    sampler = WeightedRandomSampler(small.weight, num_samples=50)
    sizes = [
        batch.num_graphs
        for batch in DataLoader(small, batch_size=20, sampler=sampler)
    ]
    assert sizes == [20, 20, 10]
    batch = next(iter(DataLoader(small, batch_size=7)))
    assert batch.root_count.size(0) == batch.num_nodes
    # Condensed graphs cannot be condensed again:
    with pytest.raises(ValueError, match="without an attribute 'root_count'"):
        MirageCondense(2, num_graphs=3)(small)


@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
def test_weights_of_unbalanced_classes(selection):
    graphs = make_graphs(20)
    for i, data in enumerate(graphs):
        data.y = torch.tensor([4 if i == 7 else -1])
    condense = MirageCondense(2, num_graphs=6, selection=selection)
    small = condense(graphs)
    weight = small.weight
    assert torch.allclose(weight[small.y == 4].sum(), torch.tensor(0.05))
    assert torch.allclose(weight[small.y == -1].sum(), torch.tensor(0.95))
    if selection == 'patterns':
        # By descending support, in proportion to it:
        assert weight[small.y == -1].diff().max() <= 0
        return
    assert small.y.tolist() == [-1, 4, -1, -1, -1, -1] or (
        small.y.tolist() == [4, -1, -1, -1, -1, -1]
    )
    assert weight[small.y == -1].unique().numel() == 1


@pytest.mark.parametrize('share', [False, True])
@pytest.mark.parametrize('shape', [[], [1], [1, 1]])
@pytest.mark.parametrize(
    'dtype', [torch.float, torch.double, torch.uint8, torch.bool, torch.int]
)
def test_types_of_labels(dtype, shape, share):
    graphs = make_graphs(12)
    expected = MirageCondense(1, num_graphs=5, share=share)(graphs)
    for data in graphs:
        data.y = data.y.to(dtype).view(shape)
    out = MirageCondense(1, num_graphs=5, share=share)(graphs)
    y = out.graph_attrs['y'] if share else out._data.y
    assert y.dtype == dtype and list(y.shape) == [5] + shape[1:]
    y = y.view(-1).long().tolist()
    assert y == [0, 1, 0, 1, 0]
    out, expected = tensors_of(out), tensors_of(expected)
    for key, value in out.items():
        assert key.endswith('y') or torch.equal(value, expected[key])


@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
@pytest.mark.parametrize('gcn_norm', [False, True])
def test_graphs_without_edges_or_nodes(selection, gcn_norm):
    graphs = [
        Data(x=torch.zeros(n, 1), edge_index=torch.empty(2, 0).long(), y=0)
        for n in [0, 1, 3, 0]
    ]
    condense = MirageCondense(
        3, num_graphs=4, selection=selection, gcn_norm=gcn_norm
    )
    small = condense(graphs)
    if selection == 'patterns':
        assert len(small) == 1 and small[0].root_count.tolist() == [1]
    else:
        counts = [data.root_count.tolist() for data in small]
        assert sorted(counts) == [[], [], [1], [3]]
    assert all(data.validate() for data in small)
    assert all(data.num_edges == gcn_norm * data.num_nodes for data in small)
    assert condense.report().classes[0].coverage == 1
    # All graphs are empty:
    if selection != 'patterns':
        small = condense([graphs[0], graphs[3]])
        assert [data.num_nodes for data in small] == [0, 0]
        assert condense.report().classes[0].coverage == 0
    else:
        with pytest.raises(ValueError, match='class 0 has no frequent patt'):
            condense([graphs[0], graphs[3]])


def test_input_stays_as_it_is():
    graphs = make_graphs()
    storage = InMemoryDataset()
    storage._data, storage.slices = InMemoryDataset.collate(graphs)
    before, kept = copy.deepcopy(graphs), copy.deepcopy(storage)
    shared = share(graphs)
    old = copy.deepcopy(shared)
    for selection in ['herding', 'random', 'patterns']:
        for gcn_norm in [False, True]:
            condense = MirageCondense(
                2, ratio=0.9, selection=selection, gcn_norm=gcn_norm
            )
            condense(graphs)
            condense(storage)
        MirageCondense(2, ratio=0.9, selection=selection, share=True)(shared)
    assert_equal(graphs, before)
    assert_equal(storage, kept)
    assert_equal(shared, old)


@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
@pytest.mark.parametrize('share_trees', [False, True])
def test_kinds_of_data_sets(selection, share_trees):
    graphs = make_graphs(25)
    kwargs = dict(num_graphs=12, selection=selection, share=share_trees)
    expected = MirageCondense(2, **kwargs)(graphs)
    storage = InMemoryDataset()
    storage._data, storage.slices = InMemoryDataset.collate(graphs)
    for dataset in [
        graphs,  # Once more.
        tuple(graphs),
        storage,
        IndexedDataset(graphs),
        Subset(graphs + graphs[:3], range(25)),
        Subset(storage, torch.arange(25).tolist()),
        share(graphs),
        share(graphs, chunk_size=4),
    ]:
        assert_equal(MirageCondense(2, **kwargs)(dataset), expected)


@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
def test_threads_do_not_matter(selection):
    graphs = make_graphs(400, num_classes=4)
    condense = MirageCondense(2, num_graphs=99, selection=selection)
    default = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = condense(graphs)
        torch.set_num_threads(3)
        assert_equal(condense(graphs), expected)
    finally:
        torch.set_num_threads(default)


def test_seed():
    graphs = make_graphs(40)
    kwargs = dict(num_graphs=20, selection='random')
    out = MirageCondense(1, **kwargs)(graphs)
    assert_equal(MirageCondense(1, **kwargs, seed=0)(graphs), out)
    other = MirageCondense(1, **kwargs, seed=1)(graphs)
    assert out._data.x.shape != other._data.x.shape


@pytest.mark.parametrize('edge_attr', [None, False, True])
def test_edge_attributes(edge_attr):
    graphs = make_graphs()
    condense = MirageCondense(2, num_graphs=4, edge_attr=edge_attr)
    small = condense(graphs)
    assert ('edge_attr' in small._data) == (edge_attr is not False)


def test_degree_labels():
    graphs = make_graphs()
    for data in graphs:
        data.num_nodes = data.num_nodes
        del data.x
    small = MirageCondense(1, num_graphs=24, degree_labels=True)(graphs)
    assert small.num_features == 1
    for data in small:
        index = data.edge_index[1]
        degree = index.bincount(minlength=data.num_nodes)
        assert torch.equal(degree[data.root_mask], data.x[data.root_mask, 0])


def test_discretizer():
    generator = torch.Generator().manual_seed(0)
    graphs = make_graphs(60)
    for data in graphs:
        data.x = torch.rand(data.num_nodes, 1, generator=generator)
    discretize = Discretize('quantile', num_bins=2)
    condense = MirageCondense(1, num_graphs=8, discretizer=discretize)
    small = condense(graphs)
    assert small._data.x.unique().numel() == 2 and discretize.fitted
    expected = MirageCondense(1, num_graphs=8)(list(map(discretize, graphs)))
    assert_equal(small, expected)


def test_many_classes():
    graphs = make_graphs(1200, num_classes=1000)
    small = MirageCondense(1, num_graphs=1000)(graphs)
    assert small.y.tolist() == list(range(1000))
    assert small.weight[:200].eq(small.weight[0]).all()
    assert small.weight[200:].eq(small.weight[0] / 2).all()
    assert torch.allclose(small.weight.sum(), torch.tensor(1.0))
    condense = MirageCondense(1, num_graphs=1001, selection='patterns')
    assert len(condense(graphs)) == 1001
    with pytest.raises(ValueError, match="'num_graphs' .* of 1000 classes"):
        MirageCondense(1, num_graphs=999)(graphs)


def test_large_counts():
    data = make_graphs(1)[0]
    data.x = torch.ones(200_000, 1).long()
    small = MirageCondense(1, num_graphs=2)([data, data])
    assert small[0].root_count.sum() == 200_000
    assert small[0].num_nodes < 20


def test_copies():
    graphs = make_graphs()
    condense = MirageCondense(
        1, min_support={0: 3, 1: 0.5}, closed=True, selection='patterns'
    )
    expected = condense(graphs)
    for other in [
        copy.deepcopy(condense),
        pickle.loads(pickle.dumps(condense)),
    ]:
        assert (
            str(other)
            == str(condense)
            == (
                'MirageCondense(num_layers=1, min_support={0: 3, 1: 0.5}, '
                "selection='patterns', share=False)"
            )
        )
        assert other.report() == condense.report()
        assert_equal(other(graphs), expected)


def test_log(capfd):
    MirageCondense(1, num_graphs=2)(make_graphs())
    assert capfd.readouterr().err == ''
    MirageCondense(1, num_graphs=2, log=True)(make_graphs())
    assert 'Computation trees: 100%' in capfd.readouterr().err


@withDevice
@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
@pytest.mark.parametrize('kwargs', [{}, {'share': True}, {'gcn_norm': True}])
def test_mirage_condense_on_device(selection, kwargs, device, tmp_path):
    graphs = make_graphs()
    condense = MirageCondense(2, num_bytes=900, selection=selection, **kwargs)
    expected = condense(graphs)
    report = condense.report()
    out = condense([copy.copy(data).to(device) for data in graphs])
    assert condense.report().classes == report.classes
    assert condense.report().num_file_bytes > 0
    out, expected = tensors_of(out), tensors_of(expected)
    assert list(out) == list(expected)
    for key, value in out.items():
        assert value.device == torch.empty(0, device=device).device
        assert torch.equal(value.cpu(), expected[key])


@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
def test_real_data(tu_dataset, selection):
    dataset = tu_dataset('MUTAG')
    condense = MirageCondense(2, ratio=0.1, selection=selection)
    small = condense(dataset)
    report = condense.report()
    assert report.num_bytes == num_bytes(dataset._data)
    assert report.num_condensed_bytes == sum(map(num_bytes, small))
    assert 0.09 < report.ratio <= 0.1
    assert small.y.unique().tolist() == [0, 1]
    assert small.num_features == dataset.num_features
    assert [row.num_graphs for row in report.classes] == [63, 125]
    if selection == 'herding':
        assert min(row.coverage for row in report.classes) > 0.6


@pytest.mark.parametrize('share_trees', [True, False])
def test_strings_of_graphs(share_trees, tmp_path):
    graphs = make_graphs()
    for i, data in enumerate(graphs):
        data.smiles = f'graph {i}'
    kwargs = dict(num_layers=1, num_bytes=2000, share=share_trees)
    condense = MirageCondense(**kwargs)
    out = condense(graphs, root=tmp_path)
    assert condense.report().num_condensed_bytes <= 2000
    loaded = MirageCondense(**kwargs)(graphs, root=tmp_path)
    for small in [out, loaded]:
        if share_trees:
            smiles, y = small.graph_attrs['smiles'], small.graph_attrs['y']
        else:
            smiles, y = zip(*((data.smiles, data.y) for data in small))
        assert len(smiles) == len(small) > 2
        for name, label in zip(smiles, y):
            assert int(label) == int(name.split()[1]) % 2
    assert len(list(tmp_path.iterdir())) == 1
    graphs[0].smiles = 'other'
    MirageCondense(**kwargs)(graphs, root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
