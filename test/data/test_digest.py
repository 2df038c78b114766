import pytest
import torch
from torch_geometric import EdgeIndex

from devices import withDevice
from torch_geometric_ext.data.digest import digest


def test_digest():
    x = torch.arange(6).view(2, 3)
    values = [
        x,
        x.flatten(),
        x.int(),
        x.flip(1),
        x.bfloat16(),
        x[:0],
        x[0, 0],
        {'x': x},
        [x, x],
        'x',
        None,
        1,
        1.0,
    ]
    found = [digest(value) for value in values]
    assert len(set(found)) == len(values)
    assert found == [digest(value) for value in values]
    assert digest(x, 1) == digest(x, 1) != digest(1, x)
    assert digest(iter([x, x])) == digest([x, x]) == digest((x, x))


def test_digest_of_dictionaries():
    assert digest({'x': 1}) != digest({'y': 1})
    assert digest({'x': 1, 'y': 2}) == digest({'y': 2, 'x': 1})
    assert digest({'x': 1, 2: 3}) == digest({2: 3, 'x': 1})


@pytest.mark.filterwarnings('ignore:Sparse')
def test_digest_of_other_layouts():
    x = torch.tensor([[0, 1], [1, 0]])
    assert digest(x.t().contiguous().t()) == digest(x)
    assert digest(x.to_sparse()) == digest(x.to_sparse_csr()) == digest(x)
    assert digest(EdgeIndex(x)) == digest(x)
    weight = torch.rand(3, requires_grad=True)
    assert digest(weight) == digest(weight.detach())


@withDevice
def test_digest_of_devices(device):
    x = torch.rand(3)
    assert digest(x.to(device)) == digest(x)
