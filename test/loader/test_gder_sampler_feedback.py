"""Tests of `GDeRSampler` with unusual feedback, states and arguments."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_geometric_ext.loader.gder_sampler as module
from devices import withDevice
from torch_geometric_ext.loader import GDeRSampler

SCALE = 1024


class Prototypes(torch.nn.Module):
    """Return nearest prototypes from the last column of the embedding."""

    num_prototypes = 2

    def __init__(self):
        super().__init__()
        self.dummy = torch.nn.Parameter(torch.zeros(()))

    def forward(self, h, y):
        with torch.no_grad():
            self.dummy.add_(1.0)
        nearest = (h[:, -1:].detach() * SCALE).round()
        zero = torch.zeros_like(nearest)
        return h.sum() * 0, torch.cat([zero, zero, nearest], dim=1)


def make_embeddings(num_graphs, num_outliers=0, device=None):
    generator = torch.Generator().manual_seed(num_graphs)
    h = torch.randn(num_graphs, 9, generator=generator) + 4
    h[:num_outliers] -= 8  # The opposite direction.
    h[:, -1] = 0.0  # The first prototype of class zero is the nearest one.
    return h.to(device)


def train(sampler, h, y, batch_size=16):
    out = list(sampler)
    graph_idx = torch.tensor(out, device=h.device)
    for idx in graph_idx.split(batch_size):
        label = None if y is None else y[idx]
        sampler.update(h[idx], label, idx)
    return out


def make_sampler(size, keep_ratio=0.5, num_epochs=20, **kwargs):
    return GDeRSampler(size, Prototypes(), keep_ratio, num_epochs, **kwargs)


@withDevice
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('chunk', [50, 8192])
def test_embeddings_that_are_not_finite(value, chunk, device, monkeypatch):
    monkeypatch.setattr(module, 'MAX_EMBEDDINGS', chunk)
    h = make_embeddings(200, 20, device)
    h[100:106, 2] = value
    y = torch.zeros(200, dtype=torch.long, device=device)
    sampler = make_sampler(200)
    num_draws = torch.zeros(200)
    for _ in range(20):
        num_draws[train(sampler, h, y)] += 1
    sampler.set_epoch(20)
    assert sorted(sampler.suspects().tolist()) == list(range(20))
    assert sampler.scores.isfinite().all()
    # They are drawn as often as others, not first in each epoch:
    assert (num_draws[100:106].mean() - num_draws[20:].mean()).abs() < 3


def test_suspects_are_ranked():
    h = make_embeddings(200, 20)
    h[30] = float('nan')
    y = torch.zeros(200, dtype=torch.long)
    sampler = make_sampler(200)
    assert sampler.suspects(k=5).numel() == 0  # No graph has a score.
    seen = train(sampler, h, y)
    out, score = sampler.suspects(k=200), sampler.scores
    assert sorted(out.tolist()) == sorted(seen)
    assert score[out].equal(score[out].sort(descending=True).values)
    assert sampler.suspects(k=0).numel() == 0
    num_outliers = sum(i < 20 for i in seen)
    top = sampler.suspects(k=num_outliers)
    assert top.equal(out[:num_outliers]) and int(top.max()) < 20
    with pytest.raises(ValueError, match=r"'k' of .* \(got -1\)"):
        sampler.suspects(k=-1)


@withDevice
@pytest.mark.parametrize('chunk', [50, 8192])
def test_feedback_counts_before_the_next_epoch(chunk, device, monkeypatch):
    monkeypatch.setattr(module, 'MAX_EMBEDDINGS', chunk)
    h = make_embeddings(200, 20, device)
    y = torch.zeros(200, dtype=torch.long, device=device)
    sampler, other = make_sampler(200), make_sampler(200)
    for epoch in range(1, 5):
        assert train(sampler, h, y) == train(other, h, y)
        suspects, scores = sampler.suspects(), sampler.scores
        sampler.set_epoch(epoch)
        assert sampler.suspects().equal(suspects)
        assert sampler.scores.nan_to_num().equal(scores.nan_to_num())
    assert suspects.numel() == 20
    other.set_epoch(4)  # The same draw without a look at the scores.
    assert list(sampler) == list(other)


def test_all_embeddings_are_nan():
    h = make_embeddings(40)
    h[:] = float('nan')
    for y in [torch.zeros(40, dtype=torch.long), None]:
        sampler = make_sampler(40)
        seen = [train(sampler, h, y) for _ in range(4)]
        assert all(len(set(out)) == 20 for out in seen)
        assert sampler.suspects().numel() == 0


def test_duplicates_are_ordinary():
    h = make_embeddings(400)
    h[:250] = h[0]
    y = torch.zeros(400, dtype=torch.long)
    sampler = make_sampler(400)
    for _ in range(10):
        train(sampler, h, y)
    assert sampler.suspects().numel() == 0


def test_last_virtual_class_of_repeats_counts():
    h = make_embeddings(20)
    sampler = make_sampler(20, 1.0, balance=1.0)
    list(sampler)
    graph_idx = torch.arange(20)
    for nearest in [0, 8]:  # Classes zero and four have no mean.
        h[:, -1] = nearest / SCALE
        sampler.update(h, None, graph_idx)
    sampler.set_epoch(1)
    assert sampler.history()['per_class'][-1] == [0, 0, 0, 0, 20]


def test_embeddings_are_copied():
    h = make_embeddings(20)
    y = torch.zeros(20, dtype=torch.long)
    sampler = make_sampler(20, 1.0)
    graph_idx = torch.tensor(list(sampler))
    expected = h[graph_idx].clone()
    given_h, given_y = expected.clone(), y[graph_idx]
    sampler.update(given_h, given_y, graph_idx)
    given_h.zero_(), given_y.fill_(7)
    state = sampler.state_dict()
    order = graph_idx.argsort()
    assert torch.equal(state['embedding'][:, :9], expected[order])
    assert state['embedding'][:, -1].sum() == 0


@withDevice
def test_positions_in_chunks_are_checked(device, monkeypatch):
    monkeypatch.setattr(module, 'MAX_EMBEDDINGS', 8)
    h = make_embeddings(40, device=device)
    y = torch.zeros(40, dtype=torch.long, device=device)
    sampler = make_sampler(40)
    drawn = list(sampler)
    pruned = sorted(set(range(40)) - set(drawn))
    wrong = torch.tensor(pruned[:10], device=device)
    with pytest.raises(ValueError, match='drawn in the current epoch 0'):
        sampler.update(h[wrong], y[wrong], wrong)
        sampler.set_epoch(1)


def test_positions_in_chunks_stay_unchecked():
    # As on a GPU, where `update` does not check positions:
    sampler = make_sampler(40)
    pruned = sorted(set(range(40)) - set(sampler))
    sampler._embeddings.unchecked = True
    sampler._embeddings.add(torch.tensor(pruned[:10]), torch.zeros(10, 13))
    sampler._measure(*sampler._embeddings.pop())
    with pytest.raises(ValueError, match='drawn in the current epoch 0'):
        sampler.set_epoch(1)


@pytest.mark.parametrize('draw', ['trusted', 'paper'])
def test_state_is_a_copy(draw):
    h, y = make_embeddings(60, 6), torch.zeros(60, dtype=torch.long)
    sampler = make_sampler(60, draw=draw)
    train(sampler, h, y), train(sampler, h, y)
    state = sampler.state_dict()
    before = copy.deepcopy(state)
    expected = [train(sampler, h, y) for _ in range(6)]
    for _ in range(2):
        other = make_sampler(60, draw=draw)
        other.load_state_dict(state)
        assert [train(other, h, y) for _ in range(6)] == expected
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(state[key], value, equal_nan=True)
        else:
            assert state[key] == value, key


def test_feedback_of_any_length_is_loaded():
    # Also of as many rows as there are graphs:
    h, y = make_embeddings(20), torch.zeros(20, dtype=torch.long)
    sampler = make_sampler(20, 1.0)
    graph_idx = torch.tensor(list(sampler))
    empty = sampler.state_dict()
    sampler.update(h[graph_idx], y, graph_idx)
    full = sampler.state_dict()
    sampler.load_state_dict(empty)
    sampler.load_state_dict(full)
    assert sampler.state_dict()['embedding_idx'].tolist() == list(range(20))


@pytest.mark.parametrize(
    'key, values',
    [
        ('embedding_idx', [torch.arange(3), torch.arange(30) + 40, None]),
        ('embedding', [torch.zeros(3, 13), torch.zeros(30), 'text']),
        ('group', [torch.full((60,), -2), torch.zeros(60)]),
        ('recall', [['text'], [None], 'text']),
        ('num_observed', [None, 1.5]),
        ('balanced', [None, 'text']),
        ('suspicion', [torch.zeros(61), torch.zeros(60).double()]),
    ],
)
def test_damaged_states(key, values):
    h, y = make_embeddings(60, 6), torch.zeros(60, dtype=torch.long)
    sampler, other = make_sampler(60), make_sampler(60)
    for s in [sampler, other]:
        train(s, h, y), train(s, h, y)
    state = sampler.state_dict()
    for value in values:
        # A wrong index is found by the number of its rows, too:
        with pytest.raises(ValueError, match=f"wrong '({key}|embedding)'"):
            sampler.load_state_dict({**state, key: value})
    assert train(sampler, h, y) == train(other, h, y)  # Nothing changed.


def test_loss_weight_does_not_undo_distrust():
    h, y = make_embeddings(400, 40), torch.zeros(400, dtype=torch.long)
    sampler = make_sampler(400)
    for _ in range(20):
        graph_idx = torch.tensor(train(sampler, h, y))
        weight = sampler.loss_weight(graph_idx)
        assert weight.isfinite().all() and weight.max() < 1.5
    assert sampler.suspects().numel() == 40

    # Classes are still weighted:
    y = (torch.arange(400) % 10 == 9).long()
    sampler = make_sampler(400, y=y, balance=1.0)
    for _ in range(6):
        train(sampler, h, y)
    graph_idx = torch.arange(400)
    weight = sampler.loss_weight(graph_idx)
    assert sampler.suspects().numel() > 30
    trusted = torch.ones(400, dtype=torch.bool)
    trusted[sampler.suspects()] = False
    ratio = (
        weight[trusted & (y == 0)].mean() / weight[trusted & (y == 1)].mean()
    )
    assert 8 < ratio < 10
    assert weight[~trusted].max() <= weight[trusted].max()


def test_replacement():
    h = make_embeddings(100)
    y = (torch.arange(100) < 10).long()
    for kwargs, expected in [
        (dict(), [50, 50]),
        (dict(replacement=True), [50, 50]),
        (dict(replacement=False), [90, 10]),
    ]:
        sampler = make_sampler(100, 1.0, y=y, balance=1.0, **kwargs)
        count = y[train(sampler, h, y)].bincount()
        assert count.tolist() == expected
    y = torch.zeros(100, dtype=torch.long)
    for kwargs, distinct in [(dict(), 100), (dict(replacement=False), 100)]:
        sampler = make_sampler(100, 1.0, y=y, **kwargs)
        assert len(set(train(sampler, h, y))) == distinct


def test_arguments_without_effect():
    y = (torch.arange(100) < 10).long()
    for kwargs in [
        dict(balance=0.5),
        dict(min_per_class=2),
        dict(replacement=True),
    ]:
        (name,) = kwargs
        with pytest.raises(ValueError, match=f"'{name}' .* draw='paper'"):
            make_sampler(100, y=y, draw='paper', **kwargs)
    make_sampler(100, y=y, draw='paper', balance=0.0, replacement=False)


def check_history(sampler, epochs, y):
    history = sampler.history()
    assert history['num_graphs'] == [len(out) for out in epochs]
    assert history['num_distinct'] == [len(set(out)) for out in epochs]
    seen, coverage = set(), []
    for out in epochs:
        seen |= set(out)
        coverage.append(len(seen) / sampler.size)
    assert history['coverage'] == coverage
    if y is not None and sampler.draw == 'trusted':
        labels, group = y.unique(return_inverse=True)  # Without gaps.
        count = [group[out].bincount(minlength=len(labels)) for out in epochs]
        assert history['per_class'] == [x.tolist() for x in count]
        assert history['num_suspects'][0] == 0


@pytest.mark.filterwarnings('ignore:.*got no feedback')
@settings(max_examples=150)
@given(st.data())
def test_any_feedback(data):
    integer, decimal = st.integers, st.floats
    size = data.draw(integer(1, 60))
    num_classes = data.draw(integer(1, 4))
    seed = data.draw(integer(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(num_classes, (size,), generator=generator)
    h = torch.randn(size, data.draw(integer(1, 5)), generator=generator)
    h[: data.draw(integer(0, size))] *= 10.0 ** data.draw(integer(-3, 3))
    h[torch.rand(size, generator=generator) < data.draw(decimal(0, 0.3))] = (
        data.draw(st.sampled_from([0.0, float('nan'), float('inf'), 1e30]))
    )
    nearest = torch.randint(2 * num_classes, (size, 1), generator=generator)
    h = torch.cat([h, nearest / SCALE], dim=1)
    kwargs = dict(
        keep_ratio=data.draw(decimal(0.01, 1.0)),
        num_epochs=data.draw(integer(1, 8)),
        warmup_epochs=data.draw(integer(0, 2)),
        anneal_epochs=data.draw(integer(0, 2)),
        draw=data.draw(st.sampled_from(['trusted', 'paper'])),
        robust=data.draw(st.booleans()),
        seed=seed,
    )
    kwargs['y'] = data.draw(st.sampled_from([None, y]))
    if kwargs['draw'] == 'trusted':
        kwargs['balance'] = data.draw(st.sampled_from(['auto', 0.0, 0.4, 1.0]))
        if kwargs['y'] is None and kwargs['balance'] != 'auto':
            kwargs['balance'] = 'auto'
    label = data.draw(st.sampled_from([None, y]))
    sampler, epochs = make_sampler(size, **kwargs), []
    for epoch in range(data.draw(integer(1, 12))):
        if sampler.next_epoch < epoch:  # Feedback was on its first graphs.
            sampler.set_epoch(epoch)
        expected = len(sampler)
        out = list(sampler)
        epochs.append(out)
        assert len(out) == expected == len(sampler._order)
        full = epoch < kwargs['warmup_epochs'] or (
            kwargs['anneal_epochs'] > 0
            and epoch >= kwargs['num_epochs'] - kwargs['anneal_epochs']
        )
        assert expected == (size if full else sampler.budget)
        assert all(0 <= i < size for i in out)
        # Feedback on any of these graphs, some of them several times:
        graph_idx = torch.tensor(out)
        pick = torch.randint(2 * size, (2 * size,), generator=generator)
        graph_idx = graph_idx[pick[pick < len(out)]]
        for idx in graph_idx.split(7):
            sampler.update(h[idx], None if label is None else label[idx], idx)
        action = data.draw(st.sampled_from(['', 'load', 'repeat']))
        if action == 'repeat':
            sampler.set_epoch(epoch)
            assert list(sampler) == out
        if action == 'load':
            state = sampler.state_dict()
            sampler = make_sampler(size, **{**kwargs, 'seed': 0})
            sampler.load_state_dict(state)
    check_history(sampler, epochs, kwargs['y'])
    if sampler.draw == 'trusted':
        sampler.suspects()
