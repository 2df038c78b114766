"""Interrupt training after any step, and resume it bit for bit."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.loader.dataloader import Collater

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import (
    BalancedSampler,
    DynamicSampler,
    EpsilonGreedySampler,
    GDeRSampler,
    InfoBatchSampler,
    LossSampler,
    NodeBudgetBatchSampler,
    SoftRandomSampler,
    UCBSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

NUM_GRAPHS, NUM_EPOCHS, BATCH_SIZE = 26, 5, 4
Y = (torch.arange(NUM_GRAPHS) % 5 == 0).long()
H = torch.randn(NUM_GRAPHS, 6, generator=torch.manual_seed(7))

pytestmark = pytest.mark.filterwarnings('ignore:.*GDeRSampler.*:UserWarning')


def make_gder(**kwargs):
    torch.manual_seed(0)
    prototypes = HypersphericalPrototypes(6, 2, embedding_dim=4)
    return GDeRSampler(NUM_GRAPHS, prototypes, 0.4, NUM_EPOCHS, **kwargs)


def make(cls, keep_ratio=0.4, **kwargs):
    return cls(NUM_GRAPHS, keep_ratio, NUM_EPOCHS, **kwargs)


SAMPLERS = {
    'SoftRandom': lambda **x: make(SoftRandomSampler, **x),
    'Balanced': lambda **x: make(BalancedSampler, y=Y, **x),
    'Dynamic': lambda **x: make(DynamicSampler, replacement=True, **x),
    'InfoBatch': lambda **x: make(InfoBatchSampler, anneal_epochs=1, **x),
    'EpsilonGreedy': lambda **x: make(EpsilonGreedySampler, **x),
    'UCB': lambda **x: make(UCBSampler, warmup_epochs=1, **x),
    'Loss': lambda **x: make(LossSampler, y=Y, balance=1.0, **x),
    'GDeR': lambda **x: make_gder(y=Y, **x),
    'GDeR, virtual': lambda **x: make_gder(**x),
    'GDeR, paper': lambda **x: make_gder(draw='paper', y=Y, **x),
}
LEARNS = [name for name, make in SAMPLERS.items() if hasattr(make(), 'update')]


def update(sampler, graph_idx):
    """Pass feedback that depends on the graph and the epoch only."""
    if isinstance(sampler, GDeRSampler):
        h = H[graph_idx] + 0.1 * sampler.epoch
        virtual = sampler._learn_groups and sampler.draw == 'trusted'
        y = None if virtual else Y[graph_idx]
        with torch.no_grad():
            sampler.update(h, y, graph_idx)
    elif hasattr(sampler, 'update'):
        loss = ((graph_idx * 7 + sampler.epoch * 3) % 11).float()
        sampler.update(loss, graph_idx)


def train_epoch(sampler, batch_size=BATCH_SIZE, drop_last=False, steps=None):
    """Train an epoch or its first steps, and yield the graphs of each step."""
    batches = BatchSampler(sampler, batch_size, drop_last)
    for i, batch in enumerate(batches):
        update(sampler, torch.tensor(batch))
        yield batch
        if i + 1 == steps:
            return


def train(sampler, **kwargs):
    """Train to the end, and return the graphs of each epoch."""
    out = {}
    while sampler.next_epoch < NUM_EPOCHS:
        graphs = [x for batch in train_epoch(sampler, **kwargs) for x in batch]
        out[sampler.epoch] = graphs
    return out


def assert_same(a, b, rtol=0.0):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value, b[key], rtol=rtol, atol=0, equal_nan=True
            )
        else:
            assert str(value) == str(b[key]), key  # Also of NaN.


def interrupt(name, epoch, step, batch_size=BATCH_SIZE, **kwargs):
    """Return the sampler of an interrupted training, its state after a step
    and the graphs of the epoch up to there.
    """
    sampler = SAMPLERS[name](**kwargs)
    for _ in range(epoch):
        list(train_epoch(sampler, batch_size))
    graphs = []
    for batch in train_epoch(sampler, batch_size, steps=step):
        graphs += batch
    consumed = None if name in LEARNS else len(graphs)
    return copy.deepcopy(sampler.state_dict(consumed)), graphs


@pytest.mark.parametrize('batch_size', [BATCH_SIZE, 3, 26])
@pytest.mark.parametrize('name', SAMPLERS)
def test_every_step(name, batch_size):
    whole = SAMPLERS[name]()
    expected = train(whole)
    for epoch in range(3):
        num_steps = -(-len(expected[epoch]) // BATCH_SIZE)
        for step in range(1, num_steps + 1):
            state, graphs = interrupt(name, epoch, step)
            sampler = SAMPLERS[name](seed=3)
            sampler.load_state_dict(state)
            assert_same(sampler.state_dict(), state)
            length = len(expected[epoch]) - len(graphs)
            if step < num_steps:
                assert len(sampler) == length
                steps = sampler.steps_per_epoch(batch_size)
                assert steps == -(-length // batch_size)
            rest = train(sampler, batch_size=batch_size)
            if step < num_steps:
                rest[epoch] = graphs + rest[epoch]
            else:
                rest[epoch] = graphs
            assert rest == {k: x for k, x in expected.items() if k >= epoch}
            # Prototypes round differently in mini-batches of other sizes:
            rtol = 0 if batch_size == BATCH_SIZE else 1e-5
            assert_same(sampler.state_dict(), whole.state_dict(), rtol)


@pytest.mark.parametrize('name', SAMPLERS)
def test_set_epoch_continues_once(name):
    expected = train(SAMPLERS[name]())
    state, graphs = interrupt(name, 1, 2)
    sampler = SAMPLERS[name]()
    sampler.load_state_dict(state)
    for epoch in range(1, NUM_EPOCHS):
        sampler.set_epoch(epoch)
        sampler.set_epoch(epoch)  # By a trainer and by the loop.
        rest = sum(train_epoch(sampler), [])
        assert (graphs if epoch == 1 else []) + rest == expected[epoch]

    # Once it was continued, the epoch is repeated as a whole:
    sampler.load_state_dict(state)
    list(sampler)
    sampler.set_epoch(1)
    assert len(sampler) == len(expected[1])
    assert list(sampler) == expected[1]


@pytest.mark.parametrize('name', SAMPLERS)
def test_set_epoch_after_the_iterator(name):
    # Loaders with workers iterate at once, trainers set the epoch afterwards.
    expected = train(SAMPLERS[name]())
    for step in [1, 2]:
        state, graphs = interrupt(name, 1, step)
        for prefetch in [1, len(expected[1]) - len(graphs)]:
            sampler = SAMPLERS[name]()
            sampler.load_state_dict(state)
            iterator = iter(sampler)
            rest = [next(iterator) for _ in range(prefetch)]
            sampler.set_epoch(1)
            rest += list(iterator)
            assert graphs + rest == expected[1]
            update(sampler, torch.tensor(rest))
            sampler.set_epoch(2)
            assert list(sampler) == expected[2]


@pytest.mark.parametrize('name', LEARNS)
def test_feedback_before_the_iterator(name):
    # Such as the losses of the initial model:
    sampler, other = SAMPLERS[name](), SAMPLERS[name]()
    for x in (sampler, other):
        x.set_epoch(0)
    graphs = sampler.peek()
    update(sampler, torch.tensor(graphs))
    assert sampler.next_epoch == 0 and len(sampler) == len(graphs)
    assert list(sampler) == list(other) == graphs
    update(other, torch.tensor(graphs))
    assert_same(sampler.state_dict(), other.state_dict())
    assert list(sampler) == list(other)


@pytest.mark.parametrize('name', LEARNS)
def test_end_of_an_epoch_with_drop_last(name):
    sampler, other = SAMPLERS[name](), SAMPLERS[name]()
    for _ in range(2):
        list(train_epoch(sampler, drop_last=True))
    state = sampler.state_dict()
    other.load_state_dict(state)
    assert_same(other.state_dict(), state)
    assert other.next_epoch == 2
    expected = train(sampler, drop_last=True)
    assert train(other, drop_last=True) == expected


def test_feedback_in_another_order_is_not_the_middle_of_an_epoch():
    sampler, other = SAMPLERS['UCB'](), SAMPLERS['UCB']()
    graph_idx = torch.tensor(list(sampler))
    for part in [graph_idx[3:5], graph_idx[:0]]:
        update(sampler, part)
        state = sampler.state_dict()
        assert state['started'] and state['consumed'] == 0
        other.load_state_dict(state)
        assert other.next_epoch == 1


def test_states_without_consumed():
    # States of earlier versions start with the next epoch.
    state, _ = interrupt('UCB', 1, 2)
    state['started'] = True
    del state['consumed']
    sampler = SAMPLERS['UCB']()
    sampler.load_state_dict(state)
    assert sampler.next_epoch == 2 and len(sampler) == sampler.budget
    assert sampler.state_dict()['started']


def test_consumed_errors():
    sampler = SAMPLERS['SoftRandom']()
    with pytest.raises(ValueError, match=r"'consumed' .* \(got 1\)"):
        sampler.state_dict(consumed=1)
    list(sampler)
    for wrong in [-1, 11, 2.0, True, '3']:
        with pytest.raises(ValueError, match=rf"'consumed' .*got {wrong}\)"):
            sampler.state_dict(consumed=wrong)
    assert sampler.state_dict(consumed=10)['started']
    state = sampler.state_dict(consumed=9)
    for wrong in [-1, 11, 2.0, None, True]:
        with pytest.raises(ValueError, match="'consumed'"):
            sampler.load_state_dict({**state, 'consumed': wrong})


def test_peek():
    sampler = SAMPLERS['SoftRandom']()
    with pytest.raises(ValueError, match="'epoch' .* planned by 'set_epoch'"):
        sampler.peek()
    sampler.set_epoch(1)
    graphs = sampler.peek()
    assert sampler.peek() == graphs == list(sampler)
    sampler.load_state_dict(sampler.state_dict(consumed=4))
    assert sampler.peek() == graphs[4:] == list(sampler)


@pytest.mark.parametrize('old, new', [(1, 2), (2, 1), (2, 3), (1, 7), (3, 4)])
def test_other_numbers_of_ranks(old, new):
    def make_ranks(num):
        return [
            SAMPLERS['SoftRandom'](num_replicas=num, rank=rank)
            for rank in range(num)
        ]

    def merge(parts):
        assert len({len(part) for part in parts}) == 1
        return [x for group in zip(*parts) for x in group]

    whole = SAMPLERS['SoftRandom']()
    expected = [list(whole) for _ in range(2)]
    num_steps = -(-len(expected[0]) // old)
    for step in range(num_steps):
        before = make_ranks(old)
        iterators = [iter(sampler) for sampler in before]
        done = merge([[next(x) for _ in range(step)] for x in iterators])
        states = [s.state_dict(consumed=step * old) for s in before]
        for state in states[1:]:
            assert_same(state, states[0])
        after = make_ranks(new)
        for sampler in after:
            sampler.load_state_dict(states[0])
            assert len(sampler) == -(-(len(expected[0]) - len(done)) // new)
        rest = merge([list(sampler) for sampler in after])
        assert (done + rest)[: len(expected[0])] == expected[0]
        assert len(done + rest) < len(expected[0]) + new
        rest = merge([list(sampler) for sampler in after])
        assert rest[: len(expected[1])] == expected[1]


def run_rank(path):
    out = {}
    for name in LEARNS:
        sampler = SAMPLERS[name]()
        list(train_epoch(sampler, batch_size=2))
        list(train_epoch(sampler, batch_size=2, steps=1))
        state = copy.deepcopy(sampler.state_dict())
        # One process has trained two steps of two graphs:
        single, _ = interrupt(name, 1, 2, 2, num_replicas=1, rank=0)
        resumed = SAMPLERS[name]()
        resumed.load_state_dict(single)
        out[name] = state, train(resumed, batch_size=3), resumed.state_dict()
    torch.save(out, f'{path}/{dist.get_rank()}.pt')


def test_one_rank_to_two_and_back(run_ranks, tmp_path):
    run_ranks(__file__)
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    for name in LEARNS:
        whole = SAMPLERS[name]()
        expected = train(whole)
        (state, first, final), (other, second, _) = (x[name] for x in ranks)
        assert_same(state, other)
        assert state['consumed'] == 4 and not state['started']
        sampler = SAMPLERS[name]()
        sampler.load_state_dict(state)
        rest = train(sampler, batch_size=5)
        rest[1] = expected[1][:4] + rest[1]
        del expected[0]
        assert rest == expected
        assert_same(sampler.state_dict(), whole.state_dict(), rtol=1e-5)

        for epoch, graphs in expected.items():
            pairs = zip(first[epoch], second[epoch])
            merged = [x for pair in pairs for x in pair]
            assert merged == graphs[4 if epoch == 1 else 0 :]
        assert_same(final, whole.state_dict(), rtol=1e-5)


def make_dataset():
    return IndexedDataset([Data(x=H[i : i + 1]) for i in range(NUM_GRAPHS)])


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('name', ['UCB', 'GDeR'])
def test_data_loader(name, num_workers):
    def run(sampler, stop=None):
        dataset = make_dataset()
        loader = DataLoader(
            dataset, BATCH_SIZE, sampler=sampler, num_workers=num_workers
        )
        out = []
        while sampler.next_epoch < NUM_EPOCHS - 2:
            for batch in loader:
                update(sampler, batch.graph_idx)
                out.append((sampler.epoch, batch.graph_idx.tolist()))
                if len(out) == stop:
                    return out
        return out

    whole = SAMPLERS[name]()
    expected = run(whole)
    # With workers, the sampler does not know whether the loader drops the last
    # mini-batch of two graphs; without, it has not finished the epoch:
    for stop in [1, 4] if num_workers else [1, 2, 4, 5]:
        first = SAMPLERS[name]()
        assert run(first, stop) == expected[:stop]
        second = SAMPLERS[name]()
        second.load_state_dict(first.state_dict())
        assert run(second) == expected[stop:]
        assert_same(second.state_dict(), whole.state_dict())


class StatefulRun:
    """Train with `torchdata`, which saves the state of the loader."""

    def __init__(self, name, num_workers, **kwargs):
        torchdata = pytest.importorskip('torchdata.stateful_dataloader')
        self.sampler = SAMPLERS[name]()
        dataset = make_dataset()
        if 'too_big' in kwargs:
            sizes = torch.arange(NUM_GRAPHS) % 7 + 1
            kwargs['batch_sampler'] = NodeBudgetBatchSampler(
                self.sampler, sizes, 6, too_big=kwargs.pop('too_big')
            )
        else:
            kwargs.setdefault('batch_size', BATCH_SIZE)
            kwargs['sampler'] = self.sampler
        self.loader = torchdata.StatefulDataLoader(
            dataset,
            num_workers=num_workers,
            collate_fn=Collater(dataset),
            **kwargs,
        )
        self.states = []

    def epoch(self, save=False):
        out = []
        for batch in self.loader:
            update(self.sampler, batch.graph_idx)
            out.append(batch.graph_idx.tolist())
            if save:
                state = self.loader.state_dict(), self.sampler.state_dict()
                file = io.BytesIO()
                torch.save(state, file)
                self.states.append(file)
        if save:
            self.states.append((self.loader.state_dict(), None))
        return out

    def load(self, file, with_sampler):
        file.seek(0)
        loader, sampler = torch.load(file)
        self.loader.load_state_dict(loader)
        if with_sampler:
            self.sampler.load_state_dict(sampler)


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('name', ['SoftRandom', 'UCB', 'GDeR, virtual'])
def test_stateful_data_loader(name, num_workers):
    run = StatefulRun(name, num_workers)
    expected = [run.epoch(), run.epoch(save=True), run.epoch(), run.epoch()]
    final = run.sampler.state_dict()
    for step, state in enumerate(run.states[:-1]):
        other = StatefulRun(name, num_workers)
        # A loader with workers saves the sampler ahead of the feedback:
        other.load(state, with_sampler=num_workers > 0)
        assert other.epoch() == expected[1][step + 1 :]
        assert [other.epoch(), other.epoch()] == expected[2:]
        assert_same(other.sampler.state_dict(), final)


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('too_big', ['single', 'skip'])
def test_stateful_data_loader_of_a_node_budget(too_big, num_workers):
    kwargs = dict(num_workers=num_workers, too_big=too_big)
    run = StatefulRun('UCB', **kwargs)
    expected = [run.epoch(), run.epoch(save=True), run.epoch(), run.epoch()]
    final = run.sampler.state_dict()
    for step, state in enumerate(run.states[:-1]):
        other = StatefulRun('UCB', **kwargs)
        other.load(state, with_sampler=num_workers > 0)
        assert other.epoch() == expected[1][step + 1 :]
        assert [other.epoch(), other.epoch()] == expected[2:]
        assert_same(other.sampler.state_dict(), final)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_stateful_data_loader_at_the_end_of_an_epoch(num_workers):
    run = StatefulRun('SoftRandom', num_workers)
    expected = [run.epoch(), run.epoch(save=True), run.epoch()]
    other = StatefulRun('SoftRandom', num_workers)
    other.loader.load_state_dict(run.states[-1][0])
    assert other.epoch() == expected[2]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_stateful_data_loader_without_the_state_of_the_sampler(num_workers):
    # Feedback of prefetched mini-batches is lost, the order is not:
    run = StatefulRun('UCB', num_workers)
    expected = [run.epoch(), run.epoch(save=True)]
    other = StatefulRun('UCB', num_workers)
    other.load(run.states[0], with_sampler=False)
    assert other.epoch() == expected[1][1:]
    assert len(other.epoch()) == 3


@pytest.mark.parametrize('num_workers', [0, 2])
def test_rewind_a_stateful_data_loader(num_workers):
    run = StatefulRun('UCB', num_workers)
    expected = [run.epoch(), run.epoch(save=True)]
    other = StatefulRun('UCB', num_workers)
    other.load(run.states[1], with_sampler=True)
    other.load(run.states[0], with_sampler=True)
    assert other.epoch() == expected[1][1:]


def test_iterator_errors():
    sampler = SAMPLERS['SoftRandom']()
    iterator = iter(sampler)
    next(iterator)
    state = iterator.state_dict()
    for change in [dict(epoch=1), dict(position=11), dict(position='x')]:
        with pytest.raises(ValueError, match=next(iter(change))):
            iter(sampler).load_state_dict({**state, **change})
    with pytest.raises(TypeError, match='dictionary'):
        iter(sampler).load_state_dict(None)
