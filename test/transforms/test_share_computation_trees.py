import copy
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset
from torch_geometric.data import (
    Data,
    HeteroData,
    InMemoryDataset,
    OnDiskDataset,
)
from torch_geometric.datasets import FakeDataset

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.data.merge_trees import merge_trees
from torch_geometric_ext.data.trees_to_graphs import trees_to_graphs
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.ops import computation_tree_ids
from torch_geometric_ext.transforms import ShareComputationTrees


def make_graphs(num_graphs=30, seed=0, edge_attr=True):
    generator = torch.Generator().manual_seed(seed)

    def randint(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    graphs = []
    for i in range(num_graphs):
        num_nodes = 1 + int(randint(6))
        data = Data(
            x=randint(2, num_nodes, 2),
            edge_index=randint(num_nodes, 2, int(randint(8))),
            y=torch.tensor([i % 3]),
        )
        if edge_attr:
            data.edge_attr = randint(2, data.num_edges, 1)
        graphs.append(data)
    return graphs


def share(dataset, num_layers=2, known=None, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return ShareComputationTrees(num_layers, **kwargs)(dataset, known)


def assert_same_trees(out, expected, graphs=True):
    assert out.num_trees == expected.num_trees
    for level, other in zip(out.levels, expected.levels):
        assert all(map(torch.equal, level, other))
    names = ['node_attrs', 'edge_attrs'] + graphs * ['graph_attrs']
    for name in names:
        table, other = getattr(out, name), getattr(expected, name)
        assert table.keys() == other.keys()
        assert all(torch.equal(table[key], other[key]) for key in table)
    if graphs:
        for name in ['graph_ptr', 'tree', 'count']:
            assert torch.equal(getattr(out, name), getattr(expected, name))
        assert out.report() == expected.report()


class Database(OnDiskDataset):
    def __init__(self, root, graphs):
        schema = {
            key: dict(dtype=value.dtype, size=(-1, *value.shape[1:]))
            for key, value in graphs[0].to_dict().items()
        }
        schema['edge_index'] = dict(dtype=torch.long, size=(2, -1))
        super().__init__(str(root), schema=schema)
        if len(self) == 0:
            self.extend(graphs)

    def serialize(self, data):
        return data.to_dict()

    def deserialize(self, data):
        return Data.from_dict(data)


def test_share_computation_trees(ext):
    graphs = make_graphs()
    before = copy.deepcopy(graphs)
    transform = ShareComputationTrees(num_layers=2)
    assert str(transform) == (
        'ShareComputationTrees(num_layers=2, gcn_norm=False, '
        "self_loops='keep', edge_attr=True)"
    )
    shared = share(graphs)
    # Counts are those of the ids of all nodes:
    offset, rows = 0, shared.graph_ptr.tolist()
    x = torch.cat([data.x for data in graphs])
    edge_index, edge_attr = [], torch.cat([data.edge_attr for data in graphs])
    for data in graphs:
        edge_index.append(data.edge_index + offset)
        offset += data.num_nodes
    edge_index = torch.cat(edge_index, dim=1)
    trees = computation_tree_ids(x, edge_index, 2, edge_attr)
    ids = trees.ids[-1].split([data.num_nodes for data in graphs])
    for i, expected in enumerate(ids):
        part = slice(rows[i], rows[i + 1])
        expected, count = expected.unique(return_counts=True)
        assert shared.tree[part].tolist() == expected.tolist()
        assert shared.count[part].tolist() == count.tolist()
    for level, other in zip(shared.levels, trees.levels):
        assert all(a.tolist() == b.tolist() for a, b in zip(level, other))
    first = trees.representative[0]
    assert torch.equal(shared.node_attrs['x'], x[first])
    for data, other in zip(graphs, before):  # The input is unchanged.
        assert data.to_dict().keys() == other.to_dict().keys()
        assert all(torch.equal(data[key], other[key]) for key in data.keys())


@given(
    seed=st.integers(0, 10**6),
    chunk_size=st.integers(1, 12),
    gcn_norm=st.booleans(),
    edge_attr=st.booleans(),
)
def test_parts_and_order_do_not_matter(seed, chunk_size, gcn_norm, edge_attr):
    graphs = make_graphs(12, seed, edge_attr)
    kwargs = dict(gcn_norm=gcn_norm)
    expected = share(graphs, **kwargs)
    out = share(graphs, chunk_size=chunk_size, **kwargs)
    assert_same_trees(out, expected)

    generator = torch.Generator().manual_seed(seed)
    perm = torch.randperm(12, generator=generator).tolist()
    out = share([graphs[i] for i in perm], chunk_size=chunk_size, **kwargs)
    assert_same_trees(out, expected, graphs=False)
    for i, j in enumerate(perm):
        found = slice(int(out.graph_ptr[i]), int(out.graph_ptr[i + 1]))
        other = slice(
            int(expected.graph_ptr[j]), int(expected.graph_ptr[j + 1])
        )
        assert torch.equal(out.tree[found], expected.tree[other])
        assert torch.equal(out.count[found], expected.count[other])


@given(
    seed=st.integers(0, 10**6),
    gcn_norm=st.booleans(),
    edge_attr=st.booleans(),
)
def test_known_trees_keep_their_ids(seed, gcn_norm, edge_attr):
    graphs = make_graphs(20, seed, edge_attr)
    known = share(graphs[:8], gcn_norm=gcn_norm)
    everything = share(graphs, gcn_norm=gcn_norm)
    out = share(graphs[8:], known=known, gcn_norm=gcn_norm)
    assert len(out) == 12 and len(known) == 8
    assert out.num_trees == everything.num_trees
    for level, other in zip(out.levels, known.levels):
        num_known, num_children = other.own.numel(), other.child.numel()
        assert torch.equal(level.own[:num_known], other.own)
        assert torch.equal(level.ptr[: num_known + 1], other.ptr)
        assert torch.equal(level.child[:num_children], other.child)
    for key, value in known.node_attrs.items():
        assert torch.equal(out.node_attrs[key][: value.size(0)], value)
    # The same graphs have the same trees with the same ids:
    again = share(graphs[:8], known=known, gcn_norm=gcn_norm)
    assert_same_trees(again, known)
    # New trees do not depend on the order of graphs:
    other = share(graphs[:7:-1], known=known, gcn_norm=gcn_norm)
    assert_same_trees(other, out, graphs=False)


def test_kinds_of_data_sets(tmp_path):
    graphs = make_graphs(25)
    expected = share(graphs)
    assert_same_trees(share(IndexedDataset(graphs)), expected)
    assert_same_trees(share(Subset(graphs, range(25))), expected)
    database = Database(tmp_path, graphs)
    assert_same_trees(share(database, chunk_size=7), expected)

    fake = FakeDataset(num_graphs=25, num_channels=0)
    fake.transform = None
    for dataset in [fake, fake[3:17], fake[[5, 1, 1]], fake.shuffle()]:
        items = share(list(dataset), degree_labels=True)
        for same in [
            dataset,
            IndexedDataset(dataset),
            Subset(dataset, range(len(dataset))),
            Subset(Subset(dataset, range(len(dataset))), range(len(dataset))),
        ]:
            assert_same_trees(share(same, degree_labels=True), items)
    with_transform = copy.copy(fake)
    with_transform.transform = lambda data: data.update(
        {'x': torch.zeros(data.num_nodes, 1)}
    )
    assert share(with_transform).num_trees[0] == 1


def test_degree_labels():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    data = Data(edge_index=edge_index, num_nodes=4)
    shared = ShareComputationTrees(1, degree_labels=True)(4 * [data])
    assert shared.node_attrs['x'].tolist() == [[0], [1], [2]]


def test_self_loops():
    edge_index = torch.tensor([[0, 1, 1], [1, 0, 1]])
    data = Data(x=torch.zeros(2, 1), edge_index=edge_index)
    kept = share(8 * [data], 1)
    assert kept.has_self_loops and kept.num_trees == [1, 2]
    for kwargs in [dict(self_loops='remove'), dict(gcn_norm=True)]:
        removed = share(8 * [data], 1, **kwargs)
        assert not removed.has_self_loops
        assert removed.num_trees == [1, 1]


def test_gcn_norm_tells_degrees_of_leaves():
    # A path of three and a path of two differ at depth 1 for the ends:
    path = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    data = Data(x=torch.zeros(5, 1), edge_index=path)
    assert share(8 * [data], 1).num_trees == [1, 2]
    shared = share(8 * [data], 1, gcn_norm=True)
    assert shared.num_trees == [2, 3]
    assert shared.node_attrs['degree'].tolist() == [1, 2]


def test_several_edge_features():
    graphs = make_graphs(8)
    for data in graphs:
        data.edge_weight = torch.ones(data.num_edges)
        data.edge_type = torch.arange(data.num_edges)
    shared = share(graphs)
    assert list(shared.edge_attrs) == ['edge_attr', 'edge_weight', 'edge_type']
    sizes = {value.size(0) for value in shared.edge_attrs.values()}
    assert len(sizes) == 1
    assert share(graphs, edge_attr=False).edge_attrs == {}


def test_graphs_without_edge_index():
    x = torch.tensor([[1], [1], [2]])
    graphs = [Data(x=x) for _ in range(2)]
    other = [Data(x=x, edge_index=torch.empty(2, 0).long()) for _ in graphs]
    assert_same_trees(share(graphs), share(other))


def test_warning():
    graphs = [Data(x=torch.arange(5), edge_index=torch.empty(2, 0).long())]
    with pytest.warns(UserWarning, match='may save no time.* only 0.3 nodes'):
        ShareComputationTrees(2)(graphs)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(num_layers=0), "'num_layers' .* positive .*got 0"),
        (dict(num_layers=2.0), "'num_layers' .*got 2.0"),
        (dict(num_layers=1, self_loops='add'), "'self_loops' .*got 'add'"),
        (dict(num_layers=1, gcn_norm=True, edge_attr=True), "'edge_attr'"),
        (dict(num_layers=1, chunk_size=0), "'chunk_size' .* positive"),
        (dict(num_layers=1, distributed=True), "'distributed' .* process"),
    ],
)
def test_invalid_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ShareComputationTrees(**kwargs)


def test_invalid_data_sets():
    transform = ShareComputationTrees(1)
    data = make_graphs(1)[0]

    def graphs(**kwargs):
        other = copy.copy(data)
        for key, value in kwargs.items():
            other[key] = value
        return [other]

    with pytest.raises(TypeError, match="'dataset' .* data set of graphs"):
        transform(data)
    with pytest.raises(TypeError, match="type 'Data' .*HeteroData.* at 0"):
        transform([HeteroData()])
    with pytest.raises(ValueError, match='needs at least one graph'):
        transform([])
    with pytest.raises(ValueError, match="'x' .*'degree_labels=True'"):
        transform(graphs(x=None))
    with pytest.raises(ValueError, match="'edge_index' .*got 'adj_t'"):
        adj_t = torch.eye(data.num_nodes).to_sparse_csr()
        transform(graphs(edge_index=None, adj_t=adj_t))
    x = torch.rand(data.num_nodes, 3)
    with pytest.raises(ValueError, match="'x' contains NaN"):
        transform(graphs(x=x / 0 * 0))
    with pytest.raises(
        ValueError, match=r"'edge_index' of graph 0 .*\[0, 9\]"
    ):
        transform(graphs(edge_index=torch.tensor([[0], [9]])))
    with pytest.raises(ValueError, match="'edge_attr' needs one row"):
        transform(graphs(edge_attr=torch.zeros(99, 1)))
    with pytest.raises(ValueError, match=r"\['edge_attr'\] .* 0 and 1"):
        transform([data, *graphs(edge_attr=None)])
    with pytest.raises(ValueError, match=r"\['edge_attr'\] .* 0 and 1"):
        transform([*graphs(edge_attr=None), data])
    with pytest.raises(ValueError, match="without an attribute 'root'"):
        transform(graphs(root=torch.zeros(1)))
    empty = torch.empty(2, 0).long()
    rows = Data(x=torch.ones(2, 1).long(), edge_index=empty, num_nodes=3)
    with pytest.raises(ValueError, match="'x' .* each of 3 nodes .got 2"):
        transform([rows])
    labeled = Data(x=rows.x, edge_index=empty, y=torch.tensor([0]))
    other = Data(x=rows.x, edge_index=empty)
    for pair in [[labeled, other], [other, labeled]]:  # In other chunks.
        with pytest.raises(ValueError, match="all graphs need 'y', or none"):
            share(pair, chunk_size=1)
    big = make_graphs(3)[2]
    assert big.num_nodes > 1
    big.y = torch.zeros(big.num_nodes)
    with pytest.raises(NotImplementedError, match="'y' .* each graph"):
        transform([big])
    with pytest.raises(NotImplementedError, match="'edge_weight'"):
        weight = torch.ones(data.num_edges)
        ShareComputationTrees(1, gcn_norm=True)(graphs(edge_weight=weight))


def test_continuous_features():
    graphs = make_graphs(40)
    for data in graphs:
        data.x = torch.rand(data.num_nodes, 3)
    for chunk_size in [1, 100]:
        with pytest.raises(ValueError, match="'x' is continuous"):
            share(graphs, chunk_size=chunk_size)
        few = [copy.copy(data) for data in graphs]
        for data in few:
            data.x = (4 * data.x).round() / 4 + 0.1
            data.x = data.x[:, :1]
        share(few, chunk_size=chunk_size)


def test_edges_stay_inside_their_graph():
    graphs = make_graphs(4)
    graphs[1].edge_index = torch.tensor([[0], [graphs[1].num_nodes]])
    graphs[1].edge_attr = torch.zeros(1, 1).long()
    for chunk_size in [1, 4]:
        with pytest.raises(ValueError, match="'edge_index' of graph 1"):
            share(graphs, chunk_size=chunk_size)


def test_attributes_of_graphs():
    graphs = make_graphs(12)
    for i, data in enumerate(graphs):
        data.mol_index = torch.tensor([i])  # PyG increments such names.
        data.weight = 1 if i < 6 else 0.5
        data.pos = torch.zeros(data.num_nodes, 3)
        data.y = torch.zeros(1, 5)
        data.smiles = 'C'
    for chunk_size in [1, 5, 12]:
        attrs = share(graphs, chunk_size=chunk_size).graph_attrs
        assert set(attrs) == {'mol_index', 'weight', 'y', 'smiles'}
        assert attrs['smiles'] == 12 * ['C']
        assert attrs['mol_index'].tolist() == list(range(12))
        assert attrs['weight'].tolist() == 6 * [1] + 6 * [0.5]
        assert attrs['y'].shape == (12, 5)
    for data in graphs[6:]:
        data.y = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="'y' needs the same shape"):
        share(graphs, chunk_size=6)
    with pytest.raises(ValueError, match='same shapes .* graphs 0 to 11'):
        share(graphs)


def test_strings_of_graphs(tmp_path):
    graphs = make_graphs(12)
    names = [f'graph {i}' for i in range(12)]
    for name, data in zip(names, graphs):
        data.y = name
    stored = InMemoryDataset()
    stored.data, stored.slices = stored.collate(graphs)
    order = [5, 0, 7]
    for dataset in [graphs, stored]:
        for chunk_size in [1, 5, 12]:
            shared = share(dataset, chunk_size=chunk_size)
            assert shared.graph_attrs == {'y': names}
    subset = share(Subset(stored, order))
    assert subset.graph_attrs['y'] == [names[i] for i in order]
    selected = shared.index_select(torch.tensor(order))
    assert selected.graph_attrs == subset.graph_attrs
    loader = SharedTreeLoader(shared, batch_sampler=[order, range(12)])
    batches = [batch.to('cpu') for batch in loader]
    assert [batch.y for batch in batches] == [subset.graph_attrs['y'], names]

    path = tmp_path / 'shared.pt'
    shared.save(path)
    assert shared.load(path).graph_attrs == shared.graph_attrs
    assert trees_to_graphs(shared)[7].y == names[7]
    for data in graphs[6:]:
        data.y = torch.tensor([0])
    with pytest.raises(ValueError, match="'y' needs the same .* strings"):
        share(graphs, chunk_size=6)


@pytest.mark.parametrize('stored', [True, False])
@pytest.mark.parametrize(
    'value, match',
    [
        (torch.zeros(5), r"'key' .*one row.* 15 rows in 3 .*unsqueeze\(0\)"),
        (torch.zeros(2, 3), "'key' .*one row.* 6 rows in 3 graphs"),
        ({'a': 1}, "'key' .* needs to be a tensor, .* 'dict'"),
        (['C', 'O'], "'key' .* needs to be a tensor, .* 'list'"),
    ],
)
def test_attributes_that_belong_to_nothing(value, match, stored):
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    data = Data(x=torch.zeros(3, 1), edge_index=edge_index, key=value)
    dataset = 3 * [data]
    if stored:
        dataset = InMemoryDataset()
        dataset.data, dataset.slices = dataset.collate(3 * [data])
    with pytest.raises(ValueError, match=match):
        share(dataset)


def test_attributes_of_nodes_and_edges_are_left_out():
    graphs = make_graphs(6, edge_attr=False)
    for i, data in enumerate(graphs):
        data.edge_label = torch.ones(4)
        data.edge_label_index = torch.zeros(2, 4).long()
        data.pairs = torch.ones(5 + i)
        data.nothing = torch.empty(0)
        data.pos = torch.rand(data.num_nodes, 3)
        data.length = torch.rand(data.num_edges)
        data.ring_index = torch.zeros(2, 7 + i).long()
        data.adj_t = torch.eye(data.num_nodes).to_sparse_coo()
    for chunk_size in [1, 6]:
        shared = share(graphs, chunk_size=chunk_size)
        assert {'y'} <= set(shared.graph_attrs) <= {'y', 'pos', 'length'}


@pytest.mark.parametrize('stored', [True, False])
@pytest.mark.parametrize(
    'x, kind',
    [
        (torch.eye(2).to_sparse_coo(), 'torch.sparse_coo'),
        (torch.eye(2).to_sparse_csr(), 'torch.sparse_csr'),
        ([[1], [2]], 'list'),
    ],
)
def test_features_that_are_not_dense(x, kind, stored):
    edge_index = torch.tensor([[0, 1], [1, 0]])
    dataset = 3 * [Data(x=x, edge_index=edge_index, num_nodes=2)]
    if stored:
        graphs, dataset = dataset, InMemoryDataset()
        dataset.data, dataset.slices = dataset.collate(graphs)
    with pytest.raises(ValueError, match=f"'x' .* dense .*got '{kind}'"):
        share(dataset)


def test_order_of_attributes_does_not_matter():
    graphs = make_graphs(4)
    for i, data in enumerate(graphs):
        for key in ['ab', 'ba'][i % 2]:
            data[key] = torch.tensor([i])
    attrs = share(graphs).graph_attrs
    assert attrs['a'].tolist() == attrs['b'].tolist() == [0, 1, 2, 3]


def test_subclass_of_subset_is_asked_for_its_items():
    class Zeros(Subset):
        def __getitem__(self, idx):
            data = copy.copy(super().__getitem__(idx))
            data.x = data.x * 0
            return data

        def __getitems__(self, indices):
            return [self[idx] for idx in indices]

    dataset = FakeDataset(num_graphs=5, num_channels=4)
    assert share(Zeros(dataset, range(5))).num_trees[0] == 1


def test_result_owns_its_memory():
    graphs = make_graphs(4)
    shared = share(graphs)
    shared.graph_attrs['y'].fill_(7)
    fake = FakeDataset(num_graphs=4, num_channels=0)
    y = fake._data.y.clone()
    share(fake, degree_labels=True).graph_attrs['y'].fill_(7)
    assert torch.equal(fake._data.y, y)
    assert [int(data.y) for data in graphs] == [0, 1, 2, 0]


def test_time_is_linear_in_the_number_of_graphs(monkeypatch):
    # The first chunk has all trees; later chunks only add graphs:
    rows = []

    def merge(parts, known=None):
        rows.append(sum(part.tree.numel() for part in parts))
        return merge_trees(parts, known)

    module = 'torch_geometric_ext.transforms.share_graphs'
    monkeypatch.setattr(f'{module}.merge_trees', merge)
    graphs = 64 * make_graphs(4)
    shared = share(graphs, chunk_size=4)
    assert sum(rows) <= 8 * shared.tree.numel()  # log2(64) + 2 merges.


def test_known_of_other_settings():
    graphs = make_graphs(4)
    known = share(graphs, 2)
    with pytest.raises(TypeError, match="'known' needs to be 'SharedTrees'"):
        share(graphs, 2, known=[])
    with pytest.raises(ValueError, match="'known' .* same 'num_layers'"):
        share(graphs, 1, known=known)
    with pytest.raises(ValueError, match="'known' .* same 'gcn_norm'"):
        share(graphs, 2, known=known, gcn_norm=True)
    with pytest.raises(ValueError, match="same 'edge_attrs'"):
        share(graphs, 2, known=known, edge_attr=False)
    with pytest.raises(ValueError, match="same 'node_attrs'"):
        for data in graphs:
            data.x = data.x.float()
        share(graphs, 2, known=known)


@pytest.mark.parametrize(
    'name, num_layers, expected',
    [
        ('NCI1', 2, [37, 292, 4058]),
        ('NCI1', 3, [37, 292, 4058, 22948]),
        ('MUTAG', 2, [7, 33, 174]),
        ('PROTEINS', 2, None),
    ],
)
def test_real_data(tu_dataset, name, num_layers, expected):
    dataset = tu_dataset(name)
    shared = ShareComputationTrees(num_layers, edge_attr=False)(dataset)
    report = shared.report()
    assert report.num_nodes == dataset._data.num_nodes
    assert expected is None or shared.num_trees == expected
    ratios = {'NCI1': {2: 56.0, 3: 13.5}, 'MUTAG': {2: 31.5}}
    ratios['PROTEINS'] = {2: 4.1}
    assert round(report.tree_ratio, 1) == ratios[name][num_layers]


def test_sharing_does_not_pay(tu_dataset):
    dataset = tu_dataset('PROTEINS')
    with pytest.warns(UserWarning, match='depth 3 may save no time'):
        shared = ShareComputationTrees(3, edge_attr=False)(dataset)
    assert round(shared.report().tree_ratio, 1) == 2.3


@withDevice
@pytest.mark.parametrize('gcn_norm', [True, False])
def test_device(gcn_norm, device):
    graphs = make_graphs(10)
    expected = share(graphs, gcn_norm=gcn_norm)
    moved = [copy.copy(data).to(device) for data in graphs]
    out = share(moved, gcn_norm=gcn_norm, chunk_size=4)
    assert out.tree.device == moved[0].x.device
    assert out.tree.tolist() == expected.tree.tolist()
    assert out.num_trees == expected.num_trees


def run_rank(path):
    rank = torch.distributed.get_rank()
    shared = share(make_graphs(25), distributed=True, chunk_size=4)
    shared.save(f'{path}/{rank}.pt')
    one = share(make_graphs(1), distributed=True)  # Fewer graphs than ranks.
    assert len(one) == 1
    graphs = make_graphs(4)
    graphs[3].edge_index = torch.tensor([[9], [9]])
    graphs[3].edge_attr = graphs[0].x[:1, :1]
    # All ranks raise the error of the last rank:
    with pytest.raises(ValueError, match="'edge_index' of graph 3"):
        share(graphs, distributed=True)


def test_ranks_find_the_same_trees(run_ranks, tmp_path):
    from torch_geometric_ext.data import SharedTrees

    run_ranks(__file__)
    expected = share(make_graphs(25))
    for rank in range(2):
        out = SharedTrees.load(Path(tmp_path, f'{rank}.pt'))
        assert_same_trees(out, expected)
