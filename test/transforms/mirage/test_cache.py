import copy
import inspect

import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.transforms import (
    Discretize,
    MirageCondense,
    ShareComputationTrees,
)
from torch_geometric_ext.transforms.mirage import mirage_condense
from torch_geometric_ext.transforms.mirage.cache import fingerprint


def make_graphs(num_graphs=12):
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for i in range(num_graphs):
        edge_index = torch.randint(4, (2, 6), generator=generator)
        edge_attr = torch.randint(2, (6, 1), generator=generator)
        graphs.append(
            Data(
                x=torch.randint(2, (4, 1), generator=generator).float(),
                edge_index=edge_index,
                edge_attr=edge_attr,
                y=torch.tensor([i % 2]),
            )
        )
    return graphs


def assert_equal(out, expected):
    assert len(out) == len(expected)
    for data, other in zip(out, expected):
        assert data.to_dict().keys() == other.to_dict().keys()
        assert all(torch.equal(data[key], other[key]) for key in data.keys())


@pytest.mark.parametrize('selection', ['herding', 'patterns'])
@pytest.mark.parametrize('shared', [False, True])
def test_cache(selection, shared, tmp_path):
    graphs, root = make_graphs(), tmp_path / 'a' / 'b'
    if shared:
        graphs = ShareComputationTrees(1)(graphs)
    kwargs = dict(num_graphs=6, selection=selection)
    condense = MirageCondense(1, **kwargs)
    expected = condense(graphs, root)
    assert_equal(expected, MirageCondense(1, **kwargs)(graphs))
    assert [path.suffix for path in root.iterdir()] == ['.pt']
    other = MirageCondense(1, **kwargs, log=True)
    out = other(graphs, root=str(root))
    assert isinstance(out, InMemoryDataset)
    assert_equal(out, expected)
    assert_equal(out[[1, 0]], [expected[1], expected[0]])
    assert out.num_classes == 2
    assert other.report() == condense.report()  # With the same seconds.
    assert str(other.report()) == str(condense.report())
    assert_equal(other(graphs, root, force_reload=True), expected)
    assert other.report().seconds != condense.report().seconds


def test_cache_of_shared_trees(tmp_path):
    condense, other = (
        MirageCondense(1, num_graphs=6, share=True) for _ in range(2)
    )
    expected = condense(make_graphs(), tmp_path)
    out = other(make_graphs(), tmp_path)
    assert other.report() == condense.report()
    assert str(out) == str(expected) and out.report() == expected.report()
    assert torch.equal(out.tree, expected.tree)
    for key, value in expected.graph_attrs.items():
        assert torch.equal(out.graph_attrs[key], value)


def test_other_settings_have_other_files(tmp_path):
    graphs = make_graphs()
    patterns = dict(selection='patterns', num_graphs=4)
    settings = [
        dict(num_graphs=4),
        dict(num_graphs=5),
        dict(num_bytes=3000),
        dict(ratio=0.5),
        dict(num_graphs=4, gcn_norm=True),
        dict(num_graphs=4, share=True),
        dict(num_graphs=4, self_loops='remove'),
        dict(num_graphs=4, edge_attr=False),
        dict(num_graphs=4, degree_labels=True),
        dict(num_graphs=4, selection='random'),
        dict(num_graphs=4, selection='random', seed=1),
        patterns,
        dict(patterns, closed=True),
        dict(patterns, exclusive=True),
        dict(patterns, max_patterns=20),
        dict(selection='patterns', min_support=2),
        dict(selection='patterns', min_support={0: 2, 1: 2}),
        dict(selection='patterns', min_support={0: 2, 1: 3}),
        dict(num_graphs=4, discretizer=Discretize(num_bins=2)),
        dict(num_graphs=4, discretizer=Discretize(num_bins=3)),
        dict(num_graphs=4, discretizer=Discretize('kmeans', num_bins=3)),
    ]
    for i, kwargs in enumerate(settings, 1):
        MirageCondense(1, **kwargs)(graphs, tmp_path)
        assert len(list(tmp_path.iterdir())) == i, kwargs
    MirageCondense(2, num_graphs=4)(graphs, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(settings) + 1


def test_other_data_has_other_files(tmp_path):
    graphs = make_graphs()
    condense = MirageCondense(1, num_graphs=4)
    expected = condense(graphs, tmp_path)
    storage = InMemoryDataset()
    storage._data, storage.slices = InMemoryDataset.collate(graphs)
    for same in [tuple(graphs), storage, storage[:], IndexedDataset(graphs)]:
        assert_equal(condense(same, tmp_path), expected)
        assert len(list(tmp_path.iterdir())) == 1
    for i, (key, value) in enumerate(
        [
            ('x', graphs[3].x + 1),
            ('x', graphs[3].x[:, [0, 0]]),
            ('y', 1 - graphs[3].y),
            ('edge_attr', graphs[3].edge_attr.flip(0)),
            ('edge_index', graphs[3].edge_index.flip(0)),
        ],
        start=2,
    ):
        others = list(map(copy.copy, graphs))
        others[3][key] = value
        if value.dim() == 2 and value.size(1) == 2:
            for data in others:
                data.x = data.x[:, [0] * value.size(1)]
        condense(others, tmp_path)
        assert len(list(tmp_path.iterdir())) == i
    condense(graphs[::-1], tmp_path)
    condense(graphs[:-1], tmp_path)
    assert len(list(tmp_path.iterdir())) == i + 2


def test_discretizer_of_a_cached_data_set(tmp_path):
    graphs = make_graphs()
    generator = torch.Generator().manual_seed(0)
    for data in graphs:
        data.x = torch.rand(4, 1, generator=generator)
    first, second = (Discretize(num_bins=3) for _ in range(2))
    condense = MirageCondense(1, num_graphs=4, discretizer=first)
    expected = condense(graphs, tmp_path)
    report = condense.report()
    assert_equal(condense(graphs, tmp_path), expected)
    other = MirageCondense(1, num_graphs=4, discretizer=second)
    assert_equal(other(graphs, tmp_path), expected)
    assert condense.report() == other.report() == report
    # The discretizer of the cached result is fitted, too:
    assert torch.equal(second(graphs[0]).x, first(graphs[0]).x)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('content', ['text', {'x': 1}, None, 'cut', 'other'])
def test_file_that_is_not_usable(content, tmp_path):
    graphs = make_graphs()
    condense = MirageCondense(1, num_graphs=4)
    expected = condense(graphs, tmp_path)
    (path,) = tmp_path.iterdir()
    if content == 'text':
        path.write_text(content)
    elif content == 'cut':
        path.write_bytes(path.read_bytes()[:-100])
    elif content == 'other':
        ShareComputationTrees(1)(graphs).save(path)
    else:
        torch.save(content, path)
    with pytest.warns(UserWarning, match="_.*.pt' is broken and is wri"):
        assert_equal(condense(graphs, tmp_path), expected)
    assert_equal(condense(graphs, tmp_path), expected)  # Without a warning.


def test_other_versions_have_other_files(tmp_path, monkeypatch):
    graphs, condense = make_graphs(), MirageCondense(1, num_graphs=4)
    condense(graphs, tmp_path)
    monkeypatch.setattr(mirage_condense, '__version__', '99.0')
    condense(graphs, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_key_holds_all_settings(monkeypatch):
    settings = set(inspect.signature(MirageCondense).parameters)
    settings -= {'log', 'distributed'}
    keys = []

    def save_key(root, dataset, key):
        keys.extend(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(mirage_condense, 'cache_path', save_key)
    with pytest.raises(KeyboardInterrupt):
        MirageCondense(1, num_graphs=4)(make_graphs(), 'root')
    assert sorted(keys) == sorted({*settings, 'version'})


def test_bad_input_writes_nothing(tmp_path):
    graphs = make_graphs()
    with pytest.raises(ValueError, match="'num_bytes'"):
        MirageCondense(1, num_bytes=1)(graphs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fingerprint():
    graphs = make_graphs()
    expected = fingerprint(graphs)
    assert fingerprint(graphs) == expected and len(expected) == 16
    assert fingerprint(graphs, {'a': 1, 'b': 2}) == fingerprint(
        graphs, {'b': 2, 'a': 1}
    )
    keys = [fingerprint(graphs, x) for x in [1, 1.0, '1', (1,), None, {1: 1}]]
    assert len({*keys, expected}) == 7
    # Equal collated values with other boundaries:
    for data in graphs[:2]:
        data.other = torch.ones(1)
    first = fingerprint(graphs[:2])
    graphs[0].other, graphs[1].other = torch.ones(2), torch.ones(0)
    assert fingerprint(graphs[:2]) != first


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half, torch.bool])
def test_fingerprint_of_types(dtype):
    tensors = [torch.tensor([0, 1]), torch.tensor([1, 1])]
    keys = [fingerprint([], x.to(dtype)) for x in tensors]
    keys += [fingerprint([], x.to(dtype).t()) for x in tensors]
    assert len(set(keys)) == 2
    assert fingerprint([], torch.tensor(1, dtype=dtype)) not in keys
