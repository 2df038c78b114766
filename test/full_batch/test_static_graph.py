import copy
import pickle
import weakref

import hypothesis.strategies as st
import pytest
import torch
from full_batch.models import (
    CHANNELS,
    NUM_NODES,
    add_edge_values,
    assert_equal,
    make_graph,
    make_sparse,
)
from hypothesis import given
from torch_geometric.data import Data
from torch_geometric.nn import GCN

from devices import withDevice
from torch_geometric_ext.full_batch import StaticGraph, accelerate


@given(st.integers(0, 1000), st.integers(0, 4), st.booleans())
def test_select_equals_brute_force(seed, num_hops, as_mask):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(40, (2, 45), generator=generator)
    index = torch.randint(40, (3,), generator=generator)
    nodes, edges = set(index.tolist()), set()
    for _ in range(num_hops):
        edges = {i for i in range(45) if int(edge_index[1, i]) in nodes}
        nodes |= {int(edge_index[0, i]) for i in edges}

    data = Data(x=torch.rand(40, 2), edge_index=edge_index)
    data.e_id = torch.arange(45)
    if as_mask:
        mask = torch.zeros(40, dtype=torch.bool)
        mask[index] = True
        index, selected = mask.nonzero().flatten(), mask
    else:
        selected = index
    part, rows = StaticGraph(data).select(selected, num_hops)
    if len(nodes) > 36:  # Too many to cut the graph.
        assert part.nodes is None and torch.equal(rows, index)
        return
    assert part.nodes.tolist() == sorted(nodes)
    assert torch.equal(part.nodes[rows], index)
    assert torch.equal(part.data.x, data.x[part.nodes])
    assert set(part.data.e_id.tolist()) == edges
    found = part.nodes[part.data.edge_index]
    assert torch.equal(found, edge_index[:, part.data.e_id])


@withDevice
def test_static_graph(device):
    data = add_edge_values(make_graph(device))
    graph = StaticGraph(data)
    assert str(graph) == (
        'StaticGraph(num_nodes=300, num_edges=521, num_features=12)'
    )
    assert graph.num_nodes == NUM_NODES and graph.undirected
    assert graph.num_bytes == 0
    assert graph.select(None, 2) == (graph.whole, None)
    part = graph.select(data.train_mask, 2).subgraph
    assert graph.num_bytes > 0
    assert set(part.data.keys()) == {*data.keys(), 'num_nodes'}
    assert torch.equal(part.data.y, data.y[part.nodes])
    assert part.data.edge_attr.shape == (part.data.num_edges, 2)
    assert graph.find(part.data.edge_index) is part
    assert graph.find(data.edge_index) is graph.whole
    assert graph.find(data.edge_index.clone()) is None
    graph.clear()
    assert graph.num_bytes == 0


def test_selections_are_cached():
    data = make_graph()
    graph = StaticGraph(data)
    mask = data.train_mask
    first = graph.select(mask, 1)
    assert graph.select(mask, 1) is first
    assert graph.select(mask.clone(), 1) is first
    assert graph.select(mask.nonzero().flatten(), 1) is not first
    assert graph.select(mask, 2) is not first
    for i in range(8):
        graph.select(torch.tensor([i]), 1)
    assert graph.select(mask, 1) is not first


def test_masks_that_change_in_place():
    torch.manual_seed(0)
    data = make_graph()
    model = GCN(CHANNELS, 8, 2, 3).double()
    fast, other = accelerate(model, StaticGraph(data)), copy.deepcopy(model)
    mask = data.train_mask.clone()
    for i in range(3):
        mask[50 + i] = True
        assert_equal(fast, other, data, mask)


def test_changes_in_place():
    torch.manual_seed(0)
    model = GCN(CHANNELS, 8, 2, 3).double()
    for key, match in [
        ('x', r"'x' .* use 'StaticGraph.update\(x\)'"),
        ('edge_index', "use another 'StaticGraph'"),
        ('edge_weight', "'edge_weight' of a 'StaticGraph' was changed"),
    ]:
        data = add_edge_values(make_graph())
        fast = accelerate(model, StaticGraph(data))
        fast(data.train_mask)
        data[key][..., 0] = 0
        with pytest.raises(RuntimeError, match=match):
            fast(data.train_mask)
    data.x = torch.zeros_like(data.x)  # The graph keeps its own.
    assert fast.graph.data.x.any()


def test_update():
    data = make_graph()
    graph = StaticGraph(data)
    graph.select(data.train_mask, 1)
    assert graph.num_bytes > 0
    graph.update(2 * data.x)
    assert graph.num_bytes == 0
    assert torch.equal(graph.data.x, 2 * data.x)
    with pytest.raises(ValueError, match='for each of the 300 nodes'):
        graph.update(data.x[1:])
    with pytest.raises(ValueError, match='needs no gradient'):
        graph.update(data.x.clone().requires_grad_())
    graph.update(data.x[:, :3].float())
    assert graph.data.x.shape == (NUM_NODES, 3)


def test_copies():
    data = make_sparse(make_graph())
    graph = StaticGraph(data)
    assert copy.deepcopy(graph) is graph
    graph.select(data.train_mask, 1)
    other = pickle.loads(pickle.dumps(graph))
    assert torch.equal(other.data.x, data.x)
    assert len(other.whole.inputs) == 1 and other.num_nodes == NUM_NODES


def test_memory_is_freed():
    """Without a collection of what refers to itself."""
    data = make_graph()
    graph = StaticGraph(data)
    part = graph.select(data.train_mask, 1).subgraph
    refs = [weakref.ref(graph), weakref.ref(part)]
    del graph, part
    assert [ref() for ref in refs] == [None, None]


def test_memory_stays_the_same():
    torch.manual_seed(0)
    data = make_sparse(make_graph())
    model = GCN(CHANNELS, 8, 2, 3).double()
    fast, sizes = accelerate(model, StaticGraph(data)), []
    for i in range(40):
        fast(torch.tensor([i % 10, 50 + i % 10]))
        sizes.append(fast.graph.num_bytes)
    assert sizes[-1] == sizes[-11]
    assert len(fast._calls) == 2


def test_errors():
    data = make_graph()
    with pytest.raises(TypeError, match="'data' needs to be a 'Data'"):
        StaticGraph(data.to_dict())

    def check(match, **kwargs):
        other = copy.copy(data)
        for key, value in kwargs.items():
            other[key] = value
        with pytest.raises(ValueError, match=match):
            StaticGraph(other)

    x, edge_index = data.x, data.edge_index
    check("needs to hold 'x'", x=None)
    check("needs to hold 'edge_index'", edge_index=None)
    check('dense matrix that needs no gradient', x=x.to_sparse())
    check('dense matrix', x=x[:, 0])
    check('requires_grad=True', x=x.clone().requires_grad_())
    check('torch.int64', edge_index=edge_index.int())
    check(r'shape \[2, num_edges\]', edge_index=edge_index[0])
    check(r'needs to be in \[0, 300\)', edge_index=edge_index + 20)
    check('got -1 to 288', edge_index=edge_index - 1)
    check("'edge_weight' .* each of the 521", edge_weight=torch.rand(3))
    check("'edge_attr' .* each of the 521", edge_attr=[1, 2])


NODES = st.integers(0, 4)


@given(st.lists(st.tuples(NODES, NODES), max_size=8), st.booleans())
def test_undirected(edges, reverse):
    if reverse:
        edges = edges + [(v, u) for u, v in edges]
    edge_index = torch.tensor(edges).view(-1, 2).t().long()
    graph = StaticGraph(Data(x=torch.randn(5, 2), edge_index=edge_index))
    expected = sorted(edges) == sorted((v, u) for u, v in edges)
    assert graph.undirected == expected


def test_with_edges():
    data = make_sparse(make_graph())
    graph = StaticGraph(data)
    inputs = graph.whole.inputs[id(data.x)]
    other = copy.copy(data)
    other.edge_index = data.edge_index[:, ::2]
    model = GCN(CHANNELS, 8, 2, 3).double()
    found = accelerate(model, graph.with_edges(other))()
    torch.testing.assert_close(found, accelerate(model, StaticGraph(other))())
    expected = accelerate(model, StaticGraph(data))()
    torch.testing.assert_close(accelerate(model, graph)(), expected)
    for x in [graph, graph.with_edges(other)]:
        x.clear()  # Features are not compressed again.
        assert x.whole.inputs[id(data.x)] is inputs
    other.x = data.x.clone()
    with pytest.raises(ValueError, match="same features 'x'"):
        graph.with_edges(other)
