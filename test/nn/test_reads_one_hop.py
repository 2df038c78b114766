import pytest
import torch
from torch_geometric import nn as pyg

from devices import withDevice
from torch_geometric_ext.nn.reads_one_hop import (
    Inputs,
    guess_inputs,
    reads_one_hop,
)


def check(conv, **kwargs):
    found = (reads_one_hop(conv, i, **kwargs) for i in guess_inputs(conv))
    return next((x for x in found if x is not None), None)


@withDevice
@pytest.mark.parametrize(
    'conv, expected',
    [
        (pyg.GATConv(4, 8, heads=2, edge_dim=3), True),
        (pyg.RGCNConv(4, 8, num_relations=5), True),
        (pyg.NNConv(4, 8, torch.nn.Linear(3, 32)), True),
        (pyg.SimpleConv(), True),
        (pyg.GCNConv(4, 8), False),
        (pyg.TAGConv(4, 8), False),
        (pyg.APPNP(2, 0.1), False),
        (pyg.SAGEConv(-1, 8), None),
    ],
)
def test_reads_one_hop(conv, expected, device):
    assert check(conv.to(device)) is expected


def test_self_loops():
    assert check(pyg.GATConv(4, 8), loops=True) is False
    assert check(pyg.GATConv(4, 8, add_self_loops=False), loops=True) is True


def test_batch_norm_uses_running_statistics():
    conv = pyg.GINConv(pyg.MLP([4, 8, 8]))
    state = [x.clone() for x in conv.state_dict().values()]
    assert check(conv) is True
    assert all(map(torch.equal, conv.state_dict().values(), state))


def test_examples_set_the_type():
    conv = pyg.SAGEConv(4, 8).half()
    assert reads_one_hop(conv, Inputs({'x': torch.ones(3, 4).half()}))
    assert reads_one_hop(conv, Inputs({'x': torch.ones(3, 5)})) is None
