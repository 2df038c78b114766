from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.testing import withCUDA

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import DynamicSampler


class ToySampler(DynamicSampler):
    """Draw the graphs with the largest feedback, then others in order."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.observed = {}

    def update(self, feedback, graph_idx):
        self._record(graph_idx, feedback.view(-1, 1))

    def _observe(self, graph_idx, feedback):
        pairs = zip(graph_idx.tolist(), feedback.view(-1).tolist())
        self.observed = dict(pairs)

    def _draw(self, epoch):
        key = [-self.observed.get(i, 0.0) for i in range(self.size)]
        order = torch.tensor(key).argsort(stable=True)
        return order.roll(-epoch)[: self.budget]


def assert_same_state(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


def make_graphs(num_graphs):
    return [
        Data(
            x=torch.full((2, 1), float(i)), edge_index=torch.tensor([[0], [1]])
        )
        for i in range(num_graphs)
    ]


LOADERS = {
    'plain': dict(batch_size=4),
    'batch size 1': dict(batch_size=1),
    'drop last': dict(batch_size=4, drop_last=True),
    'workers': dict(batch_size=4, num_workers=2),
    'prefetch': dict(batch_size=2, num_workers=2, prefetch_factor=8),
    'persistent workers': dict(
        batch_size=4, num_workers=2, persistent_workers=True
    ),
}


@pytest.mark.parametrize('name', LOADERS)
@pytest.mark.parametrize('subset', [False, True])
def test_feedback_is_keyed_by_graph(name, subset):
    graphs, identity = make_graphs(20), list(range(20))
    if subset:
        identity = identity[::-2]
        graphs = Subset(graphs, identity)
    dataset = IndexedDataset(graphs)
    sampler = ToySampler(dataset, keep_ratio=0.5, num_epochs=4)
    loader = DataLoader(dataset, sampler=sampler, **LOADERS[name])

    for epoch in range(4):
        seen = {}
        for batch in loader:
            assert sampler.epoch == epoch
            # The sampler is exhausted before the last mini-batch is trained.
            feedback = batch.x[::2, 0] + 100 * epoch
            sampler.update(feedback, batch.graph_idx)
            seen.update(zip(batch.graph_idx.tolist(), feedback.tolist()))
        num_dropped = sampler.budget % 4 if name == 'drop last' else 0
        assert len(seen) == sampler.budget - num_dropped

        sampler.set_epoch(epoch + 1)
        assert sampler.observed == seen
        for idx, feedback in sampler.observed.items():
            assert feedback == identity[idx] + 100 * epoch


def test_order_of_epochs():
    sampler = ToySampler(10, keep_ratio=0.5, num_epochs=3)
    assert str(sampler) == 'ToySampler(10, keep_ratio=0.5, num_epochs=3)'
    assert len(sampler) == 5 and sampler.epoch == -1
    iter(sampler), iter(sampler)  # Plans nothing.
    assert sampler.epoch == -1

    first = list(sampler)
    assert sampler.epoch == 0 and sorted(first) == [0, 1, 2, 3, 4]
    iterator = iter(sampler)
    assert sampler.epoch == 0
    next(iterator)
    assert sampler.epoch == 1 and len(sampler) == 5

    # Setting an epoch repeats the current one or plans another one:
    sampler.set_epoch(1)
    again = list(sampler)
    assert sorted(again) == [1, 2, 3, 4, 5]
    sampler.set_epoch(1)
    assert list(sampler) == again
    sampler.set_epoch(5)
    assert sorted(sampler) == [5, 6, 7, 8, 9]
    assert sampler.epoch == 5
    list(sampler)
    assert sampler.epoch == 6

    other = ToySampler(10, keep_ratio=0.5, num_epochs=3)
    other.set_epoch(0)
    assert list(other) == first


def test_last_feedback_counts():
    sampler = ToySampler(4, keep_ratio=1.0, num_epochs=2)
    list(sampler)
    sampler.update(torch.tensor([1.0, 2.0]), torch.tensor([3, 0]))
    sampler.update(torch.tensor([5.0, 7.0]), torch.tensor([1, 3]))
    list(sampler)
    assert sampler.observed == {0: 2.0, 1: 5.0, 3: 7.0}
    list(sampler)
    assert sampler.observed == {}


@pytest.mark.parametrize(
    'keep_ratio, size, budget',
    [
        (0.5, 10, 5),
        (0.3, 1025, 308),
        (1e-9, 10, 1),
        (1.0, 1, 1),
        (0.3, 1, 1),
    ],
)
def test_budget_and_steps(keep_ratio, size, budget):
    sampler = ToySampler(size, keep_ratio, num_epochs=2)
    assert len(sampler) == sampler.budget == budget
    for _ in range(2):
        out = list(sampler)
        assert len(out) == len(set(out)) == budget
    for batch_size in [1, 3, 4]:
        for drop_last in [False, True]:
            loader = DataLoader(
                make_graphs(size),
                batch_size,
                sampler=sampler,
                drop_last=drop_last,
            )
            steps = sampler.steps_per_epoch(batch_size, drop_last)
            assert steps == len(loader) == len(list(loader))


@pytest.mark.parametrize('num_replicas', [2, 3, 7])
def test_ranks_split_the_subset(num_replicas):
    samplers = [
        ToySampler(10, 0.5, 2, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]
    whole = list(ToySampler(10, 0.5, 2))
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(samplers[0])}
    merged = [i for group in zip(*parts) for i in group]
    assert merged[:5] == whole
    assert merged[5:] == (whole + whole)[: len(merged) - 5]


def test_state_resumes():
    def train_epoch(sampler):
        out = list(sampler)
        graph_idx = torch.tensor(out)
        sampler.update((graph_idx * 7 % 10).float(), graph_idx)
        return out

    sampler = ToySampler(10, keep_ratio=0.5, num_epochs=9)
    train_epoch(sampler), train_epoch(sampler)
    state = sampler.state_dict()
    expected = [train_epoch(sampler) for _ in range(3)]

    other = ToySampler(10, keep_ratio=0.5, num_epochs=9, seed=1)
    list(other)
    other.load_state_dict(state)
    assert_same_state(other.state_dict(), state)
    assert [train_epoch(other) for _ in range(3)] == expected

    # A planned epoch that has not started is not skipped:
    sampler.set_epoch(7)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == list(sampler)

    # An incomplete state changes nothing:
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"none of \['feedback'\]"):
        other.load_state_dict(
            {key: state[key] for key in state if key != 'feedback'}
        )
    assert_same_state(other.state_dict(), before)

    # A state is a copy:
    sampler.load_state_dict(state)
    train_epoch(sampler)
    other.load_state_dict(state)
    assert other.epoch == 1 and train_epoch(other) == expected[0]


def test_feedback_copies_graph_idx():
    sampler = ToySampler(4, keep_ratio=1.0, num_epochs=2)
    list(sampler)
    graph_idx = torch.tensor([3, 0])
    sampler.update(torch.tensor([1.0, 2.0]), graph_idx)
    graph_idx.fill_(1)
    list(sampler)
    assert sampler.observed == {0: 2.0, 3: 1.0}


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='no /proc')
def test_workers_do_not_run_out_of_file_descriptors():
    dataset = IndexedDataset(make_graphs(100))
    sampler = ToySampler(dataset, keep_ratio=1.0, num_epochs=1)
    num_open = []
    for batch in DataLoader(dataset, 1, sampler=sampler, num_workers=1):
        sampler.update(batch.x[:1, 0] + 1, batch.graph_idx)
        del batch
        num_open.append(len(list(Path('/proc/self/fd').iterdir())))
    assert max(num_open) < num_open[0] + 50


@withCUDA
def test_errors_of_update(device):
    sampler = ToySampler(10, keep_ratio=0.5, num_epochs=2)
    drawn = list(sampler)
    pruned = min(set(range(10)) - set(drawn))
    state = sampler.state_dict()
    one = torch.ones(2, device=device)
    for wrong in [pruned, 10, -1]:
        graph_idx = torch.tensor([drawn[0], wrong], device=device)
        message = r"'graph_idx' of 'ToySampler' .* epoch .* Wrap|wrap"
        if device.type == 'cpu':
            with pytest.raises(ValueError, match=message):
                sampler.update(one, graph_idx)
        else:  # Raised in the planning of the next epoch.
            sampler.update(one, graph_idx)
            with pytest.raises(ValueError, match=message):
                list(sampler)
            sampler.load_state_dict(state)

    sampler.update(one, torch.tensor(drawn[:2], device=device))
    list(sampler)
    assert sampler.observed == {i: 1.0 for i in drawn[:2]}


def test_errors():
    for args, message in [
        ((0, 0.5, 2), r"'dataset' .* at least one graph \(got 0\)"),
        (([], 0.5, 2), r"'dataset' .* at least one graph \(got 0\)"),
        ((9, 0.0, 2), r"'keep_ratio' .* in \(0, 1\] \(got 0.0\)"),
        ((9, 1.5, 2), r"'keep_ratio' .* in \(0, 1\] \(got 1.5\)"),
        ((9, float('nan'), 2), r"'keep_ratio' .* \(got nan\)"),
        ((9, 0.5, 0), r"'num_epochs' .* \(got 0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            ToySampler(*args)
    with pytest.raises(
        ValueError, match=r"'rank' .* in \[0, 2\), .* \(got 2\)"
    ):
        ToySampler(9, 0.5, 2, num_replicas=2, rank=2)

    sampler = ToySampler(9, 0.5, 2)
    with pytest.raises(ValueError, match=r"'epoch' .* \(got -1\)"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match=r"'batch_size' .* \(got 0\)"):
        sampler.steps_per_epoch(0)

    list(sampler)
    state = sampler.state_dict()
    for other, key in [
        (ToySampler(8, 0.5, 2), 'size'),
        (ToySampler(9, 0.7, 2), 'budget'),
    ]:
        before = other.state_dict()
        with pytest.raises(ValueError, match=f"the same '{key}'"):
            other.load_state_dict(state)
        assert_same_state(other.state_dict(), before)
    with pytest.raises(ValueError, match="'policy' .*, got GDeRSampler"):
        sampler.load_state_dict({**state, 'policy': 'GDeRSampler'})
