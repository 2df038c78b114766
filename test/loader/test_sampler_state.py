import copy

import pytest
import torch
from hostile_states import assert_same, check_hostile_states

from torch_geometric_ext.loader import (
    BalancedSampler,
    GDeRSampler,
    InfoBatchSampler,
    SoftRandomSampler,
    UCBSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

Y = torch.tensor([0] * 14 + [1] * 6)

pytestmark = pytest.mark.filterwarnings('ignore:.*GDeRSampler.*:UserWarning')


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


def make_gder(**kwargs):
    torch.manual_seed(0)
    prototypes = HypersphericalPrototypes(4, 2, embedding_dim=4)
    return GDeRSampler(20, prototypes, 0.5, 9, **kwargs)


SAMPLERS = {
    'uniform': lambda: SoftRandomSampler(20, 0.5, 9),
    'balanced': make_balanced,
    'ucb': make_ucb,
    'info batch': lambda: InfoBatchSampler(20, 0.5, 9),
    'gder': lambda: make_gder(y=Y),
    'gder, virtual': make_gder,
    'gder, paper': lambda: make_gder(draw='paper'),
}
H = torch.randn(20, 4, generator=torch.manual_seed(1))


def train_step(sampler, graph_idx):
    if isinstance(sampler, GDeRSampler):
        virtual = sampler.draw == 'trusted' and sampler._learn_groups
        y = None if virtual else Y[graph_idx]
        with torch.no_grad():
            sampler.update(H[graph_idx], y, graph_idx)
    elif hasattr(sampler, 'update'):
        sampler.update((graph_idx * 7 % 10).float(), graph_idx)


def behave(sampler):
    """Train the rest of an epoch and the next two epochs."""
    out = []
    for _ in range(3):
        out.append(list(sampler))
        graph_idx = torch.tensor(out[-1], dtype=torch.long)
        assert bool(((graph_idx >= 0) & (graph_idx < 20)).all())
        sampler.loss_weight(graph_idx)
        train_step(sampler, graph_idx)
    assert len(out[-1]) in (10, 20)
    history = sampler.history()
    return copy.deepcopy([out, history, sampler.state_dict()])


@pytest.mark.parametrize('name', SAMPLERS)
def test_hostile_states(name):
    def train_steps(num_epochs):
        sampler = SAMPLERS[name]()
        for _ in range(num_epochs):
            train_step(sampler, torch.tensor(list(sampler)))
        iterator = iter(sampler)  # In the middle of an epoch.
        train_step(sampler, torch.tensor([next(iterator) for _ in range(4)]))
        return sampler

    state = train_steps(2).state_dict()
    check_hostile_states(
        lambda: (train_steps(1), state), behave, optional=['consumed']
    )


@pytest.mark.parametrize('key', ['group', 'feedback', 'embedding'])
def test_huge_class_numbers(key):
    # They would take memory in the next epoch:
    sampler = make_gder(draw='paper') if key == 'feedback' else make_gder()
    for _ in range(2):
        train_step(sampler, torch.tensor(list(sampler)))
    state = sampler.state_dict()
    for value in [2, 10**9]:
        damaged = state[key].clone()
        damaged[..., -1] = 2 * value if key == 'feedback' else value
        with pytest.raises(ValueError, match=f"wrong '{key}'"):
            sampler.load_state_dict({**state, key: damaged})


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
    for change in [dict(order=torch.arange(10)), dict(started=False)]:
        with pytest.raises(ValueError, match=f"'{next(iter(change))}'"):
            other.load_state_dict({**state, **change})
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
