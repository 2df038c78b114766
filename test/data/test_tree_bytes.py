import warnings

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from torch_geometric_ext.data.storage import graph_bytes
from torch_geometric_ext.data.tree_bytes import min_graph_bytes, prefix_bytes
from torch_geometric_ext.data.trees_to_graphs import trees_to_graphs
from torch_geometric_ext.transforms import ShareComputationTrees


def make_graphs(num_graphs, seed, edge_attr):
    torch.manual_seed(seed)
    graphs = []
    for num_nodes in torch.randint(5, (num_graphs,)).tolist():
        size = (2, int(torch.randint(7, ())) if num_nodes > 0 else 0)
        edge_index = torch.randint(max(num_nodes, 1), size)
        x = torch.randint(2, (num_nodes, 3)).float()
        graphs.append(Data(x=x, edge_index=edge_index, y=torch.zeros(1, 1)))
        if edge_attr:
            graphs[-1].edge_attr = torch.randint(2, (size[1], 2))
    return graphs


@given(
    seed=st.integers(0, 10**6),
    num_layers=st.integers(1, 3),
    gcn_norm=st.booleans(),
    edge_attr=st.booleans(),
)
@settings(max_examples=10)
def test_bytes_of_prefixes(seed, num_layers, gcn_norm, edge_attr):
    graphs = make_graphs(6, seed, edge_attr)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Random graphs share little.
        shared = ShareComputationTrees(num_layers, gcn_norm)(graphs)
    heads = [shared.index_select(torch.arange(k)) for k in range(1, 7)]
    expected = [head.report().num_shared_bytes for head in heads]
    assert prefix_bytes(shared).tolist() == expected
    for self_loops in [False, True]:
        size = graph_bytes(trees_to_graphs(shared, self_loops))
        assert bool((min_graph_bytes(shared) <= size).all())


def test_bytes_of_graphs_without_edges():
    empty = torch.empty(2, 0, dtype=torch.long)
    graphs = [
        Data(x=torch.ones(k, 3), edge_index=empty, y=torch.zeros(1, 2))
        for k in [1, 2]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Small graphs share little.
        shared = ShareComputationTrees(1)(graphs)
    size = graph_bytes(trees_to_graphs(shared, False))
    assert min_graph_bytes(shared).tolist() == size.tolist()
