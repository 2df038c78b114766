import copy

import numpy as np
import pytest
import torch
from torch.nn import LSTM, BatchNorm1d, Embedding, LayerNorm, Module
from torch_geometric.data import Data
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    PNA,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GPSConv,
    GraphSAGE,
    Linear,
    TransformerConv,
)

from devices import withDevice
from torch_geometric_ext.lottery.weights import weight_pruner
from torch_geometric_ext.lottery.weights.narrow_model import (
    narrow_model,
    narrow_weights,
    widen_weights,
)
from torch_geometric_ext.lottery.weights.weight_masks import Weights
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.utils import GraphLotteryPruner, Ticket

SHORT = dict(
    weight_sparsity=0.95,
    pretrain_epochs=4,
    search_epochs=8,
    retrain_epochs=4,
    update_every=2,
)


def graph(num_nodes=100, device=None, num_features=6):
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(num_nodes, (2, 300), generator=generator)
    y = torch.arange(num_nodes) % 3
    x = torch.randn(num_nodes, num_features, generator=generator)
    x = x + y.view(-1, 1)
    mask = torch.arange(num_nodes) < 50
    data = Data(x=x, edge_index=edges, y=y, train_mask=mask, val_mask=~mask)
    return data.to(device)


class Residual(Module):
    def __init__(self):
        super().__init__()
        self.first = Linear(6, 64)
        self.convs = torch.nn.ModuleList([GCNConv(64, 64) for _ in range(3)])
        self.norms = torch.nn.ModuleList([BatchNorm1d(64) for _ in range(3)])
        self.last = Linear(64, 3)

    def forward(self, x, edge_index):
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms):
            x = x + norm(conv(x, edge_index)).relu()
        return self.last(x)


class Attention(Module):
    def __init__(self):
        super().__init__()
        self.first = Linear(6, 64)
        self.conv = GPSConv(64, GCNConv(64, 64), heads=4)
        self.last = Linear(64, 3)

    def forward(self, x, edge_index):
        return self.last(self.conv(self.first(x), edge_index))


class Normalized(Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(6, 64)
        self.norm = LayerNorm(64)
        self.last = GCNConv(64, 3)

    def forward(self, x, edge_index):
        x = self.norm(self.conv(x, edge_index)).relu()
        return self.last(x, edge_index)


class Heads(Module):
    """Layers of as many channels, with two and with eight heads."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(
            [GATConv(6, 32, heads=2), GATv2Conv(64, 8, heads=8)]
        )
        self.last = Linear(64, 3)

    def forward(self, x, edge_index):
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return self.last(x)


class Scaled(Module):
    """A parameter of the shape of attention without heads."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Linear(6, 64), Linear(64, 3)
        self.scale = torch.nn.Parameter(torch.randn(1, 4, 16))

    def forward(self, x, edge_index):
        scale = self.scale.transpose(1, 2).reshape(-1)
        return self.last((self.first(x) * scale).relu())


class Residuals(Module):
    """Weights of no layer read biases of pruned channels (GCNII)."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Linear(6, 64), Linear(64, 3)
        self.convs = torch.nn.ModuleList(
            [GCN2Conv(64, 0.1, 0.5, i + 1) for i in range(3)]
        )
        self.last.weight.data *= 1e-3  # Losses hardly differ at first.

    def forward(self, x, edge_index):
        x = start = self.first(x).relu()
        for conv in self.convs:
            x = conv(x, start, edge_index).relu()
        return self.last(x)


class Transformer(Module):
    """Attention is divided by the root of the number of channels."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(
            [TransformerConv(6, 64), TransformerConv(64, 3)]
        )
        self.convs[0].lin_query.weight.data *= 1e-3

    def forward(self, x, edge_index):
        x = self.convs[0](x, edge_index).relu()
        return self.convs[1](x, edge_index)


class Supervised(Module):
    """Some layers run in training only."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = GCNConv(6, 64), Linear(64, 3)
        self.other = Linear(64, 3)

    def forward(self, x, edge_index):
        x = self.conv(x, edge_index).relu()
        out = self.last(x)
        return out + 0.1 * self.other(x) if self.training else out


class Masked(Module):
    """Features of some nodes are replaced in training."""

    def __init__(self):
        super().__init__()
        self.token = torch.nn.Parameter(torch.zeros(1, 64))
        self.conv, self.last = GCNConv(64, 64), Linear(64, 3)

    def forward(self, x, edge_index):
        x = x.repeat(1, 11)[:, :64]
        if self.training:
            x = torch.where(torch.rand(x.size(0), 1) < 0.1, self.token, x)
        return self.last(self.conv(x, edge_index).relu())


class Recurrent(Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = GCNConv(6, 64), Linear(32, 3)
        self.rnn = LSTM(64, 16, bidirectional=True)  # 4 * 16 rows.

    def forward(self, x, edge_index):
        x = self.conv(x, edge_index).relu()
        return self.last(self.rnn(x[None])[0][0])


class Embedded(Module):
    """As many rows of embeddings as channels."""

    def __init__(self):
        super().__init__()
        self.embedding = Embedding(64, 8)
        self.convs = torch.nn.ModuleList([GCNConv(8, 64), GCNConv(64, 3)])

    def forward(self, x, edge_index):
        x = self.embedding(x[:, 0].abs().mul(10).long())
        x = self.convs[0](x, edge_index).relu()
        return self.convs[1](x, edge_index)


NARROW = {
    'GCN': lambda: GCN(6, 64, 3, 3),
    'SAGE': lambda: GraphSAGE(6, 64, 3, 3, norm='batch_norm'),
    'GIN': lambda: GIN(6, 64, 3, 3, norm='BatchNorm'),
    'one head': lambda: GAT(6, 64, 3, 3),
    'heads': lambda: GAT(6, 64, 3, 3, heads=4),
    'as many heads as channels': lambda: GAT(6, 64, 3, 3, heads=8),
    'many heads': lambda: GAT(6, 128, 3, 3, heads=32, residual=True),
    'two sides': lambda: GAT(6, 64, 3, 3, heads=4, v2=True, jk='cat'),
    'several numbers of heads': Heads,
    'concatenated': lambda: GCN(6, 64, 3, 3, jk='cat'),
    'max': lambda: GCN(6, 64, 3, 3, jk='max'),
    'residual': Residual,
    'lazy': lambda: GCN(-1, 64, 3, 3),
    'as many outputs': lambda: GCN(6, 64, 3, 64),
    'embedded': Embedded,
}
WIDE = {
    'normalized': Normalized,
    'scaled': Scaled,
    'attention': Attention,
    'PNA': lambda: PNA(
        6,
        64,
        3,
        3,
        aggregators=['mean', 'std'],
        scalers=['identity'],
        deg=torch.tensor([1, 20, 30]),
        divide_input=False,
    ),
    'residuals': Residuals,
    'transformer': Transformer,
    'supervised': Supervised,
    'masked': Masked,
    'recurrent': Recurrent,
}


def find(model, data, **kwargs):
    return GraphLotteryPruner(model, **{**SHORT, **kwargs}).fit(data)


@pytest.mark.parametrize('name', NARROW)
def test_narrow(name):
    torch.manual_seed(0)
    model, data = NARROW[name](), graph()
    ticket = find(model, data, edge_sparsity=0.2)
    total = sum(mask.numel() for mask in ticket.weight_masks.values())
    num_kept = sum(int(x.sum()) for x in ticket.weight_masks.values())
    assert num_kept == round(0.05 * total)

    for weights in ['final', 'initial']:
        wide, small = ticket.apply(model, data, weights=weights)
        expected = wide(small.x, small.edge_index)
        state = wide.state_dict()
        for sparse in [False, True]:
            narrow, _ = ticket.apply(
                model, narrow=True, sparse=sparse, weights=weights
            )
            out = narrow(small.x, small.edge_index)
            assert torch.allclose(out, expected, atol=1e-4, rtol=1e-4)
            # It is smaller, and trains like any other:
            assert sum(x.numel() for x in narrow.parameters()) < sum(
                x.numel() for x in wide.parameters()
            )
            assert sparse == any(
                isinstance(x, SparseLinear) for x in narrow.modules()
            )
            narrow.train()(small.x, small.edge_index).sum().backward()
            assert all(x.grad is not None for x in narrow.parameters())
            for module in narrow.modules():
                if isinstance(module, (Linear, torch.nn.Linear)):
                    size = (
                        (module.out_channels, module.in_channels)
                        if (isinstance(module, Linear))
                        else (module.out_features, module.in_features)
                    )
                    assert size == tuple(module.weight.shape)
        for key, x in wide.state_dict().items():
            assert torch.equal(x, state[key])


@pytest.mark.parametrize('heads', [1, 4])
def test_narrow_models_have_room_for_weights_to_move(heads):
    torch.manual_seed(0)
    model, data = GAT(6, 256, 2, 3, heads=heads), graph()
    ticket = find(model, data, weight_sparsity=0.9)
    narrow, _ = ticket.apply(model, narrow=True)
    num_kept = sum(int(x.sum()) for x in ticket.weight_masks.values())
    room = sum(x.weight.numel() for x in narrow.modules() if has_weight(x))
    density = 0.25 if heads == 1 else 0.125
    assert 0.9 * density < num_kept / room <= density


def has_weight(module):
    return isinstance(module, (Linear, torch.nn.Linear))


@pytest.mark.parametrize('lr', [1e-2, 1e-4])  # Biases are zero at first.
@pytest.mark.parametrize('name', WIDE)
def test_not_narrow(name, lr):
    def optimizer(params):
        return torch.optim.Adam(params, lr)

    torch.manual_seed(0)
    model, data = WIDE[name](), graph()
    ticket = find(model, data, optimizer=optimizer, pretrain_epochs=2)
    assert ticket.narrow_index is None
    with pytest.raises(ValueError, match="'narrow' needs a ticket"):
        ticket.apply(model, data, narrow=True)


def test_ignored_layers_are_not_narrow():
    torch.manual_seed(0)
    model = GCN(6, 64, 3, 3, bias=False)
    ticket = find(model, graph(), ignored=['convs.1'])
    assert ticket.narrow_index is None
    before = ticket.initial_state['convs.1.lin.weight']
    after = ticket.final_state['convs.1.lin.weight']
    assert (before != after).float().mean() > 0.9


def test_narrow_search_equals_wide(monkeypatch):
    # The same search with channels of zero weights:
    torch.manual_seed(0)
    model, data = GCN(6, 64, 2, 3), graph()
    narrow = find(model, data)
    assert narrow.narrow_index is not None
    monkeypatch.setattr(weight_pruner, 'find_index', lambda *args: None)
    wide = find(model, data)
    assert wide.narrow_index is None
    for key, mask in narrow.weight_masks.items():
        assert torch.equal(mask, wide.weight_masks[key])
    for key, x in narrow.final_state.items():
        assert torch.allclose(x, wide.final_state[key], atol=1e-5)
    assert narrow.metrics == wide.metrics


@pytest.mark.parametrize('noise', [1.0, 1e-7])
def test_narrow_with_random_loss(noise):
    # Large noise, as of negative samples, or small, as of reordered sums:
    def loss_fn(model, data):
        out = model(data.x, data.edge_index)
        return out.square().mean() * (1 + noise * np.random.rand())

    torch.manual_seed(0)
    model, data = GCN(6, 64, 2, 3), graph()
    pruner = GraphLotteryPruner(model, **SHORT)
    ticket = pruner.fit(data, loss_fn, lambda model, data: 0.0)
    assert (ticket.narrow_index is None) == (noise == 1.0)


def test_narrow_resumes(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, data, path = GCN(6, 64, 2, 3), graph(), tmp_path / 'search.pt'
    expected = find(model, data)

    class Interruption(Exception):
        pass

    def interrupt(progress):
        if progress.stage == 'search' and progress.epoch == 4:
            raise Interruption

    pruner = GraphLotteryPruner(model, **SHORT)
    kwargs = dict(checkpoint=path, checkpoint_every=1)
    with pytest.raises(Interruption):
        pruner.fit(data, callbacks=[interrupt], **kwargs)
    monkeypatch.delattr(weight_pruner, 'find_channels')  # Not called.
    ticket = pruner.fit(data, **kwargs)
    for key, x in ticket.final_state.items():
        assert torch.equal(x, expected.final_state[key])
    for key, kept in ticket.narrow_index.items():
        for dim, index in kept.items():
            assert torch.equal(index, expected.narrow_index[key][dim])
    ticket.save(tmp_path / 'ticket.pt')
    loaded = Ticket.load(tmp_path / 'ticket.pt', model)
    outs = [
        x.apply(model, narrow=True)[0](data.x, data.edge_index)
        for x in [ticket, loaded]
    ]
    assert torch.equal(*outs)


def test_narrow_and_widen_weights():
    state = {
        'a.weight': torch.arange(12.0).view(3, 4),
        'a.bias': torch.arange(3.0),
        'count': torch.tensor(5),
    }
    index = {
        'a.weight': {0: torch.tensor([0, 2]), 1: torch.tensor([1, 3])},
        'a.bias': {0: torch.tensor([0, 2])},
    }
    masks = {'a': torch.zeros(3, 4, dtype=torch.bool)}
    masks['a'][2, 3] = True
    before = copy.deepcopy(state)
    small = narrow_weights(Weights(state, masks), index)
    assert small.state['a.weight'].tolist() == [[1, 3], [9, 11]]
    assert small.state['a.bias'].tolist() == [0, 2]
    assert small.state['count'] == 5
    assert small.masks['a'].tolist() == [[False, False], [False, True]]
    small.state['a.weight'].mul_(small.masks['a'])
    small.state['a.bias'].add_(10)
    wide = widen_weights(small, index, state)
    assert torch.equal(wide.masks['a'], masks['a'])
    assert torch.equal(wide.state['a.weight'], state['a.weight'] * masks['a'])
    assert wide.state['a.bias'].tolist() == [10, 1, 12]
    for key, x in state.items():
        assert torch.equal(x, before[key])


def test_narrow_model_shares_tensors():
    model = torch.nn.ModuleList([Linear(4, 3), Linear(4, 3)])
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    index = {f'{i}.weight': {0: torch.tensor([1])} for i in range(2)}
    narrow = narrow_model(model, index)
    assert narrow[0].weight is narrow[1].weight
    assert not narrow[0].weight.requires_grad
    assert narrow[0].weight.shape == (1, 4) and model[0].weight.shape == (3, 4)
    assert narrow[1].out_channels == 1


@withDevice
def test_narrow_on_device(device):
    torch.manual_seed(0)
    model, data = GCN(6, 64, 2, 3).to(device), graph(device=device)
    ticket = find(model, data)
    wide, _ = ticket.apply(model)
    narrow, _ = ticket.apply(model, narrow=True)
    out = narrow(data.x, data.edge_index)
    assert out.device == device
    expected = wide(data.x, data.edge_index)
    assert torch.allclose(out, expected, atol=1e-4)
