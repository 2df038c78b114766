import copy

import pytest
import torch

from torch_geometric_ext.loader import (
    BalancedSampler,
    InfoBatchSampler,
    UCBSampler,
)
from torch_geometric_ext.loader.sampler_state import KEYS

Y = torch.tensor([0] * 14 + [1] * 6)


def make_ucb(size=20, keep_ratio=0.5):
    return UCBSampler(size, keep_ratio, 9)


def make_balanced(size=20, keep_ratio=0.5):
    return BalancedSampler(size, keep_ratio, 9, y=Y[:size])


def train(sampler, num_epochs=3):
    out = []
    for _ in range(num_epochs):
        out.append(list(sampler))
        graph_idx = torch.tensor(out[-1])
        if hasattr(sampler, 'update'):
            sampler.update((graph_idx * 7 % 10).float(), graph_idx)
    return out


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.allclose(
            a, b, rtol=0, atol=0, equal_nan=True
        )
    return type(a) is type(b) and a == b


def assert_same(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        assert equal(value, other[key]), key


# Of a sampler of 20 graphs and a budget of 10 graphs.
DAMAGED = {
    'policy': ['BalancedSamplers', None],
    'size': [21, None],
    'budget': [9, None],
    'epoch': [-2, 1.0, None, -1],
    'started': [None, 1],
    'order': [
        None,
        list(range(10)),
        torch.arange(9),
        torch.arange(0),
        torch.arange(10).float(),
        torch.arange(10).int(),
        torch.arange(10).view(2, 5),
        torch.arange(11, 21),
        torch.arange(-1, 9),
    ],
    'generator': [None, torch.zeros(3), torch.zeros(3, dtype=torch.uint8)],
    'expected': [torch.ones(19), torch.ones(20, 1), [1.0] * 20, Y],
    'graph_idx': [
        None,
        torch.arange(9),
        torch.arange(11, 21),
        torch.arange(10).float(),
        torch.arange(10).view(1, 10),
    ],
    'feedback': [
        None,
        torch.zeros(9, 1),
        torch.zeros(10),
        torch.zeros(10, 2),
        torch.zeros(10, 1).long(),
    ],
    'seen': [None, torch.zeros(20), torch.zeros(19, dtype=torch.bool)],
    'history': [None, [1], {}],
    'losses': [None, torch.zeros(19), torch.zeros(20).long(), [0.0] * 20],
    'variance': [None, torch.zeros(19), torch.zeros(20, 1), 0.0],
}


def test_damaged_states_cover_all_keys():
    assert set(DAMAGED) == {*KEYS, 'losses', 'variance'}
    assert set(DAMAGED) == set(make_ucb().state_dict())


@pytest.mark.parametrize('key', DAMAGED)
def test_damaged_state_is_refused(key):
    sampler, other = make_ucb(), make_ucb()
    train(sampler), train(other, 2)
    state = sampler.state_dict()
    before = copy.deepcopy(other.state_dict())

    incomplete = {name: state[name] for name in state if name != key}
    with pytest.raises(ValueError, match=f"'state_dict' .*'{key}'"):
        other.load_state_dict(incomplete)
    assert_same(other.state_dict(), before)

    for value in DAMAGED[key]:
        # Feedback has the length of the positions, which are checked first:
        name = 'feedback|graph_idx' if key == 'graph_idx' else key
        with pytest.raises(
            ValueError,
            match=rf"'state_dict' of 'UCBSampler' .*'({name}|order)'",
        ):
            other.load_state_dict({**state, key: value})
        assert_same(other.state_dict(), before)
    assert train(other, 1) == train(train_again(), 1)


def train_again():
    sampler = make_ucb()
    train(sampler, 2)
    return sampler


def test_state_is_a_copy():
    for make in [make_ucb, make_balanced]:
        sampler = make()
        train(sampler)
        state = sampler.state_dict()
        before = copy.deepcopy(state)
        expected = train(sampler)
        assert_same(state, before)

        # What loads it does not change it:
        for _ in range(2):
            other = make()
            other.load_state_dict(state)
            assert train(other) == expected
            assert_same(state, before)


def test_state_is_saved_with_weights_only(tmp_path):
    for make in [make_ucb, make_balanced]:
        sampler = make()
        train(sampler)
        torch.save(sampler.state_dict(), tmp_path / 'state.pt')
        expected = train(sampler)
        other = make()
        state = torch.load(tmp_path / 'state.pt', weights_only=True)
        other.load_state_dict(state)
        assert train(other) == expected


def test_initial_state():
    sampler, other = make_ucb(), make_ucb()
    state = sampler.state_dict()
    train(other)
    other.load_state_dict(state)
    assert_same(other.state_dict(), state)
    assert train(other) == train(sampler)
    with pytest.raises(ValueError, match="'order'"):
        other.load_state_dict({**state, 'epoch': 0})


@pytest.mark.parametrize('make', [make_ucb, make_balanced])
def test_states_of_other_samplers(make):
    sampler = make()
    train(sampler)
    for other, key in [
        (make(size=19), 'size'),
        (make(keep_ratio=0.6), 'budget'),
        (InfoBatchSampler(20, 0.5, 9), 'policy'),
    ]:
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=f"the same '{key}'"):
            other.load_state_dict(sampler.state_dict())
        assert_same(other.state_dict(), before)


def test_state_of_an_annealed_epoch():
    sampler = InfoBatchSampler(20, 0.5, 4, anneal_epochs=1)
    train(sampler, 4)  # The last epoch has more graphs than the budget.
    other = InfoBatchSampler(20, 0.5, 4, anneal_epochs=1)
    other.load_state_dict(sampler.state_dict())
    assert_same(other.state_dict(), sampler.state_dict())
