import copy
import logging

import pytest
import torch
import torch_geometric.nn as pyg
from torch.nn.utils.parametrizations import weight_norm

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear, densify, sparsify
from torch_geometric_ext.nn.named_seed import named_seed

EDGE_INDEX = torch.tensor(
    [[0, 1, 2, 3, 4, 5, 0, 2, 4, 1], [1, 2, 3, 4, 5, 0, 3, 5, 1, 4]]
)
LINEARS = (torch.nn.Linear, pyg.Linear)
TYPES = ['a', 'b']
EDGE_TYPES = [('a', 'to', 'b'), ('b', 'to', 'a'), ('a', 'on', 'a')]


class Net(torch.nn.Module):
    """Call a module with features and edges."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x, EDGE_INDEX.to(x.device))


class Hetero(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        edge_index = EDGE_INDEX.to(x.device)
        edges = {edge_type: edge_index for edge_type in EDGE_TYPES}
        out = self.module({key: x for key in TYPES}, edges)
        return torch.cat([out[key] for key in TYPES], dim=-1)


def gps():
    nn = pyg.MLP([16, 32, 16])
    return pyg.GPSConv(16, pyg.GINConv(nn), heads=2)


def pna():
    return pyg.PNAConv(
        16,
        16,
        aggregators=['mean', 'max'],
        scalers=['identity', 'linear'],
        deg=torch.tensor([0, 2, 4]),
        towers=2,
        pre_layers=2,
        post_layers=2,
    )


def hetero_sage():
    model = pyg.GraphSAGE((-1, -1), 32, num_layers=2, out_channels=8)
    return pyg.to_hetero(model, (TYPES, EDGE_TYPES))


MODELS = {
    'GCN': lambda: Net(pyg.GCN(16, 32, 2, 8)),
    'SAGE': lambda: Net(pyg.GraphSAGE(16, 32, 2, 8, jk='cat')),
    'SAGE-project': lambda: Net(pyg.SAGEConv(16, 8, project=True)),
    'GIN': lambda: Net(pyg.GIN(16, 32, 2, 8)),
    'GAT': lambda: Net(pyg.GAT(16, 32, 2, 8, heads=2)),
    'GATv2': lambda: Net(pyg.GATv2Conv(16, 8, share_weights=True)),
    'PNA': lambda: Net(
        pyg.PNA(
            16,
            32,
            2,
            8,
            aggregators=['mean', 'max'],
            scalers=['identity'],
            deg=torch.tensor([0, 2, 4]),
        )
    ),
    'PNA-towers': lambda: Net(pna()),
    'GPS': lambda: Net(gps()),
    'MLP': lambda: pyg.MLP([16, 32, 8], norm=None),
    'torch': lambda: torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)
    ),
    'to_hetero': lambda: Hetero(hetero_sage()),
    'HeteroConv': lambda: Hetero(
        pyg.HeteroConv(
            {
                key: pyg.GATConv(16, 8, add_self_loops=False)
                for key in EDGE_TYPES
            }
        )
    ),
    'HGT': lambda: Hetero(pyg.HGTConv(16, 8, (TYPES, EDGE_TYPES), heads=2)),
    'transformer': lambda: torch.nn.TransformerEncoderLayer(
        16, 2, dim_feedforward=32, dropout=0.0
    ),
}


def sparse_layers(model):
    return [m for m in model.modules() if isinstance(m, SparseLinear)]


@pytest.fixture(params=MODELS)
def pair(request):
    """Return a model and its input."""
    torch.manual_seed(12345)
    model = MODELS[request.param]()
    x = torch.randn(6, 16)
    with torch.no_grad():
        model(x)
    return model, x


def test_every_layer_learns(pair):
    model, x = pair
    before = sum(isinstance(m, LINEARS) for m in model.modules())
    assert sparsify(model, sparsity=0.5, min_fan_in=2) is model
    dense = [m for m in model.modules() if isinstance(m, LINEARS)]
    assert len(sparse_layers(model)) == before - len(dense) > 0
    assert all('NonDynamically' in type(m).__name__ for m in dense)

    model(x).square().sum().backward()
    for layer in sparse_layers(model):
        assert layer.values.grad.abs().sum() > 0


def test_equal_at_sparsity_0(pair):
    model, x = pair
    model.eval()
    expected = model(x)
    state = model.state_dict()
    sparsify(model, sparsity=0.0)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    densify(model)
    assert list(model.state_dict()) == list(state)
    for a, b in zip(model.state_dict().values(), state.values()):
        assert torch.equal(a, b)


def test_densify(pair):
    model, x = pair
    keys = list(model.state_dict())
    types = [type(module) for module in model.modules()]
    sparsify(model, sparsity=0.7, min_fan_in=2).eval()
    expected = model(x)
    assert densify(model) is model
    assert len(sparse_layers(model)) == 0
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == types


@pytest.mark.parametrize('cls', LINEARS)
def test_a_single_layer(cls):
    linear = cls(64, 32)
    out = sparsify(linear, sparsity=0.75)
    assert str(out).startswith('SparseLinear(64, 32, bias=True, sparsity=0.75')
    # Dense values, divided by the square root of the density 1/4:
    assert torch.equal(out.weight, 2 * linear.weight * out.mask)
    assert torch.equal(out.bias, linear.bias)
    dense = densify(out)
    assert type(dense) is cls
    assert torch.equal(dense.weight, out.weight)


def test_keeps_the_variance():
    torch.manual_seed(12345)
    linear = torch.nn.Linear(512, 256, bias=False)
    x = torch.randn(256, 512)
    expected = linear(x).std()
    out = sparsify(linear, sparsity=0.9)(x).std()
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0)


def test_distribution():
    mlp = pyg.MLP([100, 40, 10], norm=None)
    model = sparsify(copy.deepcopy(mlp), 0.9, 'uniform')
    assert [x.values.numel() for x in model.lins] == [400, 40]
    model = sparsify(copy.deepcopy(mlp), 0.9, min_fan_in=0)
    # 440 weights at a ratio of 140 to 50:
    assert [x.values.numel() for x in model.lins] == [324, 116]
    model = sparsify(copy.deepcopy(mlp), 0.9, min_fan_in=16)
    # Minimums of 640 and 160 weights are scaled down to half of 440 weights,
    # 176 and 44, which are no minimums any more:
    assert [x.values.numel() for x in model.lins] == [324, 116]


def test_patterns_depend_on_name_and_seed_only():
    mlp = pyg.MLP([32, 32, 32], norm=None)
    deep = pyg.MLP([32, 32, 32, 32], norm=None)
    masks = [
        [lin.mask for lin in sparsify(copy.deepcopy(m), 0.8, seed=s).lins]
        for m, s in [(mlp, 1), (mlp, 1), (deep, 1), (mlp, 2)]
    ]
    assert torch.equal(masks[0][0], masks[1][0])
    assert torch.equal(masks[0][1], masks[1][1])
    assert torch.equal(masks[0][1], masks[2][1])
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][0], masks[3][0])


def test_global_generator_is_unchanged():
    mlp = pyg.MLP([32, 32, 32])
    state = torch.get_rng_state()
    sparsify(mlp, sparsity=0.8)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_are_equal_in_all_processes():
    assert named_seed(0, 'convs.0.lin') == 29236586169133970


def test_ignored():
    def find_dense(*ignored):
        model = pyg.GAT(8, 16, num_layers=11, out_channels=4, jk='cat')
        sparsify(model, 0.5, ignored=ignored)
        return [n for n, m in model.named_modules() if isinstance(m, LINEARS)]

    assert find_dense() == []
    assert find_dense('convs.1') == ['convs.1.lin']
    assert find_dense('convs.1.lin', 'lin') == ['convs.1.lin', 'lin']
    assert len(find_dense(pyg.GATConv)) == 11
    for entry in ['convs.11', 'con', 'norms', pyg.GCNConv, pyg.Linear(1, 1)]:
        with pytest.raises(ValueError, match="'ignored' .* linear layer"):
            find_dense(entry)

    model = pyg.GAT(8, 16, num_layers=2)
    sparsify(model, 0.5, ignored=[model.convs[1]])
    assert len(sparse_layers(model)) == 1
    with pytest.raises(TypeError, match=r"'ignored' .* \(got 'convs.1'\)"):
        sparsify(model, 0.5, ignored='convs.1')


def test_shared_layers():
    conv = sparsify(pyg.GATv2Conv(16, 8, share_weights=True), 0.5)
    assert isinstance(conv.lin_l, SparseLinear) and conv.lin_l is conv.lin_r
    assert densify(conv).lin_l is conv.lin_r

    head = torch.nn.Linear(16, 4)
    model = torch.nn.ModuleDict(
        {'a': torch.nn.Sequential(torch.nn.Linear(16, 16), head), 'b': head}
    )
    with pytest.raises(ValueError, match="'model' needs a linear layer"):
        sparsify(model, 0.5, ignored=['a.0', 'b'])
    sparsify(model, 0.5)
    assert model['b'] is model['a'][1]
    # A shared layer counts once: 320 weights, not 384.
    assert sum(x.values.numel() for x in sparse_layers(model)) == 160


class Scaled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_that_stay_dense(caplog):
    tied = pyg.Linear(8, 8)
    tied.weight = torch.nn.Parameter(tied.weight)
    hooked = torch.nn.Linear(8, 8)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    model = torch.nn.ModuleDict(
        {
            'attn': torch.nn.MultiheadAttention(8, 2),
            'pmlp': pyg.PMLP(8, 8, 8, num_layers=2),
            'scaled': Scaled(8, 8),
            'norm': weight_norm(torch.nn.Linear(8, 8)),
            'old_norm': torch.nn.utils.spectral_norm(torch.nn.Linear(8, 8)),
            'tied': tied,
            'emb': torch.nn.Embedding(8, 8),
            'hooked': hooked,
            'plain': torch.nn.Linear(8, 8),
        }
    )
    model['emb'].weight = tied.weight
    with caplog.at_level(logging.INFO):
        sparsify(model, 0.5)
    for name, reason in [
        ('attn.out_proj', 'another module reads its weight'),
        ('pmlp.lins.0', 'another module reads its weight'),
        ('pmlp.lins.1', 'another module reads its weight'),
        ('scaled', "overrides 'forward'"),
        ('norm', 'its weight is parametrized'),
        ('old_norm', 'its weight is parametrized'),
        ('tied', 'shares a parameter with another module'),
        ('hooked', 'has hooks'),
    ]:
        assert isinstance(model.get_submodule(name), LINEARS)
        assert f"'{name}' ({reason})" in caplog.text
    assert sparse_layers(model) == [model['plain']]
    del model['plain']
    with pytest.raises(ValueError, match="not in .*'hooked' \\(has hook"):
        sparsify(model, 0.5)


def test_lazy_layers():
    model = pyg.GraphSAGE((-1, -1), 16, num_layers=2, out_channels=4)
    expected = r"one forward pass first \(got .*'convs.0.lin_l', 'convs.0.lin"
    with pytest.raises(ValueError, match=expected):
        sparsify(model, 0.5)
    assert sparse_layers(model) == []
    sparsify(copy.deepcopy(model), 0.5, ignored=['convs.0'])
    model(torch.randn(6, 8), EDGE_INDEX)
    assert len(sparse_layers(sparsify(model, 0.5))) == 4

    lazy = torch.nn.Sequential(SparseLinear(-1, 4))
    with pytest.raises(ValueError, match=r"forward pass first .*\['0'\]"):
        densify(lazy)
    model = torch.nn.Sequential(torch.nn.LazyLinear(4))
    model(torch.randn(2, 8))
    assert isinstance(densify(sparsify(model, 0.5))[0], torch.nn.Linear)


def test_sparse_models():
    model = sparsify(pyg.MLP([16, 16, 8], norm=None), 0.5, ignored=['lins.1'])
    sparsify(model, 0.5)  # The layer that stayed dense.
    modules = list(model.modules())
    with pytest.raises(
        ValueError,
        match=r"'SparseLinear' layers \['lins.0', 'l.*'densify' fir",
    ):
        sparsify(model, 0.9)
    assert list(model.modules()) == modules


def test_meta_device():
    with torch.device('meta'):
        model = pyg.MLP([16, 16, 8], norm=None)
    modules = list(model.modules())
    expected = (
        r"'to_empty\(device=...\)' .* \['lins.0', 'lins.1'\] on the meta"
    )
    with pytest.raises(ValueError, match=expected):
        sparsify(model, 0.5)
    assert list(model.modules()) == modules
    with pytest.raises(ValueError, match="'linear' needs to hold data"):
        SparseLinear.from_dense(model.lins[0], sparsity=0.5)
    model.to_empty(device='cpu').reset_parameters()
    assert len(sparse_layers(sparsify(model, 0.5))) == 2


def test_frozen_and_other_types():
    model = pyg.MLP([16, 16, 8], norm=None).double().eval()
    model.lins[0].requires_grad_(False)
    sparsify(model, 0.5)
    layer = model.lins[0]
    assert layer.values.dtype == layer.bias.dtype == torch.double
    assert not layer.values.requires_grad and not layer.bias.requires_grad
    assert model.lins[1].values.requires_grad
    assert not layer.training


def test_errors_leave_the_model_unchanged():
    for kwargs, message in [
        (dict(sparsity=1.0), r"'sparsity' .* \(got 1.0\)"),
        (dict(distribution='even'), r"'distribution' .* \(got 'even'\)"),
        (dict(min_fan_in=-1), r"'min_fan_in' .* \(got -1\)"),
    ]:
        model = pyg.MLP([16, 16, 2])
        modules = list(model.modules())
        with pytest.raises(ValueError, match=message):
            sparsify(model, **{'sparsity': 0.5, **kwargs})
        assert list(model.modules()) == modules
    with pytest.raises(ValueError, match=r"'model' .* stay dense: none\)"):
        sparsify(torch.nn.ReLU(), 0.5)
    with pytest.raises(ValueError, match="'model' needs a 'SparseLinear'"):
        densify(pyg.MLP([16, 16, 2]))


def test_warning_about_layers_without_weights():
    model = pyg.MLP([100, 100, 1], norm=None)
    with pytest.warns(UserWarning, match=r"no weight in \['lins.1'\]"):
        sparsify(model, 0.999, 'uniform')


@withDevice
def test_device(device):
    model = Net(pyg.GCN(16, 32, 2, 8)).to(device)
    sparsify(model, 0.5)
    x = torch.randn(6, 16, device=device)
    out = model(x)
    out.sum().backward()
    for layer in sparse_layers(model):
        assert layer.values.grad.device == layer.col.device == x.device
    torch.testing.assert_close(densify(model)(x), out, atol=1e-5, rtol=1e-5)
