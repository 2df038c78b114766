import weakref

import hypothesis.strategies as st
import torch
from hypothesis import given
from torch.nn import Linear
from torch_geometric.data import Data

from torch_geometric_ext.full_batch.static_graph import (
    KnownGraph,
    Part,
    call,
)


@given(st.integers(0, 1000), st.integers(0, 4))
def test_part_equals_brute_force(seed, num_hops):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(12, (2, 15), generator=generator)
    mask = torch.rand(12, generator=generator) < 0.2
    nodes = {i for i in range(12) if mask[i]}
    edges = []
    for _ in range(num_hops):
        edges = [i for i in range(15) if int(edge_index[1, i]) in nodes]
        nodes |= {int(edge_index[0, i]) for i in edges}

    part = Part.reached(edge_index, mask, num_hops)
    assert part.nodes.tolist() == sorted(nodes)
    relabeled, index = part.edges(edge_index)
    assert index.tolist() == edges
    assert torch.equal(part.nodes[relabeled], edge_index[:, index])


def test_part_holds_what_a_task_needs():
    x = torch.rand(4, 3)
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])
    mask = torch.tensor([False, True, False, False])
    data = Data(x=x, edge_index=edge_index, y=torch.arange(4))
    data.train_mask, data.val_mask, data.e_id = mask, ~mask, torch.arange(4)
    data.edge_weight, data.edge_attr = torch.rand(4), torch.rand(4, 2)
    graph = KnownGraph(data)
    part = graph.part(graph.data.train_mask, 1)
    assert graph.part(graph.data.train_mask, 1) is part
    assert set(part.data.keys()) == set(data.keys())
    assert torch.equal(part.data.x, x[:2])
    assert part.data.y.tolist() == [0, 1]
    assert part.data.train_mask.tolist() == [False, True]
    assert part.data.edge_index.tolist() == [[0], [1]]
    assert torch.equal(part.data.edge_weight, data.edge_weight[:1])
    assert torch.equal(part.data.edge_attr, data.edge_attr[:1])
    assert part.data.e_id.tolist() == [0]
    assert graph.view(part.data.edge_index) is part
    assert graph.view(edge_index) is graph.whole
    assert graph.view(edge_index.clone()) is None


def test_memory_is_freed():
    """Without a collection of what refers to itself."""
    x, mask = torch.rand(4, 3), torch.arange(4) == 1
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])
    data = Data(x=x, edge_index=edge_index, y=mask)
    data.train_mask = data.val_mask = mask
    graph = KnownGraph(data)
    part = graph.part(graph.data.train_mask, 1)
    refs = [weakref.ref(graph), weakref.ref(part)]
    graph.sums(part, 'key', lambda nodes: x[nodes])
    assert torch.equal(part.sums['key'], x[part.part.nodes])
    del graph, part
    assert [ref() for ref in refs] == [None, None]


def test_call():
    data = Data(
        x=torch.rand(4, 2),
        edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]]),
        edge_weight=torch.rand(4),
        edge_attr=torch.rand(4, 1),
    )

    def check(forward, expected):
        model = Linear(2, 2)
        model.forward = forward
        assert float(call(model, data)) == expected

    check(lambda x, edge_index: torch.zeros(1, 1), 0)
    check(
        lambda feat, adj, edge_weight: edge_weight.sum().view(1, 1),
        float(data.edge_weight.sum()),
    )
    check(
        lambda x, e, edge_attr=None: edge_attr.sum().view(1, 1),
        float(data.edge_attr.sum()),
    )


def test_forget():
    x, mask = torch.eye(40), torch.arange(40) < 2
    edge_index = torch.stack([torch.arange(40), torch.arange(40)])
    data = Data(x=x, edge_index=edge_index, y=mask)
    data.train_mask = data.val_mask = mask
    graph = KnownGraph(data)
    part = graph.part(mask, 1)
    for view in [part, graph.whole]:
        graph.sums(view, 'key', lambda nodes: torch.zeros(40, 40))
    assert [found.x is x for found in graph.inputs] == [True] + [False] * 3
    ref = weakref.ref(part)
    del part, view
    graph.forget()
    assert ref() is None and not graph.whole.sums
    assert [found.x is x for found in graph.inputs] == [True]
