import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.lottery.edges.prune_edges import (
    digest_edges,
    prune_edges,
    whole_graph,
)
from torch_geometric_ext.utils import number_edges

MASK = torch.tensor([True, False, True, True])


def graph(**kwargs):
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 3]])
    return Data(x=torch.randn(4, 2), edge_index=edge_index, **kwargs)


def test_prune_edges():
    data = graph(
        edge_attr=torch.arange(4),
        edge_weight=torch.rand(4),
        # As many labels of edges as edges, and as many edges as nodes:
        edge_label=torch.ones(4),
        edge_label_index=torch.ones(2, 4).long(),
        # As 'RandomLinkSplit(split_labels=True)' calls them:
        pos_edge_label=torch.ones(4),
        neg_edge_label_index=torch.ones(2, 4).long(),
        other_edge_index=torch.ones(2, 4).long(),
        y=torch.arange(4),
    )
    keys, before = data.keys(), data.clone()
    out = prune_edges(data, MASK)
    assert out.edge_index.tolist() == [[0, 2, 3], [1, 3, 3]]
    assert out.edge_attr.tolist() == [0, 2, 3]
    assert torch.equal(out.edge_weight, data.edge_weight[MASK])
    for key in data.keys():
        if key not in ['edge_index', 'edge_attr', 'edge_weight']:
            assert torch.equal(out[key], data[key])
    assert data.keys() == keys
    assert all(torch.equal(data[key], before[key]) for key in keys)


def test_prune_edges_numbered():
    data = graph(e_id=torch.tensor([3, 1, 1, 0]))
    out = prune_edges(data, MASK)
    assert out.e_id.tolist() == [3, 0]
    assert out.edge_index.tolist() == [[0, 3], [1, 3]]
    # It can be pruned again:
    again = prune_edges(out, ~MASK)
    assert again.num_edges == 0 and again.num_nodes == 4
    with pytest.raises(ValueError, match='needs to have the 3 edges'):
        prune_edges(graph(), MASK[:3])


def test_prune_edges_of_batches():
    generator = torch.Generator().manual_seed(0)
    graphs = [graph(edge_attr=torch.rand(4)) for _ in range(3)]
    graphs.insert(1, prune_edges(graphs[0], torch.zeros(4).bool()))
    graphs = number_edges(graphs)
    keys = ['edge_index', 'edge_attr']
    batch = Batch.from_data_list(graphs, follow_batch=keys)
    mask = torch.rand(12, generator=generator) < 0.5
    out = prune_edges(batch, mask)
    assert out.num_graphs == 4
    for i, data in enumerate(out.to_data_list()):
        expected = prune_edges(graphs[i], mask)
        for key in data.keys():
            assert torch.equal(data[key], expected[key])
        assert torch.equal(out[i].edge_index, expected.edge_index)
    assert batch[2].num_edges == 4  # It stays what it is.
    for key in keys:
        count = torch.bincount(out[f'{key}_batch'], minlength=4)
        assert count.tolist() == out[f'{key}_ptr'].diff().tolist()
        assert int(count.sum()) == out.num_edges == int(mask.sum())


def test_prune_edges_of_seeds():
    # As many seeds, layers and graphs as edges:
    seeds = dict(
        input_id=torch.arange(4),
        src_index=torch.arange(4),
        dst_pos_index=torch.arange(4),
        dst_neg_index=torch.arange(4),
        num_sampled_nodes=[1, 1, 1, 1],
        ptr=torch.arange(4),
    )
    data = graph(e_id=torch.arange(4), **seeds)
    data.x = torch.randn(6, 2)
    out = prune_edges(data, MASK)
    assert out.num_edges == out.e_id.numel() == 3
    assert all(out[key] is value for key, value in seeds.items())


def test_prune_edges_of_hops():
    edge_index = torch.tensor([[1, 2, 3, 4, 1], [0, 0, 1, 1, 2]])
    hops = dict(num_sampled_nodes=[1, 2, 2], num_sampled_edges=[2, 3])
    data = Data(x=torch.randn(5, 2), edge_index=edge_index, **hops)
    data.e_id = torch.tensor([4, 2, 0, 1, 3])
    out = prune_edges(data, torch.tensor([True, True, False, False, True]))
    assert out.num_sampled_edges == [1, 2]
    assert data.num_sampled_edges == [2, 3]
    model = GraphSAGE(2, 4, 2, 3).eval()
    trimmed = model(
        out.x,
        out.edge_index,
        num_sampled_nodes_per_hop=out.num_sampled_nodes,
        num_sampled_edges_per_hop=out.num_sampled_edges,
    )
    whole = model(out.x, out.edge_index)
    torch.testing.assert_close(trimmed[0], whole[0])


def test_prune_edges_of_other_orders():
    data = graph()
    order = digest_edges(data)
    assert prune_edges(data, MASK, order).num_edges == 3
    data.edge_index = data.edge_index.int()
    assert prune_edges(data, MASK, order).num_edges == 3
    data.edge_index = data.edge_index.flip(1)
    with pytest.raises(ValueError, match="'edge_index' .* in their order"):
        prune_edges(data, MASK, order)
    data.e_id = torch.arange(4).flip(0)
    assert prune_edges(data, MASK, order).e_id.tolist() == [3, 2, 0]


def test_prune_edges_of_changed_batches():
    with pytest.raises(TypeError, match=r"'Data' .* \(got <class 'tuple'>\)"):
        prune_edges((graph(), 1), MASK)
    data = graph(e_id=torch.arange(3))  # A transform added an edge.
    with pytest.raises(ValueError, match='got 3 numbers of 4 edges'):
        prune_edges(data, MASK)
    data = graph(e_id=torch.arange(4))
    data.edge_index = None
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        prune_edges(data, MASK)


@pytest.mark.filterwarnings('ignore:Unable to accurately infer')
def test_prune_edges_without_features():
    data = Data(edge_index=torch.tensor([[0, 4], [1, 0]]))
    out = prune_edges(data, torch.tensor([True, False]))
    assert out.num_nodes == data.num_nodes == 5
    assert 'num_nodes' not in data


def test_whole_graph():
    data = graph()
    assert whole_graph(data) is data

    class Loader(list):
        data = graph()

    assert whole_graph(Loader()) is Loader.data
    Loader.data, Loader.dataset = None, [graph(e_id=torch.arange(4))]
    assert whole_graph(Loader()).num_edges == 4
    assert whole_graph([graph(e_id=torch.arange(4))]).num_edges == 4
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph([data])
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        whole_graph(Data(x=torch.randn(2, 2)))
    both = graph(adj_t=torch.eye(4).to_sparse())
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        whole_graph(both)
    with pytest.raises(ValueError, match="edges as 'edge_index', and not"):
        prune_edges(both, torch.ones(4, dtype=torch.bool))
    Loader.data = graph(e_id=torch.tensor([5, 6, 7, 8]))  # Of another graph.
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph(Loader())
    Loader.data, Loader.dataset = None, [graph()]
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph(Loader())
    with pytest.raises(ValueError, match="number their edges by 'e_id'"):
        whole_graph(graph(e_id=torch.tensor([5, 6, 7, 8])))


@pytest.mark.parametrize(
    'e_id, match',
    [
        (torch.tensor([0, 1, 2, 4]), r'\[0, 4\).* 0 to 4'),
        (torch.tensor([-1, 1, 2, 3]), r'\[0, 4\).* -1 to 3'),
        (torch.arange(4.0), 'torch.int64 .*torch.float32'),
        (torch.ones(4, dtype=torch.bool), 'torch.int64 .*torch.bool'),
        ([0, 1, 2, 3], 'torch.int64 .*list'),
    ],
)
def test_numbers_of_other_edges(e_id, match):
    with pytest.raises(ValueError, match=f"'e_id' of 'data' .*{match}"):
        prune_edges(graph(e_id=e_id), torch.ones(4, dtype=torch.bool))
