import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from devices import withDevice
from torch_geometric_ext.data.tree_gcn_norm import tree_gcn_norm
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)


@withDevice
@pytest.mark.parametrize('dtype', [torch.long, torch.float, torch.double])
def test_tree_gcn_norm(dtype, device):
    # A path of three nodes, each with a label of its own:
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]], device=device)
    x = torch.arange(3, device=device).view(-1, 1).to(dtype)
    data = Data(x=x, edge_index=edge_index)
    shared = ShareComputationTrees(1, gcn_norm=True)(4 * [data])
    label = torch.tensor([0, 1, 2], device=device)
    ptr = torch.tensor([0, 1, 3, 4], device=device)
    child = torch.tensor([1, 0, 2, 1], device=device)
    out = tree_gcn_norm(shared, label, ptr, child, num_self_loops=3)
    assert out[0].tolist() == [0, 2, 5, 7]
    assert out[1].tolist() == [1, 0, 0, 2, 1, 1, 2]
    assert out[2].dtype == (dtype if dtype != torch.long else torch.float)

    target = torch.tensor([0, 0, 1, 1, 1, 2, 2], device=device)
    edges, expected = gcn_norm(edge_index, num_nodes=3, dtype=torch.double)
    dense = torch.zeros(3, 3, dtype=torch.double, device=device)
    expected = dense.index_put((edges[1], edges[0]), expected)
    weight = dense.index_put((target, out[1]), out[2].double())
    eps = torch.finfo(out[2].dtype).eps
    assert torch.allclose(weight, expected, rtol=2 * eps, atol=0)

    # Leaves have degrees but neither children nor self-loops:
    leaves = ptr[[0, 1, 1, 1]]
    ptr, child, _ = tree_gcn_norm(shared, label, leaves, child[:1], 1)
    assert ptr.tolist() == [0, 2, 2, 2] and child.tolist() == [1, 0]


def test_loader_and_graphs_have_the_same_weights():
    star = torch.tensor([[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]])
    graphs = [Data(x=torch.ones(4, 1), edge_index=star, y=0)]
    kwargs = dict(num_graphs=1, gcn_norm=True)
    small = MirageCondense(1, **kwargs)(graphs)
    shared = MirageCondense(1, **kwargs, share=True)(graphs)
    batch = next(iter(SharedTreeLoader(shared)))
    weight = Batch.from_data_list(list(small)).edge_weight
    assert torch.equal(weight.sort()[0], batch.edge_weight.sort()[0])
