from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import withDevice
from torch_geometric_ext.utils import temporal_random_walks

# Edges as (src, dst, t), with repeated edges, a self-loop and equal times:
EDGES = [
    (0, 1, 2),
    (0, 1, 5),
    (0, 2, 2),
    (1, 2, 5),
    (1, 2, 6),
    (1, 0, 3),
    (2, 2, 7),
    (2, 3, 7),
    (2, 0, 6),
    (2, 0, 1),
]


def unpack(edges):
    return torch.tensor(edges, dtype=torch.long).view(-1, 3).unbind(dim=1)


def probabilities(edges, num_nodes, length, start, undirected, strict):
    """Return the probability of each walk by enumeration."""
    if undirected:
        edges = edges + [(j, i, t) for i, j, t in edges]
    out = Counter()

    def extend(walk, options, prob):
        if len(walk) == length or len(options) == 0:
            out[tuple(walk) + (-1,) * (length - len(walk))] += prob
            return
        for _, node, t in options:
            later = [
                (i, j, s)
                for i, j, s in edges
                if i == node and (s > t or (not strict and s == t))
            ]
            extend([*walk, node], later, prob / len(options))

    for i in range(num_nodes):
        options = [edge for edge in edges if edge[0] == i]
        if start == 'node':
            extend([i], options, 1 / num_nodes)
        elif len(options) > 0:
            extend([i], options, len(options) / len(edges))
    return out


@pytest.mark.parametrize('start', ['edge', 'node'])
@pytest.mark.parametrize('undirected', [False, True])
@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('length', [1, 2, 4])
def test_temporal_random_walks_distribution(start, undirected, strict, length):
    expected = probabilities(EDGES, 5, length, start, undirected, strict)
    assert sum(expected.values()) == pytest.approx(1)
    walks = temporal_random_walks(
        *unpack(EDGES),
        walk_length=length,
        walks_per_node=4000,
        start=start,
        undirected=undirected,
        strict=strict,
        num_nodes=5,
    )
    assert walks.size() == (20_000, length) and walks.dtype == torch.long
    count = Counter(map(tuple, walks.tolist()))
    assert set(count) <= set(expected)  # Only walks along valid edges.
    # Pearson's statistic, whose mean is the number of degrees of freedom:
    chi2 = sum(
        (count[walk] - 20_000 * prob) ** 2 / (20_000 * prob)
        for walk, prob in expected.items()
    )
    dof = len(expected) - 1
    assert chi2 < dof + 5 * (2 * dof) ** 0.5 + 1e-9


@settings(max_examples=50, deadline=None)
@given(
    edges=st.lists(
        st.tuples(
            st.integers(0, 5), st.integers(0, 5), st.integers(-(2**40), 2**40)
        ),
        max_size=12,
        unique_by=lambda edge: edge[:2],  # Nodes tell the edges of a walk.
    ),
    strict=st.booleans(),
    seed=st.integers(0, 100),
)
def test_temporal_random_walks_end_where_no_edge_follows(edges, strict, seed):
    walks = temporal_random_walks(
        *unpack(edges),
        walk_length=5,
        walks_per_node=3,
        strict=strict,
        num_nodes=6,
        seed=seed,
    )
    time = {(i, j): t for i, j, t in edges}
    for row, walk in enumerate(walks.tolist()):
        assert walk[0] == row // 3
        now = -(2**50)
        for i, j in zip(walk, walk[1:]):
            later = [
                dst
                for (src, dst), t in time.items()
                if src == i and (t > now or (not strict and t == now))
            ]
            if j == -1:
                assert i == -1 or later == []
            else:
                assert j in later
                now = time[i, j]


def test_temporal_random_walks_start_at_random_edges():
    # A node without edges starts no walk, and one of many edges starts many:
    src, dst = torch.tensor([0, 0, 0, 2]), torch.tensor([1, 1, 1, 1])
    walks = temporal_random_walks(
        src, dst, torch.arange(4), 3, walks_per_node=1000, start='edge'
    )
    assert walks.size() == (3000, 3)
    count = walks[:, 0].bincount(minlength=3).tolist()
    assert count[1] == 0 and abs(count[0] - 2250) < 5 * 24
    assert (walks[:, 1] == 1).all() and (walks[:, 2] == -1).all()


@withDevice
def test_temporal_random_walks_seed(device):
    src, dst, t = (x.to(device) for x in unpack(EDGES))
    first, again, other = (
        temporal_random_walks(src, dst, t, 4, 50, seed=seed)
        for seed in [0, 0, 1]
    )
    assert first.device == src.device
    assert torch.equal(first, again) and not torch.equal(first, other)
    # Neither the unit of times nor the order of edges in time matters:
    perm = torch.randperm(10, device=device)
    assert torch.equal(
        temporal_random_walks(src, dst, t.double() * 0.1, 4, 50), first
    )
    shuffled = temporal_random_walks(src[perm], dst[perm], t[perm], 4, 50)
    assert shuffled.size() == first.size()


def test_temporal_random_walks_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    temporal_random_walks(*unpack(EDGES), 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_temporal_random_walks_without_edges():
    empty = unpack([])
    assert temporal_random_walks(*empty, 3).size() == (0, 3)
    walks = temporal_random_walks(*empty, 3, 2, num_nodes=2, start='edge')
    assert walks.tolist() == [[-1] * 3] * 4
    walks = temporal_random_walks(*empty, 3, 2, num_nodes=2)
    assert walks.tolist() == [[i, -1, -1] for i in [0, 0, 1, 1]]
    assert temporal_random_walks(*unpack(EDGES), 3, 0).size() == (0, 3)


@pytest.mark.parametrize(
    'kwargs, match',
    [
        (dict(src=torch.rand(10)), r"'src' .* \(got \[10\] and torch.float32"),
        (dict(dst=torch.zeros(2, 5).long()), r"'dst' .* \(got \[2, 5\] and"),
        (dict(t=torch.zeros(9)), r'equal shapes .*\[9\]\)'),
        (dict(t=torch.full((10,), torch.nan)), r"'t' .* \(got NaN\)"),
        (dict(walk_length=0), r"'walk_length' .* \(got 0\)"),
        (dict(walks_per_node=-1), r"'walks_per_node' .* \(got -1\)"),
        (dict(start='time'), r"'start' .* \(got 'time'\)"),
        (dict(num_nodes=-1), r"'num_nodes' .* \(got -1\)"),
        (dict(num_nodes=3), r'in \[0, 3\) \(got \[0, 3\]\)'),
    ],
)
def test_temporal_random_walks_errors(kwargs, match):
    src, dst, t = unpack(EDGES)
    args = dict(src=src, dst=dst, t=t, walk_length=3)
    with pytest.raises(ValueError, match=match):
        temporal_random_walks(**{**args, **kwargs})
