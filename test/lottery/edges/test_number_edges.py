import copy

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from devices import withDevice
from torch_geometric_ext.utils import number_edges


@withDevice
def test_number_edges(device):
    graphs = [
        Data(edge_index=torch.zeros(2, size, dtype=torch.long), num_nodes=1)
        for size in [3, 0, 2]
    ]
    out = number_edges([copy.copy(data).to(device) for data in graphs])
    assert [data.e_id.tolist() for data in out] == [[0, 1, 2], [], [3, 4]]
    assert all('e_id' not in data for data in graphs)
    assert all(data.e_id.device.type == device.type for data in out)


def test_number_edges_without_edge_index():
    edge_index = torch.tensor([[0, 1], [1, 0]])
    graphs = [Data(edge_index=edge_index), Data(x=torch.ones(1, 1))]
    with pytest.raises(ValueError, match=r"'graphs'.*x=\[1, 1\].*number 1"):
        number_edges(graphs)


def with_edges(edge_index):
    return Data(x=torch.ones(2, 1), edge_index=edge_index)


@pytest.mark.parametrize(
    'graphs, error, match',
    [
        (None, TypeError, "'graphs' .* list of graphs .*NoneType"),
        (with_edges(torch.zeros(2, 3)), TypeError, "'graphs' .*Data"),
        ([3], TypeError, "'graphs' .* 'Data' .*int.* number 0"),
        ([HeteroData()], TypeError, "'graphs' .* 'Data' .*HeteroData"),
        ([with_edges([[0], [1]])], TypeError, "number 0 of 'graphs' .*list"),
        ([with_edges(torch.ones(2, 3))], ValueError, 'torch.float32'),
        ([with_edges(torch.arange(3))], ValueError, r'\[3\]'),
        ([with_edges(torch.tensor([[0], [2]]))], ValueError, r'\[0, 2\)'),
        ([with_edges(torch.tensor([[0], [-1]]))], ValueError, '-1 to 0'),
    ],
)
def test_number_edges_of_other_graphs(graphs, error, match):
    with pytest.raises(error, match=match):
        number_edges(graphs)
