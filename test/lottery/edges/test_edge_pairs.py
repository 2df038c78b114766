import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from devices import withDevice
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs

NODES = st.integers(0, 4)
EDGES = st.lists(st.tuples(NODES, NODES), max_size=14)


def index(edges, device=None):
    return torch.tensor(edges, device=device).view(-1, 2).t().long()


def naive_pairs(edges):
    """The members of each pair, by a loop over edges."""
    seen, members = {}, {}
    for i, (u, v) in enumerate(edges):
        if u != v:
            rank = seen[u, v] = seen.get((u, v), -1) + 1
            members.setdefault((min(u, v), max(u, v), rank), []).append(i)
    if all(len(x) == 2 for x in members.values()):
        return list(members.values()), True
    return [[i] for i, (u, v) in enumerate(edges) if u != v], False


def check(edges, device=None):
    pairs = EdgePairs(index(edges, device), num_nodes=6)
    expected, undirected = naive_pairs(edges)
    assert pairs.undirected == undirected
    assert pairs.num_pairs == len(expected)
    found = {}
    for i, pair in enumerate(pairs.pair.tolist()):
        found.setdefault(pair, []).append(i)
    loops = [i for i, (u, v) in enumerate(edges) if u == v]
    assert found.pop(-1, []) == loops
    assert sorted(found.values()) == sorted(expected)
    for pair, members in found.items():
        ends = sorted(pairs.ends[:, pair].tolist())
        assert all(sorted(edges[i]) == ends for i in members)

    kept = torch.arange(pairs.num_pairs, device=device) % 2 == 0
    mask = pairs.edge_mask(kept).tolist()
    for i, pair in enumerate(pairs.pair.tolist()):
        assert mask[i] == (pair < 0 or pair % 2 == 0)


@settings(max_examples=60)
@given(EDGES, st.randoms(use_true_random=False), st.booleans())
def test_edge_pairs(edges, random, undirected):
    if undirected:
        edges = edges + [(v, u) for u, v in edges if u != v]
        random.shuffle(edges)
    check(edges)


@withDevice
def test_edge_pairs_examples(device):
    check([], device)
    check([(2, 2)], device)
    check([(0, 1), (1, 0), (1, 0), (0, 1), (3, 3)], device)
    check([(0, 1), (1, 0), (1, 0)], device)
    check([(0, 1), (1, 0), (4, 2)], device)
