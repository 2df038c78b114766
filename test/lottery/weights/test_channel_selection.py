import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn import BatchNorm1d, Module
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    GATv2Conv,
    GCNConv,
    GraphSAGE,
    GroupAddRev,
    Linear,
    SAGEConv,
)

from devices import withDevice
from torch_geometric_ext.lottery.weights.channel_selection import (
    _Probe,
    find_channels,
)


def graph(num_nodes=20, num_features=6, device=None):
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(num_nodes, (2, 3 * num_nodes), generator=generator)
    x = torch.randn(num_nodes, num_features, generator=generator)
    y = torch.arange(num_nodes) % 3
    mask = torch.arange(num_nodes) < 10
    data = Data(x=x, edge_index=edges, y=y, train_mask=mask, val_mask=~mask)
    return data.to(device)


def layers(model):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (Linear, torch.nn.Linear))
    ]


def find(model, size, data=None):
    data = graph() if data is None else data
    return find_channels(model, loss_fn, data, layers(model), size, 1)[0]


def loss_fn(model, data):
    out = model(data.x, data.edge_index)[data.train_mask]
    return torch.nn.functional.cross_entropy(out, data.y[data.train_mask])


def where(mask):
    return mask.nonzero().flatten().tolist()


class Residual(Module):
    def __init__(self):
        super().__init__()
        self.first = Linear(6, 8)
        self.convs = torch.nn.ModuleList([GCNConv(8, 8) for _ in range(3)])
        self.last = Linear(8, 3)

    def forward(self, x, edge_index):
        x = self.first(x)
        for conv in self.convs:
            x = x + conv(x, edge_index).relu()
        return self.last(x)


class Normalized(Module):
    """Constant channels are shifted, then read by attention."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(6, 8)
        self.norm = BatchNorm1d(8)
        self.last = GATv2Conv(8, 3)
        torch.nn.init.normal_(self.norm.bias)
        torch.nn.init.normal_(self.conv.bias)

    def forward(self, x, edge_index):
        return self.last(self.norm(self.conv(x, edge_index)), edge_index)


class Shared(Module):
    """A layer that reads features first, and then its own outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = GCNConv(8, 8), Linear(8, 3)

    def forward(self, x, edge_index):
        for _ in range(2):
            x = self.conv(x, edge_index).relu()
        return self.last(x)


MODELS = {
    'GCN': lambda: GCN(6, 8, 3, 3),
    'SAGE': lambda: GraphSAGE(6, 8, 3, 3),
    'GAT': lambda: GAT(6, 8, 3, 3, heads=2),
    'GIN': lambda: GIN(6, 8, 3, 3, act='tanh'),
    'concatenated': lambda: GCN(6, 8, 3, 3, jk='cat'),
    'residual': Residual,
    'normalized': Normalized,
}


def test_layers_that_read_features_keep_their_inputs():
    torch.manual_seed(0)
    names, data = ['conv.lin', 'last'], graph(num_features=8)
    for channels in find_channels(Shared(), loss_fn, data, names, 30, 1):
        assert 0 < channels.rows['conv.lin'].sum() < 8
        assert channels.cols['conv.lin'].all()
        assert torch.equal(channels.cols['last'], channels.rows['conv.lin'])


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [20, 60, 80])
def test_find_channels(name, size):
    torch.manual_seed(0)
    model, data = MODELS[name](), graph(num_nodes=300)
    channels = find(model, size, data)
    names = layers(model)
    numel = sum(model.get_submodule(name).weight.numel() for name in names)
    num_weights = sum(channels.num_weights(name) for name in names)
    assert min(size, numel) <= num_weights <= numel

    hidden = set()
    for key in names:
        weight = model.get_submodule(key).weight
        assert channels.mask(key).shape == weight.shape
        assert channels.mask(key).sum() == channels.num_weights(key)
        if weight.size(0) == 8:
            hidden.add(tuple(where(channels.rows[key])))
        if key == names[-1]:  # The result of the model.
            assert channels.rows[key].all()
        if weight.size(1) == 6:  # Features.
            assert channels.cols[key].all()
        if weight.size(1) == 8:
            assert where(channels.cols[key]) == where(channels.rows[names[0]])
        if weight.size(1) == 24:  # Three layers, side by side.
            cols = channels.cols[key].view(3, 8)
            assert (cols == channels.rows[names[0]]).all()
    assert len(hidden) == 1  # The same ones everywhere.
    assert 0 < len(hidden.pop()) < 8


@given(st.integers(1, 8), st.integers(0, 10))
def test_find_channels_equals_narrow_model(num_channels, seed):
    torch.manual_seed(seed)
    model, data = GCN(6, 8, 2, 3), graph()
    # Weights of a narrow model, all of them:
    channels = find(model, 9 * num_channels, data)
    first, second = model.convs[0].lin, model.convs[1].lin
    kept = channels.rows['convs.0.lin']
    score = first.weight.square().sum(dim=1)
    expected = score.topk(num_channels).indices.sort().values
    assert where(kept) == expected.tolist()

    narrow = GCN(6, num_channels, 2, 3)
    narrow.load_state_dict(
        {
            'convs.0.lin.weight': first.weight[kept],
            'convs.0.bias': model.convs[0].bias[kept],
            'convs.1.lin.weight': second.weight[:, kept],
            'convs.1.bias': model.convs[1].bias,
        }
    )
    with torch.no_grad():
        first.weight *= channels.mask('convs.0.lin')
        second.weight *= channels.mask('convs.1.lin')
        out = model(data.x, data.edge_index)
        expected = narrow(data.x, data.edge_index)
    assert torch.allclose(out, expected, atol=1e-6)


@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.booleans())
def test_find_channels_of_heads(num_channels, num_heads, v2):
    torch.manual_seed(num_channels)
    model = GAT(6, 16, 2, 3, heads=num_heads, v2=v2, act='tanh')
    num_kept = num_channels * num_heads
    names = layers(model)
    first = [name for name in names if 'convs.0' in name]
    numel = sum(model.get_submodule(x).weight.size(0) for x in names[-1:])
    size = num_kept * (6 * len(first) + numel * (len(names) - len(first)))
    channels = find(model, size)
    weights = [model.get_submodule(name).weight for name in first]
    score = sum(x.square().sum(dim=1) / x.square().sum() for x in weights)
    score = score.view(num_heads, -1)
    for name in first:
        kept = channels.rows[name].view(num_heads, -1)
        assert (kept.sum(dim=1) == num_channels).all()
        for head in range(num_heads):
            best = score[head].topk(num_channels).indices.sort().values
            assert where(kept[head]) == best.tolist()


def test_find_channels_where_all_remain():
    torch.manual_seed(0)
    for model in [Linear(6, 3), GCNConv(6, 3)]:
        data = graph()

        class Model(Module):
            def __init__(self, layer=model):
                super().__init__()
                self.layer = layer

            def forward(self, x, edge_index):
                if isinstance(self.layer, GCNConv):
                    return self.layer(x, edge_index)
                return self.layer(x)

        outer = Model()
        channels = find(outer, 1, data)
        assert all(channels.mask(name).all() for name in layers(outer))
    model = GCN(6, 8, 2, 3)
    channels = find(model, 72)  # All of them.
    assert all(channels.mask(name).all() for name in layers(model))
    channels = find(model, 73)  # More than there are.
    assert all(channels.mask(name).all() for name in layers(model))


def test_find_channels_with_as_many_outputs_as_channels():
    torch.manual_seed(0)
    model = GCN(6, 8, 3, 8)
    channels = find(model, 40)
    assert channels.rows['convs.2.lin'].all()
    assert not channels.rows['convs.1.lin'].all()
    assert where(channels.cols['convs.2.lin']) == where(
        channels.rows['convs.1.lin']
    )


def test_find_channels_with_as_many_features_as_channels():
    torch.manual_seed(0)
    model, data = GCN(8, 8, 2, 3), graph(num_features=8)
    data.x[:, 2] = 1.0  # As constant as a pruned channel.
    channels = find(model, 20, data)
    assert channels.cols['convs.0.lin'].all()


class Wrapped(Module):
    """A hidden layer that is called in its own way."""

    def __init__(self, call):
        super().__init__()
        self.first, self.lin = Linear(6, 8), Linear(8, 8)
        self.last = Linear(8, 3)
        self.call = call

    def forward(self, x, edge_index):
        return self.last(self.call(self.lin, self.first(x).relu()))


def test_find_channels_of_layers_called_by_keywords():
    torch.manual_seed(0)
    model = Wrapped(lambda lin, x: lin(x=x))
    channels = find(model, 30)
    kept = where(channels.rows['first'])
    assert 0 < len(kept) < 8
    assert where(channels.cols['lin']) == where(channels.rows['lin']) == kept


def test_find_channels_of_reversible_layers():
    torch.manual_seed(0)
    layer = GroupAddRev(SAGEConv(4, 4), num_groups=2)
    edges = graph().edge_index
    model = Wrapped(lambda lin, x: layer(lin(x), edges))
    model.layer = layer  # Frees its inputs, and its outputs in backward.
    channels = find(model, 30)
    assert 0 < len(where(channels.rows['first'])) < 8


def test_find_channels_of_layers_called_at_times():
    torch.manual_seed(0)
    passes = [lambda lin, x: lin(x)]
    model = Wrapped(lambda lin, x: passes.pop()(lin, x) if passes else x)
    channels = find(model, 30)
    assert 0 < len(where(channels.rows['first'])) < 8


def test_find_channels_of_layer_that_also_gives_the_result():
    torch.manual_seed(0)
    model = Wrapped(lambda lin, x: lin(lin(x).relu()))
    model.last = torch.nn.Identity()
    channels = find(model, 30)
    assert channels.rows['lin'].all()
    assert not channels.rows['first'].all()


def test_find_channels_without_gradients():
    def adversarial_loss(model, data):
        x = data.x.clone().requires_grad_()
        model(x, data.edge_index).square().sum().backward()
        return model(x + x.grad, data.edge_index).square().sum()

    def loss_fn(model, data):
        return model(data.x, data.edge_index).square().sum()

    torch.manual_seed(0)
    checked = Wrapped(lambda lin, x: checkpoint(lin, x, use_reentrant=True))
    for model, loss in [
        (checked, loss_fn),
        (GCN(6, 8, 2, 3), adversarial_loss),
    ]:
        channels, _ = find_channels(model, loss, graph(), layers(model), 30, 1)
        assert all(channels.mask(name).all() for name in layers(model))


def test_find_channels_of_loss_that_takes_gradients():
    def loss_fn(model, data):
        x = data.x.clone().requires_grad_()
        energy = model(x, data.edge_index).square().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return force.square().mean()

    torch.manual_seed(0)
    model = GCN(6, 8, 2, 3, act='tanh')
    names = layers(model)
    with torch.no_grad():
        channels, _ = find_channels(model, loss_fn, graph(), names, 30, 1)
    assert 0 < len(where(channels.rows['convs.0.lin'])) < 8


def test_find_channels_does_not_change_the_model():
    torch.manual_seed(0)
    model, data = MODELS['normalized'](), graph()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    find(model, 20, data)
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])
    assert all(x.grad is None for x in model.parameters())
    assert not any(x._forward_hooks for x in model.modules())


@withDevice
def test_find_channels_on_device(device):
    torch.manual_seed(0)
    model = GCN(6, 8, 2, 3)
    expected = find(model, 30)
    found = find(model.to(device), 30, graph(device=device))
    for key, rows in found.rows.items():
        assert rows.device == device
        assert where(rows) == where(expected.rows[key])
        assert where(found.cols[key]) == where(expected.cols[key])


@pytest.mark.parametrize('size', [100, 400, 1000, 2000])
def test_number_of_observations(monkeypatch, size):
    """The first guess of the number of channels and its neighbor decide."""
    calls = []

    def record(self, rows, record=_Probe._record):
        calls.append(rows)
        return record(self, rows)

    monkeypatch.setattr(_Probe, '_record', record)
    torch.manual_seed(0)
    model, data = GCN(6, 256, 2, 3), graph(num_nodes=300)
    channels = find(model, size, data)
    found = sum(map(channels.num_weights, layers(model)))
    assert size <= found < size + 6 + 3  # A channel holds so many weights.
    assert len(calls) <= 3
