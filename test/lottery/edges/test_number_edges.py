import copy

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.testing import withCUDA

from torch_geometric_ext.utils import number_edges


@withCUDA
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
