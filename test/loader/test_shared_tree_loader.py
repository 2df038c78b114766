import warnings

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import SumAggregation

from devices import withDevice
from torch_geometric_ext.loader import (
    GDeRSampler,
    SharedTreeLoader,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes, RootAggregation
from torch_geometric_ext.transforms import ShareComputationTrees


def make_graphs(num_graphs=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for i in range(num_graphs):
        num_nodes = int(torch.randint(3, 7, (), generator=generator))
        ring = torch.arange(num_nodes)
        edge_index = torch.stack([ring, (ring + 1) % num_nodes])
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        graphs.append(
            Data(
                x=torch.randint(2, (num_nodes, 1), generator=generator),
                edge_index=edge_index,
                edge_attr=torch.zeros(edge_index.size(1)),
                y=torch.tensor([i % 2]),
                weight=torch.tensor([i / 10]),
            )
        )
    return graphs


@pytest.fixture
def shared():
    return ShareComputationTrees(num_layers=2)(make_graphs())


def describe(batch):
    """The trees of each graph as nested tuples, with their counts."""
    x, (source, target) = batch.x.tolist(), batch.edge_index.tolist()

    def tree(node, depth):
        below = [s for s, t in zip(source, target) if t == node]
        children = [tree(s, depth - 1) for s in below] if depth > 0 else []
        return tuple(x[node]), tuple(sorted(children))

    out = []
    for i in range(batch.num_graphs):
        part = slice(int(batch.root_ptr[i]), int(batch.root_ptr[i + 1]))
        roots = batch.root[part].tolist()
        trees = [tree(root, batch.num_layers) for root in roots]
        out.append(sorted(zip(trees, batch.root_count[part].tolist())))
    return out


@pytest.mark.parametrize('batch_size', [1, 7, 20])
def test_batches(shared, batch_size, ext):
    full = next(iter(SharedTreeLoader(shared, batch_size=20)))
    expected = describe(full)
    loader = SharedTreeLoader(shared, batch_size=batch_size, shuffle=True)
    seen = []
    assert len(loader) == -(-20 // batch_size)
    for batch in loader:
        graph_idx = batch.graph_idx.tolist()
        seen += graph_idx
        assert batch.num_graphs == len(graph_idx)
        assert batch.y.tolist() == [i % 2 for i in graph_idx]
        assert batch.weight.tolist() == pytest.approx(
            [i / 10 for i in graph_idx]
        )
        assert batch.edge_attr.shape == (batch.num_edges,)
        assert batch.validate()
        assert sum(batch.num_sampled_nodes) == batch.num_nodes
        assert sum(batch.num_sampled_edges) == batch.num_edges
        assert describe(batch) == [expected[i] for i in graph_idx]
        # Only what is needed:
        assert batch.root.max() < batch.num_sampled_nodes[0]
        assert batch.root.unique().numel() == batch.num_sampled_nodes[0]
    assert sorted(seen) == list(range(20))


def test_full_batch_is_not_copied(shared):
    loader = SharedTreeLoader(shared, batch_size=20, shuffle=True)
    first, second = next(iter(loader)), next(iter(loader))
    assert first.graph_idx.tolist() == list(range(20))
    assert first is not second
    for key, value in first:
        if isinstance(value, torch.Tensor):
            assert value.data_ptr() == second[key].data_ptr()
    first.x = None
    assert next(iter(loader)).x is not None


def test_full_batch_of_few_graphs_among_known_trees(shared):
    few = ShareComputationTrees(num_layers=2)(make_graphs(3, seed=5), shared)
    assert few.num_trees[-1] >= shared.num_trees[-1]
    batch = next(iter(SharedTreeLoader(few, batch_size=3)))
    assert batch.num_sampled_nodes[0] == few.tree.unique().numel()
    assert batch.num_sampled_nodes[0] < few.num_trees[-1]


def test_repeated_graphs(shared):
    sampler = [3, 3, 5] + 17 * [3]
    (batch,) = SharedTreeLoader(shared, batch_size=20, sampler=sampler)
    trees = describe(batch)
    assert batch.graph_idx.tolist() == sampler
    assert trees[0] == trees[1] == trees[3] and trees[0] != trees[2]


def test_loader_arguments(shared):
    assert len(SharedTreeLoader(shared, 8, drop_last=True)) == 2
    loader = SharedTreeLoader(shared, batch_sampler=[[1, 2], [4]])
    assert [batch.graph_idx.tolist() for batch in loader] == [[1, 2], [4]]
    with pytest.raises(TypeError, match="'shared' .* 'SharedTrees' .*got"):
        SharedTreeLoader(make_graphs())


def test_cached_batches(shared):
    generator = torch.Generator().manual_seed(0)
    loader = SharedTreeLoader(
        shared, 6, shuffle=True, cached=True, generator=generator
    )
    next(iter(loader))  # Not a whole epoch.
    epochs = [list(loader) for _ in range(4)]
    order = [[tuple(b.graph_idx.tolist()) for b in epoch] for epoch in epochs]
    assert sorted(i for part in order[0] for i in part) == list(range(20))
    assert all(sorted(o) == sorted(order[0]) for o in order)
    assert len({tuple(o) for o in order}) > 1  # In another order.
    for batch in epochs[1]:
        (first,) = (b for b in epochs[0] if b.graph_idx.equal(batch.graph_idx))
        assert first is not batch
        assert first.x.data_ptr() == batch.x.data_ptr()
    in_order = SharedTreeLoader(shared, 6, cached=True)
    for _ in range(2):
        index = [i for b in in_order for i in b.graph_idx.tolist()]
        assert index == list(range(20))
    for kwargs in [dict(sampler=range(20)), dict(batch_sampler=[[0]])]:
        with pytest.raises(ValueError, match="'cached' .* stay the same"):
            SharedTreeLoader(shared, 6, cached=True, **kwargs)


@pytest.mark.parametrize('shuffle', [True, False])
def test_report(shared, shuffle):
    loader = SharedTreeLoader(shared, 5, shuffle=shuffle, cached=True)
    report, batches = loader.report(), list(loader)
    assert (report.num_layers, report.num_graphs) == (2, 5)
    assert report.num_nodes == pytest.approx(shared.num_nodes / 4, abs=3)
    assert report.num_edges == pytest.approx(shared.num_edges / 4, abs=6)
    if not shuffle:
        sizes = torch.tensor([b.num_sampled_nodes for b in batches])
        num_rows = (sizes[:, :-1] + sizes[:, 1:]).sum() / 4
        assert report.num_rows == round(float(num_rows))
        assert report.num_nodes == round(shared.num_nodes / 4)
    num_bytes = sum(
        x.nbytes
        for batch in batches
        for _, x in batch
        if isinstance(x, torch.Tensor)
    )
    assert report.num_cached_bytes == pytest.approx(num_bytes, rel=0.2)
    assert report.num_inner_rows < report.num_rows
    assert report.inner_ratio == report.num_nodes / report.num_inner_rows
    assert report.node_ratio == 2 * report.num_nodes / report.num_rows
    assert report.edge_ratio == 2 * report.num_edges / report.num_shared_edges
    for ratio in [
        report.node_ratio,
        report.edge_ratio,
        report.work_ratio,
        report.all_levels_ratio,
    ]:
        assert f'{ratio:.1f}x' in str(report)
    if not shuffle:
        nodes = torch.tensor([b.num_sampled_nodes for b in batches])
        edges = torch.tensor([b.num_sampled_edges for b in batches])
        inner = (nodes[:, :2].sum() + edges[:, 0].sum() / 2) / 4
        work = report.num_nodes + report.num_edges / 2
        assert report.work_ratio == pytest.approx(
            float(work / inner), rel=0.02
        )
        total = (nodes.sum() + edges.sum() / 2) / 4
        assert report.all_levels_ratio == pytest.approx(
            float(work / total), rel=0.02
        )
    full = SharedTreeLoader(shared, 20).report()
    assert full.num_cached_bytes == 0
    assert full.num_nodes == shared.num_nodes
    assert full.num_edges == shared.num_edges
    assert full.node_ratio > report.node_ratio
    with pytest.raises(ValueError, match="needs a 'batch_size'"):
        SharedTreeLoader(shared, batch_sampler=[[0]]).report()


def test_warning():
    graphs = make_graphs(200)
    shared = ShareComputationTrees(num_layers=3)(graphs)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        SharedTreeLoader(shared, 8)
        loader = SharedTreeLoader(shared, 1, cached=True)
    # Edges repeat more often than rows, and extraction takes time:
    assert loader.report().inner_ratio < 1
    assert 1.15 <= loader.report().work_ratio < 1.3
    with pytest.warns(UserWarning, match='of 1 graphs .*cached=True'):
        SharedTreeLoader(shared, 1)
    for i, graph in enumerate(graphs):  # No tree repeats.
        graph.x = torch.arange(graph.num_nodes).view(-1, 1) + 10 * i
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        other = ShareComputationTrees(num_layers=3)(graphs)
    with pytest.warns(UserWarning, match=r': 0.67\).* fewer layers$'):
        SharedTreeLoader(other, 1, cached=True)


@pytest.mark.parametrize('gcn_norm', [False, True])
@pytest.mark.parametrize('batch_size', [6, 20])
def test_edges_are_sorted_by_target(batch_size, gcn_norm):
    transform = ShareComputationTrees(
        num_layers=3, gcn_norm=gcn_norm, edge_attr=False
    )
    loader = SharedTreeLoader(
        transform(make_graphs()), batch_size, shuffle=True
    )
    for batch in loader:
        target = batch.edge_index[1]
        assert target.numel() > 0
        assert (target.diff() >= 0).all()
        start = 0  # Edges of each level end in its rows.
        edges = target.split([*batch.num_sampled_edges])
        for part, size in zip(edges, batch.num_sampled_nodes):
            assert start <= part.min() and part.max() < start + size
            start += size


def test_workers(shared):
    loader = SharedTreeLoader(shared, batch_size=6)
    parallel = SharedTreeLoader(shared, batch_size=6, num_workers=2)
    for batch, other in zip(loader, parallel):
        assert batch.to_dict().keys() == other.to_dict().keys()
        for key, value in batch:
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[key])
            else:
                assert value == other[key]


def test_gder_on_top(shared):
    prototypes = HypersphericalPrototypes(1, num_classes=2)
    sampler = GDeRSampler(len(shared), prototypes, 0.5, num_epochs=4)
    loader = SharedTreeLoader(shared, batch_size=4, sampler=sampler)
    aggr = RootAggregation('sum')
    optimizer = torch.optim.SGD(prototypes.parameters(), lr=0.1)
    for _ in range(4):
        seen = []
        for batch in loader:
            optimizer.zero_grad()
            h = aggr(batch.x.float(), batch)
            loss = sampler.update(h, batch.y, batch.graph_idx)
            loss.backward()
            optimizer.step()
            seen += batch.graph_idx.tolist()
        assert len(seen) == len(set(seen)) == 10


def test_soft_random_on_top(shared):
    sampler = SoftRandomSampler(shared, 0.3, num_epochs=2)
    loader = SharedTreeLoader(shared, batch_size=4, sampler=sampler)
    assert sum(batch.num_graphs for batch in loader) == 6


def test_gcn_norm_weights():
    graphs = make_graphs(seed=1)
    shared = ShareComputationTrees(2, gcn_norm=True)(graphs)
    for batch_size in [5, 20]:
        for batch in SharedTreeLoader(shared, batch_size):
            assert 'edge_attr' not in batch
            source, target = batch.edge_index
            # Rings: each node has two neighbors and a loop.
            expected = torch.full((batch.num_edges,), 1 / 3)
            assert torch.allclose(batch.edge_weight, expected)
            inner = torch.arange(sum(batch.num_sampled_nodes[:-1]))
            assert torch.equal(target.unique(), inner)
            assert int((source == target).sum()) == inner.numel()
            total = SumAggregation()(batch.edge_weight.view(-1, 1), target)
            assert torch.allclose(total, torch.ones_like(total))


def test_graphs_without_edges():
    graphs = [
        Data(x=torch.tensor([[i % 2]]), edge_index=torch.empty(2, 0).long())
        for i in range(8)
    ]
    for gcn_norm in [False, True]:
        shared = ShareComputationTrees(2, gcn_norm=gcn_norm)(graphs)
        for batch_size in [3, 8]:
            for batch in SharedTreeLoader(shared, batch_size):
                assert batch.num_sampled_nodes == [2, 2, 2]
                assert batch.root_count.tolist() == batch.num_graphs * [1]
                assert batch.num_edges == (4 if gcn_norm else 0)


@withDevice
def test_device(shared, device):
    aggr = RootAggregation('sum')
    for pin_memory in [False, device.type == 'cuda']:
        loader = SharedTreeLoader(shared, 6, pin_memory=pin_memory)
        for batch in loader:
            expected = aggr(batch.x.float(), batch)
            batch = batch.to(device, non_blocking=True)
            assert batch.edge_index.device == batch.x.device
            out = aggr(batch.x.float(), batch)
            assert torch.allclose(out.cpu(), expected)
