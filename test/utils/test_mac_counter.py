import copy

import pytest
import torch
from torch.nn import (
    GRU,
    LSTM,
    Bilinear,
    Conv1d,
    ConvTranspose1d,
    Linear,
    MultiheadAttention,
    ReLU,
    Sequential,
    TransformerEncoderLayer,
)
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric import EdgeIndex
from torch_geometric.nn import GATv2Conv, HeteroLinear, SimpleConv

from accelerator import NAME, UNSUPPORTED
from devices import withDevice
from torch_geometric_ext.utils.mac_counter import (
    MACCounter,
    num_elements,
    unfused,
)


class Apply(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def count(model, *inputs, **kwargs):
    """Return the MACs of a forward pass and of a training step."""
    model = copy.deepcopy(model)
    counter = MACCounter(model)
    with unfused(), counter:
        model(*inputs, **kwargs)
    return sum(counter.forward.values()), sum(counter.training.values())


def count_flops(model, *inputs, **kwargs):
    """Return the same as `count`, measured by PyTorch."""
    with FlopCounterMode(display=False) as forward:
        out = model(*inputs, **kwargs)
    with FlopCounterMode(display=False) as backward:
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    num_flops = forward.get_total_flops()
    return num_flops // 2, (num_flops + backward.get_total_flops()) // 2


@withDevice
def test_mac_counter_training_step(device):
    x = torch.randn(5, 6, 8, device=device, requires_grad=True)
    y, frozen = x.detach(), Linear(16, 16).requires_grad_(False)
    for model, inputs in [
        (Sequential(Linear(8, 16), frozen, ReLU(), Linear(16, 4)), (y,)),
        (Sequential(Conv1d(6, 4, 3), ReLU(), Conv1d(4, 3, 2)), (y,)),
        (ConvTranspose1d(6, 4, 3, stride=2), (y,)),
        (MultiheadAttention(8, 2), (x, y, y)),
        (TransformerEncoderLayer(8, 2, 16), (y,)),
        (GRU(8, 4, 2), (y,)),
        (Apply(torch.matmul), (x, y.mT)),
        (Apply(lambda x: torch.baddbmm(x.mT @ x, x.mT, x)), (x,)),
    ]:
        if device.type == NAME and type(model).__name__ in UNSUPPORTED:
            continue
        with unfused():
            expected = count_flops(model.to(device), *inputs)
        assert count(model, *inputs) == expected, model


def test_mac_counter_closed_forms():
    x, y = torch.randn(5, 8), torch.randn(5, 3)
    assert count(Apply(torch.mv), x, x[0]) == (40, 40)
    assert count(Apply(torch.dot), x[0], x[1]) == (8, 8)
    assert count(Apply(torch.addmv), x[:, 0], x, x[0]) == (40, 40)
    assert count(Apply(torch.einsum), 'ni,no->io', x, y) == (120, 120)

    num_macs = 5 * 8 * 3 * 4
    assert count(Bilinear(8, 3, 4), x, y) == (num_macs, 2 * num_macs)

    index = torch.tensor([0, 1, 1, 2, 2])
    assert count(HeteroLinear(8, 4, 3), x, index) == (160, 2 * 160)

    inputs, states = 3 * 5 * 8 * 16, 3 * 5 * 4 * 16
    training = (
        2 * inputs + 3 * states - states // 5
    )  # The first state is constant.
    out = count(LSTM(8, 4, batch_first=True), torch.randn(3, 5, 8))
    assert out == (inputs + states, training)


def test_mac_counter_attention():
    x = torch.randn(3, 5, 8)
    model = MultiheadAttention(8, 2, batch_first=True)
    linear, scores = 3 * 5 * 8 * 8, 2 * 3 * 5 * 5 * 8
    expected = (4 * linear + scores, 2 * 3 * linear + 3 * (linear + scores))
    assert count(model, x, x, x) == expected
    assert count(model, x, x, x, need_weights=False) == expected

    # Frozen models are not fused, either:
    model = model.eval().requires_grad_(False)
    assert count(model, x, x, x, need_weights=False) == (expected[0],) * 2
    model = TransformerEncoderLayer(8, 2, 16).eval().requires_grad_(False)
    assert count(model, x)[0] > 0


@pytest.mark.filterwarnings('ignore:Sparse')
def test_mac_counter_sparse_matrices():
    x = torch.randn(5, 8, requires_grad=True)
    edge_index = torch.tensor([[0, 1, 1], [1, 0, 4]])
    coo = torch.sparse_coo_tensor(edge_index, torch.ones(3), (5, 5))
    csr = coo.to_sparse_csr()
    for adj in [coo, csr]:
        assert num_elements(adj) == 3
        assert count(Apply(torch.matmul), adj, x) == (24, 48)
        assert count(Apply(torch.sparse.mm), adj, x) == (24, 48)
        assert count(Apply(torch.mv), adj, x[:, 0]) == (3, 6)
    mean = Apply(lambda adj, x: torch.sparse.mm(adj, x, 'mean'))
    assert count(mean, csr, x) == (24, 48)
    assert count(Apply(torch.matmul), torch.randn(7, 5), csr) == (21, 21)
    adj = EdgeIndex(edge_index, sparse_size=(5, 5)).sort_by('row')[0]
    assert count(Apply(torch.matmul), adj, x) == (24, 48)


def test_mac_counter_scores():
    x, y = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    for function in [
        lambda x, y: (x * y).sum(dim=-1),
        lambda x, y: torch.sum(x * y),
    ]:
        assert count(Apply(function), x, y) == (40, 80)
        assert count(Apply(function), y, y) == (40, 40)
    for function in [
        lambda x, y: x * y,
        lambda x, y: (2 * x).sum(),
        lambda x, y: x.sum() * y.sum(),
    ]:
        assert count(Apply(function), x, y) == (0, 0)


def test_mac_counter_messages():
    x = torch.randn(5, 8, requires_grad=True)
    edge_index = torch.tensor([[0, 1, 1], [1, 0, 4]])
    weight = torch.rand(3)
    conv = SimpleConv()
    assert count(conv, x, edge_index) == (24, 48)
    assert count(conv, x, edge_index, weight) == (24, 48)
    assert count(conv, x, edge_index, weight.requires_grad_()) == (24, 72)
    assert count(conv, x.detach(), edge_index, weight) == (24, 48)
    assert count(conv, x[:0], edge_index[:, :0]) == (0, 0)

    conv = GATv2Conv(8, 4, heads=2, bias=False)
    linear, attention = 2 * 5 * 8 * 8, 2 * (3 + 5) * 8
    expected = (linear + attention, 3 * (linear + attention))
    assert count(conv, x, edge_index) == expected
