import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import GCN

from searches import flat, graph
from torch_geometric_ext.lottery.weights.weight_masks import (
    Weights,
    read_weights,
)
from torch_geometric_ext.lottery.weights.weight_pruner import WeightPruner
from torch_geometric_ext.nn import SparseLinear

NAMES = ['convs.0.lin', 'convs.1.lin']


def build(sparsity=0.75, **kwargs):
    torch.manual_seed(0)
    return WeightPruner(GCN(5, 64, 2, 3, **kwargs), NAMES, sparsity)


def loss_fn(model, data):
    return F.cross_entropy(model(data.x, data.edge_index), data.y)


def choose(pruner):
    state = {key: x + 0.1 for key, x in pruner.initial.items()}
    model = GCN(5, 64, 2, 3)
    model.load_state_dict(state)
    weights = Weights(state, {})
    pruner.choose_channels(
        model, weights, loss_fn, graph(), loss_fn, graph(), 0
    )
    return weights


def test_weight_pruner():
    pruner = build()
    assert (pruner.num_weights, pruner.target) == (512, 128)
    assert pruner.allowed() == {}
    weights = Weights(pruner.initial, {})
    for masks in [
        pruner.top_masks(weights, 128),
        pruner.random_masks(torch.Generator()),
    ]:
        assert list(masks) == NAMES and pruner.density(masks) == 0.25
        model = pruner.build(weights._replace(masks=masks))
        layers = [x for x in model.modules() if isinstance(x, SparseLinear)]
        assert sum(layer.values.numel() for layer in layers) == 128


def test_weight_pruner_with_channels():
    pruner = build(sparsity=0.95)
    trained = choose(pruner)
    assert pruner.index is not None
    masks = pruner.top_masks(trained, pruner.target)
    channels = {name: pruner.channels.mask(name) for name in NAMES}
    for name, mask in masks.items():
        assert not (mask & ~channels[name]).any()
    # Weights of narrow models grow anywhere:
    allowed = pruner.allowed()
    model = pruner.build(trained._replace(masks=masks))
    for name in NAMES:
        layer = model.get_submodule(name)
        size = (layer.out_channels, layer.in_channels)
        assert allowed[name].shape == size and allowed[name].all()
        assert size[0] * size[1] == channels[name].sum()
    wide = pruner.widen(read_weights(model))
    assert flat(wide.masks) == flat(masks)
    assert {key: x.shape for key, x in wide.state.items()} == {
        key: x.shape for key, x in pruner.initial.items()
    }
    pruner.index = None  # Weights of wide models grow in their channels:
    assert flat(pruner.allowed()) == flat(channels)


def test_weight_pruner_without_layers():
    pruner = WeightPruner(GCN(5, 8, 2, 3), [], 0.0)
    weights = Weights(pruner.initial, {})
    assert pruner.top_masks(weights, 0) == {}
    assert pruner.random_masks(torch.Generator()) == {}
    with pytest.raises(ValueError, match='each of 2 layers.* keeps 0 weights'):
        build(sparsity=0.9999)
