import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devices import withDevice
from torch_geometric_ext.ops import computation_tree_ids


def random_graph(seed, max_nodes=8, max_edges=12, directed=True):
    generator = torch.Generator().manual_seed(seed)

    def randint(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    num_nodes = int(randint(max_nodes)) + 1
    edge_index = randint(num_nodes, 2, int(randint(max_edges + 1)))
    edge_attr = randint(2, edge_index.size(1))
    if not directed:
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        edge_attr = edge_attr.repeat(2)
    return randint(2, num_nodes, 2), edge_index, edge_attr


def explicit_tree(node, depth, x, edge_index, edge_attr):
    """Return a tree as nested tuples with sorted children."""
    children = []
    if depth > 0:
        for edge in (edge_index[1] == node).nonzero().view(-1).tolist():
            source = int(edge_index[0, edge])
            child = explicit_tree(source, depth - 1, x, edge_index, edge_attr)
            label = 0 if edge_attr is None else int(edge_attr[edge])
            children.append((label, child))
    return tuple(x[node].tolist()), tuple(sorted(children))


def same_groups(ids, others):
    pairs = set(zip(ids, others))
    return len(pairs) == len(set(ids)) == len(set(others))


@given(
    num_layers=st.integers(0, 4),
    directed=st.booleans(),
    edge_labels=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_ids_are_isomorphism_classes(num_layers, directed, edge_labels, seed):
    x, edge_index, edge_attr = random_graph(seed, directed=directed)
    edge_attr = edge_attr if edge_labels else None
    out = computation_tree_ids(x, edge_index, num_layers, edge_attr)
    assert len(out.ids) == len(out.representative) == num_layers + 1
    for depth, (ids, first) in enumerate(zip(out.ids, out.representative)):
        trees = [
            explicit_tree(node, depth, x, edge_index, edge_attr)
            for node in range(x.size(0))
        ]
        assert same_groups(ids.tolist(), trees)
        assert ids.unique().tolist() == list(range(first.numel()))
        assert torch.equal(ids[first], torch.arange(first.numel()))
    for below, ids in zip(out.ids, out.ids[1:]):  # Ranks refine ranks.
        assert bool((below[ids.argsort()].diff() >= 0).all())


@given(num_layers=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_ids_under_permutation(num_layers, seed):
    x, edge_index, edge_attr = random_graph(seed)
    expected = computation_tree_ids(x, edge_index, num_layers, edge_attr)
    generator = torch.Generator().manual_seed(seed)
    node = torch.randperm(x.size(0), generator=generator)
    edge = torch.randperm(edge_index.size(1), generator=generator)
    out = computation_tree_ids(
        x[node.argsort()],
        node[edge_index[:, edge]],
        num_layers,
        edge_attr[edge],
    )
    for ids, other in zip(out.ids, expected.ids):
        assert torch.equal(ids[node], other)
    for level, other in zip(out.levels, expected.levels):
        assert all(map(torch.equal, level, other))


def test_levels_are_trees_in_terms_of_the_level_below(ext):
    x, edge_index, edge_attr = random_graph(3)
    out = computation_tree_ids(x, edge_index, 3, edge_attr)
    labels = edge_attr[out.edge_label_index].tolist()
    for depth, level in enumerate(out.levels, 1):
        for tree, node in enumerate(out.representative[depth].tolist()):
            assert level.own[tree] == out.ids[depth - 1][node]
            part = slice(int(level.ptr[tree]), int(level.ptr[tree + 1]))
            edges = level.edge_label[part].tolist()
            found = sorted(zip(edges, level.child[part].tolist()))
            incoming = (edge_index[1] == node).nonzero().view(-1)
            expected = sorted(
                (
                    labels.index(int(edge_attr[edge])),
                    int(out.ids[depth - 1][edge_index[0, edge]]),
                )
                for edge in incoming
            )
            assert found == expected


def test_digits_are_not_glued(ext):
    # A star with children 1 and 12, and one with children 11 and 2:
    x = torch.tensor([0, 1, 12, 0, 11, 2])
    edge_index = torch.tensor([[1, 2, 4, 5], [0, 0, 3, 3]])
    out = computation_tree_ids(x, edge_index, 1)
    assert out.ids[1][0] != out.ids[1][3]


def test_degree_labels(ext):
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    out = computation_tree_ids(
        None, edge_index, 1, degree_labels=True, num_nodes=4
    )
    assert out.ids[0].tolist() == [1, 2, 1, 0]


def test_errors(ext):
    x, edge_index = torch.zeros(3, 1), torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="'x' .* is missing .*degree_labels"):
        computation_tree_ids(None, edge_index, 1)
    with pytest.raises(ValueError, match=r"'edge_index' .* shape \[2, E\]"):
        computation_tree_ids(x, edge_index.float(), 1)
    with pytest.raises(ValueError, match=r"'edge_index' .* in \[0, 2\)"):
        computation_tree_ids(x[:2], edge_index, 1)
    with pytest.raises(ValueError, match="'edge_attr' needs one row for each"):
        computation_tree_ids(x, edge_index, 1, torch.zeros(3))
    with pytest.raises(ValueError, match=r"'num_layers' .* in \[0, 1000\]"):
        computation_tree_ids(x, edge_index, -1)
    with pytest.raises(ValueError, match="'x' is continuous.*Discretize"):
        computation_tree_ids(torch.rand(50, 2), edge_index, 1)
    ring = torch.stack([torch.arange(50), torch.arange(50).roll(1)])
    with pytest.raises(ValueError, match="'edge_attr' is continuous"):
        computation_tree_ids(torch.zeros(50, 1), ring, 1, torch.rand(50, 2))
    few = torch.tensor([[0.5], [1.5], [0.5]])  # Not continuous.
    assert computation_tree_ids(few, edge_index, 0).ids[0].tolist() == [
        0,
        1,
        0,
    ]
    with pytest.raises(ValueError, match="'x' needs to have one or two"):
        computation_tree_ids(torch.zeros(3, 2, 2), edge_index, 1)


@withDevice
def test_device(device):
    x, edge_index, edge_attr = random_graph(5)
    expected = computation_tree_ids(x, edge_index, 2, edge_attr)
    args = x.to(device), edge_index.to(device), 2, edge_attr.to(device)
    out = computation_tree_ids(*args)
    for ids, other in zip(out.ids, expected.ids):
        assert ids.device == args[0].device
        assert torch.equal(ids.cpu(), other)
