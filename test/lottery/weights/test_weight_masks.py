import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.nn import BatchNorm1d, Linear, ReLU, Sequential
from torch_geometric.nn import GCN, GCNConv

from devices import withDevice
from torch_geometric_ext.lottery.weights.weight_masks import (
    Weights,
    build_model,
    clear_caches,
    global_masks,
    random_masks,
    read_weights,
    weight_key,
)
from torch_geometric_ext.nn import SparseLinear

SIZES = {'a': (3, 4), 'b': (2, 2), 'c': (1, 5)}
TOTAL = 21


def random_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f'{name}.weight': torch.randn(*size, generator=generator)
        for name, size in SIZES.items()
    }


def naive_masks(state, exists, size):
    """The largest of each layer first, then the largest of all."""
    scores = {}
    for name in SIZES:
        for i, x in enumerate(state[f'{name}.weight'].flatten().tolist()):
            if exists[name].flatten()[i]:
                scores[name, i] = abs(x)
    order = sorted(scores, key=scores.get, reverse=True)
    firsts = [next(x for x in order if x[0] == name) for name in SIZES]
    others = [x for x in order if x not in firsts]
    return set(firsts + others[: size - len(firsts)])


def positions(masks):
    return {
        (name, i)
        for name, mask in masks.items()
        for i in mask.flatten().nonzero().flatten().tolist()
    }


@settings(max_examples=30)
@given(st.integers(3, TOTAL), st.integers(0, 1000))
def test_global_masks(size, seed):
    state = random_state(seed)
    first = global_masks(Weights(state, {}), list(SIZES), size)
    exists = {
        name: torch.ones(x, dtype=torch.bool) for name, x in SIZES.items()
    }
    assert positions(first) == naive_masks(state, exists, size)

    # Pruned weights do not grow again:
    state, smaller = random_state(seed + 1), max(3, size // 2)
    second = global_masks(Weights(state, first), list(SIZES), smaller)
    assert positions(second) == naive_masks(state, first, smaller)
    assert positions(second) <= positions(first)


@settings(max_examples=20)
@given(st.integers(3, TOTAL))
def test_random_masks(size):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return random_masks(random_state(), list(SIZES), size, generator)

    masks = draw(seed=0)
    assert len(positions(masks)) == size
    assert all(mask.any() for mask in masks.values())
    assert positions(masks) == positions(draw(seed=0))


@withDevice
@pytest.mark.parametrize('kind', ['layers', 'root'])
def test_build_model(device, kind):
    model = Sequential(Linear(4, 6), BatchNorm1d(6), ReLU(), Linear(6, 2))
    names = ['0', '3']
    if kind == 'root':
        model, names = Linear(4, 6), ['']
    model = model.to(device)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    masks = global_masks(Weights(before, {}), names, 9)
    sparse = build_model(model, Weights(before, masks))
    assert isinstance(sparse.get_submodule(names[0]), SparseLinear)
    num = sum(
        x.values.numel()
        for x in sparse.modules()
        if isinstance(x, SparseLinear)
    )
    assert num == 9

    state, again = read_weights(sparse)
    assert {key: x.tolist() for key, x in again.items()} == {
        key: x.tolist() for key, x in masks.items()
    }
    for name in names:
        key = weight_key(name)
        assert torch.equal(state[key], before[key] * masks[name])
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])


def test_clear_caches():
    edge_index = torch.tensor([[0, 1], [1, 0]])
    model = GCN(4, 8, 2, 3, cached=True)
    x = torch.randn(2, 4)
    model(x, edge_index)
    clear_caches(model)
    convs = [x for x in model.modules() if isinstance(x, GCNConv)]
    assert all(conv._cached_edge_index is None for conv in convs)
    assert all(conv.cached for conv in convs)


def test_read_weights():
    # A layer of two names, in a model that holds a tensor of its last pass:
    model = Sequential(Linear(4, 4), ReLU(), Linear(4, 4, bias=False))
    model.append(model[0])
    state = {key: x.clone() for key, x in model.state_dict().items()}
    masks = global_masks(Weights(state, {}), ['0', '2'], 12)
    sparse = build_model(model, Weights(state, masks))
    assert sparse[0] is sparse[3]
    sparse.last = sparse(torch.randn(2, 4))
    out = read_weights(sparse)
    assert out.state.keys() == state.keys() and list(out.masks) == ['0', '2']
    for key in ['0.weight', '3.weight']:
        assert torch.equal(out.state[key], state[key] * masks['0'])
    again = read_weights(build_model(model, out))
    for key, x in again.state.items():
        assert torch.equal(x, out.state[key])
