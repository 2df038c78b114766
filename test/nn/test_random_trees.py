import pytest
import torch

from devices import withDevice
from torch_geometric_ext.nn.random_trees import draw_trees


def describe(graph, node, depth):
    """The tree of a node as nested tuples of labels."""
    mask = graph.edge_index[1] == node
    children = [
        (int(label), describe(graph, int(source), depth - 1))
        for label, source in zip(
            graph.edge_label[mask], graph.edge_index[0, mask]
        )
        if depth > 0
    ]
    return int(graph.label[node]), tuple(sorted(children))


@pytest.mark.parametrize('num_layers', [1, 2])
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(
    'loops, edge_labels, normalize',
    [
        (False, True, False),
        (True, False, False),
        (False, True, True),
    ],
)
def test_draw_trees(num_layers, seed, loops, edge_labels, normalize, ext):
    graphs = draw_trees(
        num_layers,
        seed,
        loops=loops,
        isolated=seed > 0,
        edge_labels=edge_labels,
        normalize=normalize,
    )
    plain, trees = graphs.plain, graphs.trees
    for node, row in enumerate(graphs.tree.tolist()):
        tree = describe(trees, row, num_layers)
        assert tree == describe(plain, node, num_layers)
    distinct = graphs.tree.unique()
    assert distinct.tolist() == list(range(trees.num_sampled_nodes[0]))
    assert distinct.numel() < plain.num_nodes  # Some trees repeat.
    source, target = plain.edge_index
    assert bool((source == target).any()) == (loops or normalize)
    assert (plain.edge_label.unique().numel() > 1) == edge_labels
    edges, count = plain.edge_index.unique(dim=1, return_counts=True)
    repeated = plain.batch[edges[0, count > 1]]  # Each graph has multi-edges.
    assert repeated.unique().numel() == plain.num_graphs
    degree = target[source != target].bincount(minlength=plain.num_nodes)
    assert (int(degree.min()) == 0) == (seed > 0)

    # Each graph holds its trees as often as its nodes:
    assert int(trees.root_ptr[-1]) == trees.root.numel()
    index = torch.arange(trees.num_graphs)
    index = index.repeat_interleave(trees.root_ptr.diff())
    pairs = torch.stack([index, trees.root])
    pairs = pairs.repeat_interleave(trees.root_count, dim=1)
    expected = torch.stack([plain.batch, graphs.tree])
    assert pairs.t().tolist() == sorted(expected.t().tolist())
    assert trees.num_roots == plain.num_nodes


def test_features():
    graphs = draw_trees(
        1, 1, loops=False, isolated=False, edge_labels=True, normalize=True
    )
    assert graphs.normalized
    table = torch.arange(5).view(-1, 1)
    plain, trees = graphs.fill(
        {'x': table, 'z': table / 2}, {'a': table[:1]}, torch.double
    )
    assert torch.equal(graphs.lift(trees.x), plain.x)
    assert plain.x.dtype == torch.long and plain.z.dtype == torch.double
    assert plain.edge_weight.dtype == torch.double
    assert trees.a.shape == (trees.num_edges, 1)
    assert 'x' not in graphs.plain
    other = torch.ones(2, 3)
    assert graphs.lift(other) is other


@withDevice
def test_device(device):
    graphs = draw_trees(
        1, 0, loops=False, isolated=False, edge_labels=True, normalize=False
    ).to(device)
    plain, trees = graphs.fill(
        {'x': torch.rand(4, 2, device=device)}, {}, torch.double
    )
    assert plain.x.device == trees.x.device == graphs.tree.device
    assert torch.equal(graphs.lift(trees.x), plain.x)
