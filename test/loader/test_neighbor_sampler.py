import copy
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NeighborLoader, NodeLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.testing import onlyNeighborSampler
from torch_geometric.utils import trim_to_layer

from devices import withDevice
from torch_geometric_ext.loader import NeighborSampler


def make_graph(num_nodes=30, num_edges=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (2, num_edges)
    edge_index = torch.randint(num_nodes, size, generator=generator)
    return Data(
        x=torch.arange(num_nodes).float().view(-1, 1),
        edge_index=edge_index,
        edge_attr=torch.arange(num_edges),
    )


def sample(data, seeds, *args, **kwargs):
    sampler = NeighborSampler(data, *args, **kwargs)
    return sampler, sampler.sample_from_nodes(
        NodeSamplerInput(None, torch.tensor(seeds))
    )


def edges_of(sampler, out):
    perm = sampler.edge_permutation
    return out.edge if perm is None else perm[out.edge]


def neighborhoods(data, seeds, num_hops):
    """Return the nodes, and the edges of each hop, of whole neighborhoods."""
    nodes, frontier, hops = list(seeds), list(enumerate(seeds)), []
    targets = data.edge_index[1].tolist()
    for _ in range(num_hops):
        hop, size = [], len(nodes)
        for position, node in frontier:
            for edge, target in enumerate(targets):
                if target == node:
                    source = int(data.edge_index[0, edge])
                    if source not in nodes:
                        nodes.append(source)
                    hop.append((nodes.index(source), position, edge))
        frontier = list(enumerate(nodes))[size:]
        hops.append(hop)
    return nodes, hops


graphs = st.builds(
    make_graph, st.integers(1, 12), st.integers(0, 40), st.integers(0, 99)
)


@settings(deadline=None, max_examples=60)
@given(graphs, st.lists(st.integers(0, 11), max_size=5), st.integers(1, 3))
def test_whole_neighborhoods(data, seeds, num_hops):
    seeds = [x % data.num_nodes for x in seeds]
    nodes, hops = neighborhoods(data, seeds, num_hops)
    sampler, out = sample(data, seeds, [-1] * num_hops)
    triples = zip(*(x.tolist() for x in (out.row, out.col)))
    triples = [(*x, y) for x, y in zip(triples, edges_of(sampler, out))]
    assert out.node.tolist() == nodes
    assert triples == [x for hop in hops for x in hop]
    assert out.num_sampled_edges == [len(hop) for hop in hops]
    assert len(out.num_sampled_nodes) == num_hops + 1
    assert sum(out.num_sampled_nodes) == len(nodes)


@settings(deadline=None, max_examples=100)
@given(
    graphs,
    st.lists(st.integers(0, 11), max_size=5, unique=True),
    st.lists(st.integers(-1, 6), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2**63),
)
def test_sampled_neighborhoods(data, seeds, num_neighbors, replace, seed):
    seeds = sorted({x % data.num_nodes for x in seeds})
    kwargs = dict(replace=replace, seed=seed)
    sampler, out = sample(data, seeds, num_neighbors, **kwargs)
    edges = edges_of(sampler, out)
    assert out.node.unique().numel() == out.node.numel()
    expected = data.edge_index[:, edges]
    assert torch.equal(out.node[torch.stack([out.row, out.col])], expected)
    degree = Counter(data.edge_index[1].tolist())
    nodes = out.node.split(out.num_sampled_nodes)
    assert nodes[0].tolist() == seeds
    hops = edges.split(out.num_sampled_edges)
    seen = set(seeds)
    for size, frontier, new, hop in zip(
        num_neighbors, nodes[:-1], nodes[1:], hops, strict=True
    ):
        counts = Counter(data.edge_index[1, hop].tolist())
        for node in frontier.tolist():
            count = degree[node]
            if size >= 0:
                count = size * (count > 0) if replace else min(count, size)
            assert counts.pop(node, 0) == count
        assert not counts
        if not replace:
            assert hop.unique().numel() == hop.numel()
        sources = data.edge_index[0, hop].tolist()
        assert new.tolist() == [
            x for x in dict.fromkeys(sources) if x not in seen
        ]
        seen.update(new.tolist())
    _, again = sample(data, seeds, num_neighbors, **kwargs)
    assert torch.equal(again.edge, out.edge)


@pytest.mark.parametrize('size', [1, 2, 4, 5])
def test_subsets_are_equally_likely(size):
    # Six neighbors of each of 20,000 nodes:
    num_nodes, degree = 20_000, 6
    col = torch.arange(num_nodes).repeat_interleave(degree)
    data = Data(edge_index=torch.stack([col, col]), num_nodes=num_nodes)
    _, out = sample(data, list(range(num_nodes)), [size], seed=3)
    codes = (1 << (out.edge % degree)).view(num_nodes, size).sum(dim=1)
    counts = torch.bincount(codes, minlength=1 << degree)
    subsets = [x for x in range(1 << degree) if x.bit_count() == size]
    expected = num_nodes / len(subsets)
    chi = float((counts[subsets] - expected).square().sum() / expected)
    freedom = len(subsets) - 1
    assert chi < freedom + 4 * (2 * freedom) ** 0.5


def test_draws_with_replacement_are_equally_likely():
    edge_index = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    data = Data(edge_index=edge_index, num_nodes=1)
    _, out = sample(data, [0], [50_000], replace=True, seed=0)
    counts = torch.bincount(out.edge, minlength=5)
    assert float((counts - 10_000).square().sum() / 10_000) < 20


@pytest.mark.parametrize('seed', [None, 5])
@pytest.mark.parametrize('persistent', [False, True])
def test_workers(seed, persistent):
    data = make_graph()

    def epochs(num_workers):
        torch.manual_seed(1)
        sampler, out = NeighborSampler(data, [3, 3], seed=seed), []
        loader = NodeLoader(
            data,
            sampler,
            batch_size=7,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
        )
        for epoch in range(2):
            sampler.set_epoch(epoch)
            out.append([batch.e_id.tolist() for batch in loader])
        return out

    first = epochs(2)
    assert first == epochs(2)
    assert first[0] != first[1]
    if seed is not None:
        assert first == epochs(0)


@withDevice
def test_loader(device):
    data = make_graph().to(device)
    loader = NodeLoader(
        data,
        NeighborSampler(data, [4, 3], seed=0),
        input_nodes=torch.arange(30) >= 10,
        batch_size=8,
    )
    model = GraphSAGE(1, 8, 2, 3).to(device)
    assert len(loader) == 3
    for i, batch in enumerate(loader):
        assert batch.x.device == device
        assert batch.batch_size == [8, 8, 4][i]
        seeds = batch.n_id[: batch.batch_size]
        assert torch.equal(seeds, batch.input_id)
        assert torch.equal(batch.x.view(-1), batch.n_id.to(device).float())
        edge_index = batch.n_id.to(device)[batch.edge_index]
        expected = data.edge_index[:, batch.e_id.to(device)]
        assert torch.equal(edge_index, expected)
        assert torch.equal(batch.edge_attr, batch.e_id.to(device))
        # Layers that compute no more than they need give the same result:
        x, edge_index = batch.x, batch.edge_index
        for layer, conv in enumerate(model.convs):
            x, edge_index, _ = trim_to_layer(
                layer,
                batch.num_sampled_nodes,
                batch.num_sampled_edges,
                x,
                edge_index,
            )
            x = conv(x, edge_index)
            x = x.relu() if layer == 0 else x
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        torch.testing.assert_close(x[: batch.batch_size], out)


@onlyNeighborSampler
def test_neighbor_loader():
    data, nodes = make_graph(), torch.arange(5)
    sampler = NeighborSampler(data, [-1, -1])
    ours = NodeLoader(data, sampler, nodes, batch_size=5)
    theirs = NeighborLoader(data, [-1, -1], nodes, batch_size=5)
    batch, other = next(iter(ours)), next(iter(theirs))
    assert batch.keys() == other.keys()
    assert batch.n_id.sort().values.equal(other.n_id.sort().values)
    assert batch.e_id.sort().values.equal(other.e_id.sort().values)
    assert batch.num_sampled_nodes == other.num_sampled_nodes
    assert batch.num_sampled_edges == other.num_sampled_edges


def test_sorted_edges_need_no_permutation():
    data = make_graph()
    data = data.sort(sort_by_row=False)
    assert NeighborSampler(data, [2]).edge_permutation is None


def test_copies_and_threads():
    data = make_graph(300, 5000)
    sampler = NeighborSampler(data, [5, 5], seed=0)
    inputs = [
        NodeSamplerInput(None, torch.randperm(300)[:50]) for _ in range(40)
    ]
    expected = [sampler.sample_from_nodes(x).node for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(sampler.sample_from_nodes, inputs))
    assert all(map(torch.equal, expected, [x.node for x in outs]))
    for other in [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]:
        out = other.sample_from_nodes(inputs[0])
        assert torch.equal(out.node, expected[0])


def test_interrupted_draw(monkeypatch):
    data = make_graph()
    sampler = NeighborSampler(data, [-1, 3], seed=0)
    inputs = NodeSamplerInput(None, torch.arange(4))
    expected = sampler.sample_from_nodes(inputs).node
    draw = sampler._draw

    def interrupt(node, size, generator):
        if size == 3:
            raise KeyboardInterrupt
        return draw(node, size, generator)

    monkeypatch.setattr(sampler, '_draw', interrupt)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample_from_nodes(inputs)
    monkeypatch.undo()
    assert torch.equal(sampler.sample_from_nodes(inputs).node, expected)


def test_repr():
    sampler = NeighborSampler(make_graph(), (3, -1), seed=1)
    expected = 'NeighborSampler(num_neighbors=[3, -1], replace=False, seed=1)'
    assert str(sampler) == expected


@pytest.mark.parametrize(
    'kwargs, error, match',
    [
        (dict(num_neighbors=3), TypeError, r'one for each hop \(got 3\)'),
        (dict(num_neighbors=[1.5]), TypeError, r'integers, .* \(got \[1.5\]'),
        (dict(num_neighbors=[]), ValueError, r'\(got \[\]\)'),
        (dict(num_neighbors=[-2]), ValueError, r'at least zero, or -1'),
        (dict(replace=1), TypeError, "'replace' .* needs to be a bool"),
        (dict(seed=0.5), TypeError, "'seed' .* needs to be an integer"),
        (dict(data=HeteroData()), TypeError, "needs to be a 'Data'"),
        (dict(data=Data(num_nodes=2)), ValueError, "dense 'edge_index'"),
    ],
)
def test_invalid_arguments(kwargs, error, match):
    data = kwargs.pop('data', make_graph())
    with pytest.raises(error, match=match):
        NeighborSampler(data, **{'num_neighbors': [2], **kwargs})


@pytest.mark.parametrize(
    'edge_index, match',
    [
        (torch.tensor([[0, 1], [1, 2]]), r'in \[0, 2\), .* \(got 0 to 2\)'),
        (torch.tensor([[0, -1], [1, 1]]), r'\(got -1 to 1\)'),
        (torch.zeros(3, 2, dtype=torch.long), r'\[2, num_edges\]'),
        (torch.zeros(2, 2), r'of torch.int64 .* \(got torch.float32'),
        (torch.eye(2).to_sparse(), "dense 'edge_index'"),
    ],
)
def test_invalid_edges(edge_index, match):
    data = Data(edge_index=edge_index, num_nodes=2)
    with pytest.raises(ValueError, match=match):
        NeighborSampler(data, [2])


def test_invalid_seed_nodes():
    sampler = NeighborSampler(make_graph(), [2])
    for node in [-1, 30]:
        with pytest.raises(ValueError, match=r'in \[0, 30\) \(got'):
            sampler.sample_from_nodes(
                NodeSamplerInput(None, torch.tensor([node]))
            )
    with pytest.raises(NotImplementedError, match='does not sample by time'):
        node = torch.tensor([0])
        sampler.sample_from_nodes(NodeSamplerInput(None, node, node))
    with pytest.raises(NotImplementedError, match='LinkNeighborLoader'):
        sampler.sample_from_edges(None)
