import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from torch_geometric_ext.ops import herding
from torch_geometric_ext.transforms import ShareComputationTrees
from torch_geometric_ext.transforms.mirage.class_labels import class_labels
from torch_geometric_ext.transforms.mirage.select_graphs import (
    RESOLUTION,
    herded_graphs,
    herding_order,
    herding_rows,
    interleave,
    random_order,
    tree_features,
)


def order_of(shared, group):
    return herding_order(herding_rows(shared, group), group)


def share(graphs, num_layers=1):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Few graphs share little.
        return ShareComputationTrees(num_layers)(graphs)


def make_graph(labels, edges=()):
    edge_index = torch.tensor(edges).long().view(-1, 2).t()
    return Data(x=torch.tensor(labels).view(-1, 1), edge_index=edge_index)


@given(group=st.lists(st.integers(0, 3)))
def test_interleave(group):
    group = torch.tensor(group).long()
    rank = [group[:i].eq(y).sum().item() for i, y in enumerate(group)]
    expected = sorted(range(len(rank)), key=lambda i: (rank[i], i))
    assert interleave(group).tolist() == expected


@given(seed=st.integers(0, 1000))
def test_random_order(seed):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(3, (30,), generator=generator)
    order = random_order(group, generator)
    assert order.sort().values.tolist() == list(range(30))
    size = int(group.bincount(minlength=3).min())
    turns = group[order][: 3 * size].view(size, 3).sort().values
    assert turns.eq(torch.arange(3)).all()


def test_tree_features():
    # Isolated nodes of labels 0 (twice) and 1, and an edge between both:
    graphs = [
        make_graph([0, 0, 1]),
        make_graph([0, 1], [(0, 1), (1, 0)]),
        make_graph([]),
    ]
    ptr, item, value = tree_features(share(graphs))
    assert ptr.tolist() == [0, 4, 8, 8]
    # Depth 1 first: two without neighbors, two with. Then two labels.
    rows = [
        dict(zip(i.tolist(), v.tolist()))
        for i, v in zip(item.split([4, 4]), value.split([4, 4]))
    ]
    norm = math.sqrt((math.log(3) ** 2 + 3 * math.log(2) ** 2) / 3)
    one, two = (round(RESOLUTION * math.log(1 + n) / norm) for n in [1, 2])
    assert sorted(rows[0].values()) == [one, one, two, two]
    assert sorted(rows[1].values()) == 4 * [one]
    assert rows[0].keys() & rows[1].keys() == {4, 5}
    for depth in range(2):  # The same norm for each depth.
        part = [v for r in rows for k, v in r.items() if (k > 3) == depth]
        square = sum(v**2 for v in part) / 3
        assert square == pytest.approx(RESOLUTION**2, rel=1e-2)


def test_herding_order_prefers_what_is_typical():
    usual = [make_graph([0, 0, 1]) for _ in range(5)]
    odd = [make_graph([2, 2, 2, 2, 2, 2])]
    graphs = odd + usual + odd + usual + usual
    group = torch.tensor([0] * 6 + [1] * 11)
    order = order_of(share(graphs), group)
    assert order.sort().values.tolist() == list(range(17))
    assert order[:4].tolist() == [1, 7, 2, 8]
    # One graph of six is odd: of the first three, none or one may be.
    first = order[group[order] == 0].tolist()
    assert first.index(0) == 2


def test_herding_order_does_not_depend_on_the_order_of_classes():
    generator = torch.Generator().manual_seed(0)
    graphs = [
        make_graph(torch.randint(4, (5,), generator=generator).tolist())
        for _ in range(40)
    ]
    group = torch.randint(2, (40,), generator=generator)
    order = order_of(share(graphs), group)
    other = order_of(share(graphs), 1 - group)
    for y in range(2):
        kept = order[group[order] == y]
        assert torch.equal(kept, other[group[other] == y])


def test_herded_graphs_are_prefixes_of_one_order():
    generator = torch.Generator().manual_seed(0)
    graphs = [
        make_graph(torch.randint(9, (5,), generator=generator).tolist())
        for _ in range(400)
    ]
    for i, graph in enumerate(graphs):
        graph.y, graph.number = torch.tensor([int(i < 100)]), torch.tensor([i])
    shared = share(graphs)
    classes = class_labels(shared.graph_attrs['y'])
    order = order_of(shared, classes.group)
    prefixes = list(herded_graphs(shared, classes, num_graphs=60))
    assert [len(x) for x in prefixes] == [128, 228, 356, 400]
    for prefix in prefixes:
        number = prefix.graph_attrs['number']
        assert torch.equal(number, order[: len(prefix)])
    first = next(herded_graphs(shared, classes, num_graphs=300))
    assert len(first) == 100 + 221  # A tenth more of the largest class.


def test_herding_order_of_very_different_sizes():
    # Exact scores overflow 64 bits, but typical graphs come first:
    large = make_graph(30 * torch.arange(2000).tolist())
    shared = share([make_graph([0])] * 9000 + [large])
    group = torch.zeros(9001).long()
    with pytest.raises(ValueError, match="'value' needs smaller values"):
        herding(*tree_features(shared), torch.tensor([0, 9001]))
    order = order_of(shared, group)
    assert order.sort().values.tolist() == list(range(9001))
    assert order[0] == 0 and order[-1] != 9000


def test_herding_order_does_not_depend_on_threads():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1000, (300_000, 1), generator=generator)
    edges = torch.empty(2, 0).long()
    graphs = [Data(x=part, edge_index=edges) for part in x.split(3000)]
    shared, group = share(graphs), torch.zeros(100).long()
    default = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = tree_features(shared)
        for num_threads in [2, 3]:
            torch.set_num_threads(num_threads)
            for out, other in zip(tree_features(shared), expected):
                assert torch.equal(out, other)
        assert order_of(shared, group).numel() == 100
    finally:
        torch.set_num_threads(default)
