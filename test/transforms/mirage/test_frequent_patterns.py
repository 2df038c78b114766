from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from torch_geometric_ext.transforms import MirageCondense


def make_graphs(sets, labels):
    """Graphs of isolated nodes: each label is a tree."""
    return [
        Data(
            x=torch.tensor([[i] for i in sorted(items)] * 2).view(-1, 1),
            edge_index=torch.empty(2, 0).long(),
            y=torch.tensor([y]),
        )
        for items, y in zip(sets, labels)
    ]


def mine(graphs, **kwargs):
    condense = MirageCondense(1, selection='patterns', **kwargs)
    return [
        (int(data.y), sorted(data.x.view(-1).tolist()), float(data.weight))
        for data in condense(graphs)
    ]


SETS = [{0, 1}, {0, 1, 2}, {0, 3}, {0, 1}, {2}, {2, 3}]
LABELS = [0, 0, 0, 0, 1, 1]


def brute_force(sets, min_support, closed):
    items = sorted(set().union(*sets))
    support = {}
    for size in range(1, len(items) + 1):
        for pattern in combinations(items, size):
            num = sum(set(pattern) <= other for other in sets)
            if num >= min_support:
                support[pattern] = num
    if closed:
        support = {
            a: num
            for a, num in support.items()
            if not any(set(a) < set(b) and support[b] == num for b in support)
        }
    order = sorted(support, key=lambda x: (-support[x], len(x), x))
    return [(list(pattern), support[pattern]) for pattern in order]


@settings(max_examples=20)
@given(
    sets=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=4),
    closed=st.booleans(),
    min_support=st.integers(1, 2),
)
def test_patterns_by_brute_force(sets, closed, min_support):
    labels = [0, 0, 1, 1] + (len(sets) - 4) * [0]
    sets[1], sets[3] = sets[0], sets[2]
    out = mine(
        make_graphs(sets, labels), min_support=min_support, closed=closed
    )
    for y in [0, 1]:
        rows = [other for other, label in zip(sets, labels) if label == y]
        expected = brute_force(rows, min_support, closed)
        assert [row[1] for row in out if row[0] == y] == [
            pattern for pattern, _ in expected
        ]
        total = sum(num for _, num in expected)
        fraction = len(rows) / len(sets)
        weight = torch.tensor([row[2] for row in out if row[0] == y])
        other = torch.tensor([fraction * num / total for _, num in expected])
        assert torch.allclose(weight, other)


def test_order_and_weights():
    out = mine(make_graphs(SETS, LABELS), num_graphs=4)
    # {0} is in four graphs, {1} in three. Class 1: {2} in two, {3} in one.
    assert [row[:2] for row in out] == [
        (0, [0]),
        (1, [2]),
        (0, [1]),
        (1, [3]),
    ]
    weight = torch.tensor([row[2] for row in out])
    expected = [4 / 6 * 4 / 7, 2 / 6 * 2 / 3, 4 / 6 * 3 / 7, 2 / 6 * 1 / 3]
    assert torch.allclose(weight, torch.tensor(expected))


@pytest.mark.parametrize(
    'min_support, num_patterns',
    [
        (1, [9, 3]),
        (2, [3, 1]),
        (1.0, [1, 1]),
        (0.5, [3, 3]),
        (0.51, [3, 1]),
        ({0: 3, 1: 0.5}, [3, 3]),
        ({1: 1, 0: 1.0}, [1, 3]),
    ],
)
def test_min_support(min_support, num_patterns):
    out = mine(make_graphs(SETS, LABELS), min_support=min_support)
    labels = [row[0] for row in out]
    assert [labels.count(y) for y in [0, 1]] == num_patterns


def test_fraction_that_is_hit_exactly():
    # 0.07 * 100 is slightly more than 7:
    graphs = make_graphs(7 * [{0}] + 93 * [{1}], 100 * [0])
    assert len(mine(graphs, min_support=0.07)) == 2
    graphs = make_graphs(6 * [{0}] + 94 * [{1}], 100 * [0])
    assert len(mine(graphs, min_support=0.07)) == 1


def test_max_patterns():
    graphs = make_graphs(SETS, LABELS)
    everything = mine(graphs, min_support=1)
    out = mine(graphs, min_support=1, max_patterns=2)
    assert [row[:2] for row in out] == [row[:2] for row in everything[:4]]


def test_exclusive():
    sets = [{0, 1}, {0, 1}, {0, 2}, {0, 2}]
    graphs = make_graphs(sets, [0, 0, 1, 1])
    out = mine(graphs, min_support=2)
    assert [row[1] for row in out] == [[0], [0], [1], [2], [0, 1], [0, 2]]
    out = mine(graphs, min_support=2, exclusive=True)
    assert [row[:2] for row in out] == [
        (0, [1]),
        (1, [2]),
        (0, [0, 1]),
        (1, [0, 2]),
    ]
    weight = torch.tensor([row[2] for row in out])
    assert torch.allclose(weight, torch.full((4,), 0.25))
    match = 'class 0 has no frequent .*=2 graphs of 2: lower it, or unset exc'
    with pytest.raises(ValueError, match=match):
        mine(make_graphs(4 * [{0}], [0, 0, 1, 1]), min_support=2, exclusive=1)


def test_repeated_trees_count_once():
    # All labels appear twice in each graph:
    out = MirageCondense(1, selection='patterns', min_support=1)(
        make_graphs([{5}], [0])
    )
    assert len(out) == 1 and out[0].root_count.tolist() == [1]


def test_class_without_patterns():
    graphs = make_graphs([{0}, {1}, {2}, {2}], [0, 0, 5, 5])
    match = r'class 0 has no frequent .*min_support=2 graphs of 2: lower it\)'
    with pytest.raises(ValueError, match=match):
        mine(graphs, min_support=2)
    with pytest.raises(ValueError, match='class 5 .*min_support=9 graphs of'):
        mine(graphs, min_support={0: 1, 5: 9})


@pytest.mark.parametrize(
    'min_support, match',
    [
        (0, r'fraction in \(0, 1\] or a positive number .* \(got 0\)'),
        (-1, r'\(got -1\)'),
        (0.0, r'\(got 0.0\)'),
        (1.5, r'\(got 1.5\)'),
        (float('nan'), r'\(got nan\)'),
        ({0: 1, 1: 0}, r'\(got 0\)'),
        ({0: 1}, r'one value for each of the classes \[0, 1\] \(got \[0\]\)'),
        ({0: 1, 1: 1, 2: 1}, r'\(got \[0, 1, 2\]\)'),
        ({}, r'\(got \[\]\)'),
    ],
)
def test_invalid_support(min_support, match):
    with pytest.raises(ValueError, match=f"'min_support' needs .*{match}"):
        mine(make_graphs(SETS, LABELS), min_support=min_support)
