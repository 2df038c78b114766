import torch

from torch_geometric_ext.ops import computation_tree_ids
from torch_geometric_ext.ops.tree_union import unite_levels


def test_unite_levels():
    # A path of three nodes, whose ends are equal:
    x = torch.tensor([0, 1, 0])
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    levels = computation_tree_ids(x, edge_index, num_layers=2).levels
    union = unite_levels(2, levels)
    # Rows: end and center of depth 2, of depth 1, and of depth 0.
    assert union.ptr.tolist() == [0, 1, 3, 4, 6, 6, 6]
    assert union.child.tolist() == [3, 2, 2, 5, 4, 4]
    assert union.own.tolist() == [2, 3, 4, 5, 4, 5]
    assert union.label.tolist() == [0, 1, 0, 1, 0, 1]


def test_graphs_without_edges():
    x, edge_index = torch.tensor([0, 1]), torch.empty(2, 0).long()
    levels = computation_tree_ids(x, edge_index, num_layers=1).levels
    union = unite_levels(2, levels)
    assert union.ptr.tolist() == 5 * [0]
    assert union.child.numel() == 0
    assert union.own.tolist() == [2, 3, 2, 3]
