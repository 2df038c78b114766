import pytest
import torch
import torch_geometric.nn as pyg
from torch.nn import Linear, ModuleDict

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear, sparsify, sparsity_summary
from torch_geometric_ext.sparsity import ADMM, SLR, MagnitudePruner


@withDevice
def test_sparsified_model(device):
    model = pyg.GCN(16, 32, num_layers=2, out_channels=8).to(device)
    dense = sparsity_summary(model)
    assert dense.sparsity == 0 and dense.num_active == dense.num_weights == 768
    assert set(dense.skipped) == {'convs.0.lin', 'convs.1.lin'}

    sparsify(model, 0.75, 'uniform', ignored=['convs.1'])
    out = sparsity_summary(model)
    assert out.skipped == {'convs.1.lin': 'ignored or not sparsified'}
    assert out.num_weights == 768 and out.num_active == 128 + 256
    assert out.sparsity == 0.5 and out.num_other == 40
    first, second = out.layers
    assert first == ('convs.0.lin', 'SparseLinear', (32, 16), 512, 128, None)
    assert first.sparsity == 0.75 and second.sparsity == 0
    assert second.kind == 'Linear' and second.shape == (8, 32)
    assert str(out).splitlines() == [
        'Layer        Type          Shape     Weights  Active  Sparsity'
        '  Dense because',
        'convs.0.lin  SparseLinear  [32, 16]      512     128    0.7500',
        'convs.1.lin  Linear        [8, 32]       256     256    0.0000'
        '  ignored or not sparsified',
        'Total                                    768     384    0.5000',
        'Other parameters: 40',
    ]


@pytest.mark.parametrize('Pruner', [MagnitudePruner, ADMM, SLR])
@pytest.mark.parametrize('sparse', [True, False])
def test_pruned_model(Pruner, sparse):
    model = pyg.GCN(16, 32, num_layers=2, out_channels=8)
    num_other = sparsity_summary(model).num_other
    model.convs[1].lin.register_forward_hook(lambda *args: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, sparsity=0.75)
    out = sparsity_summary(pruner.finalize(sparse))
    assert out.skipped == {'convs.1.lin': 'has hooks'}
    assert [x.num_active for x in out.layers] == [128, 256]
    assert out.num_other == num_other


def test_reasons():
    shared = Linear(8, 8)
    model = ModuleDict(
        {
            'a': shared,
            'b': shared,
            'attn': torch.nn.MultiheadAttention(8, 2),
            'norm': torch.nn.utils.parametrizations.spectral_norm(
                Linear(8, 8)
            ),
            'lazy': pyg.Linear(-1, 8),
            'lazy_sparse': SparseLinear(-1, 8),
        }
    )
    state = {key: x.clone() for key, x in model['norm'].state_dict().items()}
    out = sparsity_summary(model)
    assert out.skipped == {
        'a': 'ignored or not sparsified',
        'attn.out_proj': 'another module reads its weight',
        'norm': 'its weight is parametrized',
        'lazy': 'not initialized',
        'lazy_sparse': 'not initialized',
    }
    assert out.num_weights == out.num_active == 3 * 64
    # The projections of the attention, and biases:
    assert out.num_other == 3 * 64 + 3 * 8 + 3 * 8 + 2 * 8
    for key, x in model['norm'].state_dict().items():
        assert torch.equal(x, state[key])


def test_single_layer_and_none():
    out = sparsity_summary(SparseLinear(8, 4, sparsity=0.5))
    assert out.num_active == 16 and '(model)' in str(out)
    out = sparsity_summary(torch.nn.ReLU())
    assert out.layers == [] and out.sparsity == 0 and out.num_weights == 0
    assert 'Total' in str(out)


def test_other_arguments():
    with pytest.raises(TypeError, match="'model' .* module .*got 'int'"):
        sparsity_summary(3)
