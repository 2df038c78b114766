import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn import Module, Sequential
from torch_geometric.data import Data
from torch_geometric.nn import GCN, Linear

from torch_geometric_ext.lottery.weights import narrow_index
from torch_geometric_ext.lottery.weights.channel_selection import Channels
from torch_geometric_ext.lottery.weights.narrow_index import find_index


def graph():
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(20, (2, 60), generator=generator)
    x = torch.randn(20, 6, generator=generator)
    return Data(x=x, edge_index=edge_index)


class Deviating(Module):
    """Outputs depend a bit on the mean of all channels."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.last = Linear(6, 32), Linear(32, 3)
        self.scale = scale

    def forward(self, x, edge_index):
        x = self.first(x).relu()
        return self.last(x) + self.scale * x.mean(dim=-1, keepdim=True)


def find(model, loss=None, batch=None, num_channels=8):
    rows, cols = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            rows[name] = torch.ones(module.out_channels, dtype=torch.bool)
            cols[name] = torch.ones(module.in_channels, dtype=torch.bool)
    first, second = rows
    rows[first][num_channels:] = False
    cols[second][num_channels:] = False
    return find_index(
        model,
        Channels(rows, cols),
        model.state_dict(),
        loss or loss_fn,
        graph() if batch is None else batch,
        seed=0,
    )


def loss_fn(model, batch):
    return model(batch.x, batch.edge_index).square().mean()


def test_find_index():
    model = GCN(6, 32, 2, 3)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    torch.manual_seed(5)
    index = find(model)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    assert {key: list(x) for key, x in index.items()} == {
        'convs.0.bias': [0],
        'convs.0.lin.weight': [0],
        'convs.1.lin.weight': [1],
    }
    for positions in index.values():
        for x in positions.values():
            assert x.tolist() == list(range(8))
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])
    assert find(GCN(6, 32, 2, 3), num_channels=32) is None


def test_find_index_in_double_precision(monkeypatch):
    # No deviation of 1e-6 would be seen in single precision:
    dtypes = []

    def loss(model, batch):
        dtypes.append(batch.x.dtype)
        return loss_fn(model, batch)

    assert find(Deviating(0.0), loss) is not None
    assert find(Deviating(1e-6), loss) is None
    assert set(dtypes) == {torch.double}
    monkeypatch.setattr(narrow_index, 'MAX_DOUBLE', 100)
    assert find(Deviating(1e-6)) is not None
    assert find(Deviating(0.1)) is None


def test_find_index_of_tensors():
    model = Sequential(Linear(6, 32), torch.nn.ReLU(), Linear(32, 3))
    dtypes = []

    def loss(model, x):
        dtypes.append(x.dtype)
        return model(x).square().mean()

    assert find(model, loss, graph().x) is not None
    assert set(dtypes) == {torch.double}


@pytest.mark.parametrize('scale', [0.0, 0.1])
def test_find_index_in_own_precision(scale):
    # If the loss allows no other one:
    target = torch.rand(20, 3)

    def loss(model, batch):
        assert batch.x.dtype == torch.float
        return F.mse_loss(model(batch.x, batch.edge_index), target)

    assert (find(Deviating(scale), loss) is None) == (scale > 0)
    # Mini-batches of other types are not cast:
    tuples = lambda model, batch: loss(model, Data(*batch))  # noqa: E731
    batch = (graph().x, graph().edge_index)
    found = find(Deviating(scale), tuples, batch)
    assert (found is None) == (scale > 0)


@pytest.mark.parametrize('noise', [1e-8, 1e-6, 1.0])
def test_find_index_of_random_losses(noise):
    def loss(model, batch):
        return loss_fn(model, batch) * (1 + noise * np.random.rand())

    assert (find(GCN(6, 32, 2, 3), loss) is None) == (noise == 1.0)
