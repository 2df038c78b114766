"""Models embed the roots of condensed graphs as the original nodes."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    GATConv,
    GCNConv,
    GINConv,
    GINEConv,
    SAGEConv,
)

from devices import withDevice
from torch_geometric_ext.data.storage import graph_bytes
from torch_geometric_ext.data.trees_to_graphs import trees_to_graphs
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import RootAggregation
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)

NUM_LABELS, HIDDEN = 2, 5
CONVS = ['GIN', 'SAGE', 'GAT', 'GATEdge', 'GINE', 'GCN']


def random_graphs(seed, num_graphs=5, directed=False):
    """Small graphs with loops, multi-edges, isolated and no nodes."""
    generator = torch.Generator().manual_seed(seed)

    def randint(high, size=()):
        return torch.randint(high, size, generator=generator)

    graphs = []
    for i in range(num_graphs):
        num_nodes = int(randint(7))
        num_edges = int(randint(9)) if num_nodes > 0 else 0
        edge_index = randint(max(num_nodes, 1), (2, num_edges))
        edge_label = randint(2, (num_edges,))
        if not directed:
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
            edge_label = edge_label.repeat(2)
        graphs.append(
            Data(
                x=F.one_hot(randint(NUM_LABELS, (num_nodes,)), NUM_LABELS),
                edge_index=edge_index,
                edge_attr=F.one_hot(edge_label, 2),
                y=torch.tensor([i % 2]),
                idx=torch.tensor([i]),
            )
        )
        graphs[-1].x = graphs[-1].x.double()
        graphs[-1].edge_attr = graphs[-1].edge_attr.double()
    return graphs


def make_conv(name, in_channels):
    if name == 'GIN':
        return GINConv(torch.nn.Linear(in_channels, HIDDEN), train_eps=True)
    if name == 'SAGE':
        return SAGEConv(in_channels, HIDDEN)
    if name == 'GAT':
        return GATConv(in_channels, HIDDEN)
    if name == 'GATEdge':
        return GATConv(in_channels, HIDDEN, edge_dim=2)
    if name == 'GINE':
        return GINEConv(torch.nn.Linear(in_channels, HIDDEN), edge_dim=2)
    return GCNConv(in_channels, HIDDEN)


class Net(torch.nn.Module):
    def __init__(self, name, num_layers):
        super().__init__()
        torch.manual_seed(0)
        sizes = [NUM_LABELS] + num_layers * [HIDDEN]
        self.key = 'edge_attr' if name in ['GATEdge', 'GINE'] else None
        self.convs = torch.nn.ModuleList(
            make_conv(name, size) for size in sizes[:-1]
        ).double()

    def condensed(self):
        """Returns the model for condensed graphs with the same weights."""
        out = copy.deepcopy(self)
        for conv in out.convs:
            if isinstance(conv, GCNConv):
                conv.normalize = conv.add_self_loops = False
                out.key = 'edge_weight'
        return out

    @torch.no_grad()
    def forward(self, data):
        h, args = data.x, [data[self.key]] if self.key else []
        for conv in self.convs:
            h = conv(h, data.edge_index, *args).tanh()
        return h


def make_condense(name, num_layers, **kwargs):
    return MirageCondense(
        num_layers,
        gcn_norm=name == 'GCN',
        self_loops='remove' if name.startswith('GAT') else 'keep',
        edge_attr=name in ['GATEdge', 'GINE'],
        **kwargs,
    )


def distances(out, expected):
    return (out.unsqueeze(1) - expected).abs().sum(dim=-1)


def assert_same_multisets(out, expected):
    assert out.shape == expected.shape
    cost = distances(out, expected)
    match = cost[linear_sum_assignment(cost)]
    assert match.numel() == 0 or match.max() < 1e-9


@settings(max_examples=30)
@given(
    name=st.sampled_from(CONVS),
    num_layers=st.integers(1, 3),
    directed=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_root_embeddings(name, num_layers, directed, seed):
    graphs = random_graphs(seed, directed=directed)
    condense = make_condense(name, num_layers, num_graphs=len(graphs))
    net = Net(name, num_layers)
    for data in condense(graphs):
        original = graphs[int(data.idx)]
        h = net.condensed()(data)[data.root_mask]
        h = h.repeat_interleave(data.root_count[data.root_mask], dim=0)
        assert_same_multisets(h, net(original))
        assert data.num_nodes <= 2 * (num_layers + 1) * original.num_nodes


@settings(max_examples=15)
@given(
    name=st.sampled_from(CONVS),
    num_layers=st.integers(1, 3),
    directed=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_root_embeddings_of_patterns(name, num_layers, directed, seed):
    graphs = random_graphs(seed, directed=directed)
    graphs += random_graphs(seed + 1, directed=directed)
    for data, y in zip(graphs, [0, 1, 0, 1]):  # Each class has some nodes.
        data.y = torch.tensor([y])
    graphs[0] = graphs[1] = Data(
        x=torch.eye(NUM_LABELS).double(),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        edge_attr=torch.eye(2).double(),
        y=torch.tensor([0]),
        idx=torch.tensor([0]),
    )
    condense = make_condense(
        name, num_layers, selection='patterns', min_support=1, max_patterns=50
    )
    net = Net(name, num_layers)
    graphs = [data for data in graphs if int(data.y) == 0]
    expected = torch.cat([net(data) for data in graphs])
    small = condense(graphs)
    found = []
    for data in small:
        h = net.condensed()(data)[data.root_mask]
        assert data.root_count[data.root_mask].eq(1).all()
        assert distances(h, expected).min(dim=1).values.max() < 1e-9
        found.append(h)
    if len(small) < 50:  # Every tree is a pattern.
        assert distances(expected, torch.cat(found)).min(1)[0].max() < 1e-9


@settings(max_examples=15)
@given(
    name=st.sampled_from(CONVS),
    num_layers=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_pooled_embeddings(name, num_layers, seed):
    graphs = random_graphs(seed)
    small = make_condense(name, num_layers, num_graphs=5)(graphs)
    net = Net(name, num_layers)
    batch = Batch.from_data_list(list(small))
    plain = Batch.from_data_list([graphs[i] for i in small.idx.tolist()])
    for aggr in ['sum', 'mean', 'max', 'std']:
        pool = RootAggregation(aggr)
        out = pool(net.condensed()(batch), batch)
        assert torch.allclose(out, pool(net(plain), plain), atol=1e-9)


@pytest.mark.parametrize('gcn_norm', [False, True])
@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
def test_shared_and_plain_graphs_are_the_same(selection, gcn_norm):
    graphs = random_graphs(3, num_graphs=12)
    kwargs = dict(num_graphs=8, selection=selection, gcn_norm=gcn_norm)
    small = MirageCondense(2, **kwargs)(graphs)
    shared = MirageCondense(2, **kwargs, share=True)(graphs)
    batch = Batch.from_data_list(list(small))
    trees = SharedTreeLoader(shared).dataset.__getitems__(list(range(8)))
    assert torch.equal(small.y, shared.graph_attrs['y'])
    assert torch.equal(small.weight, shared.graph_attrs['weight'])
    name = 'GCN' if gcn_norm else 'GINE'
    net = Net(name, 2).condensed()
    for aggr in ['sum', 'mean', 'max']:
        pool = RootAggregation(aggr)
        out = pool(net(batch), batch)
        assert torch.allclose(out, pool(net(trees), trees), atol=1e-9)


@pytest.mark.parametrize('name', CONVS)
def test_layers_beyond_the_diameter(name):
    graphs = random_graphs(5)
    small = make_condense(name, 9, num_graphs=5)(graphs)
    net = Net(name, 9)
    for data in small:
        h = net.condensed()(data)[data.root_mask]
        h = h.repeat_interleave(data.root_count[data.root_mask], dim=0)
        assert_same_multisets(h, net(graphs[int(data.idx)]))


def test_nodes_that_are_needed():
    # A path of four: ends and inner nodes, which are their own neighbors.
    edge_index = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    data = Data(x=torch.ones(4, 1), edge_index=edge_index, y=torch.tensor([0]))
    out = MirageCondense(2, num_graphs=1)([data])[0]
    assert out.root_mask.tolist() == [True, True]
    assert out.root_count.tolist() == [2, 2]
    assert out.edge_index.tolist() == [[1, 0, 1], [0, 1, 1]]
    # Without self-loops, the inner node gets a copy. One layer reads the
    # copy, for which its two neighbors are equal:
    out = MirageCondense(2, num_graphs=1, self_loops='remove')([data])[0]
    assert out.root_mask.tolist() == [True, True, False]
    assert out.root_count.tolist() == [2, 2, 0]
    assert not out.has_self_loops()
    edges = sorted(zip(*out.edge_index.tolist()))
    assert edges == [(0, 1), (0, 2), (0, 2), (1, 0), (2, 1)]


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), num_layers=st.integers(1, 3))
def test_no_self_loops(seed, num_layers):
    graphs = random_graphs(seed)
    condense = MirageCondense(num_layers, num_graphs=5, self_loops='remove')
    assert not any(data.has_self_loops() for data in condense(graphs))


def test_wide_gcn_weights():
    # A star of many leaves, in single and double precision:
    size = 1000
    edge_index = torch.stack([torch.zeros(size), torch.arange(1, size + 1)])
    edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1).long()
    for x in [torch.ones(size + 1, 1), torch.ones(size + 1, 1).long()]:
        data = Data(x=x, edge_index=edge_index, y=torch.tensor([0]))
        out = MirageCondense(1, num_graphs=1, gcn_norm=True)([data])[0]
        assert out.edge_weight.dtype == torch.float
        weight = out.edge_weight.unique()
        expected = torch.tensor([1 / 1001, (2 * 1001) ** -0.5, 0.5])
        assert torch.allclose(weight, expected)
        assert sorted(out.root_count.tolist()) == [1, 1000]


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), gcn_norm=st.booleans())
def test_graph_bytes(seed, gcn_norm):
    graphs = random_graphs(seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Random graphs share little.
        shared = ShareComputationTrees(2, gcn_norm)(graphs)
    out = trees_to_graphs(shared)
    expected = [
        sum(x.numel() * x.element_size() for x in data.to_dict().values())
        for data in out
    ]
    assert graph_bytes(out).tolist() == expected


@withDevice
@pytest.mark.parametrize('self_loops', [False, True])
def test_trees_to_graphs_on_device(self_loops, device):
    graphs = random_graphs(1)
    on_device = [copy.copy(data).to(device) for data in graphs]
    share = ShareComputationTrees(2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Random graphs share little.
        shared, moved = share(graphs), share(on_device)
    expected = trees_to_graphs(shared, self_loops)
    out = trees_to_graphs(moved, self_loops)
    for data, other in zip(out, expected):
        assert data.x.device == on_device[0].x.device
        for key, value in data.to_dict().items():
            assert torch.equal(value.cpu(), other[key])
