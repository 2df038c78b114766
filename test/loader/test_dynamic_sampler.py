import math
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import DynamicSampler, SoftRandomSampler


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


def test_feedback_of_an_epoch_is_averaged():
    sampler = ToySampler(4, keep_ratio=1.0, num_epochs=2)
    list(sampler)
    sampler.update(torch.tensor([1.0, 2.0]), torch.tensor([3, 0]))
    sampler.update(torch.tensor([5.0, 7.0]), torch.tensor([1, 3]))
    list(sampler)
    assert sampler.observed == {0: 2.0, 1: 5.0, 3: 4.0}
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


def test_repeated_epoch_replaces_feedback():
    sampler = ToySampler(4, keep_ratio=1.0, num_epochs=2)
    list(sampler)
    sampler.update(torch.tensor([1.0, 2.0]), torch.tensor([3, 0]))
    sampler.set_epoch(0)
    list(sampler)
    sampler.update(torch.tensor([5.0]), torch.tensor([3]))
    list(sampler)
    assert sampler.observed == {3: 5.0}


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


@withDevice
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


LABELS = torch.tensor([0] * 60 + [1] * 25 + [2] * 10 + [3] * 5)


class WeightedSampler(DynamicSampler):
    """Draw graphs by fixed weights."""

    def __init__(self, weight, *args, **kwargs):
        super().__init__(len(weight), *args, **kwargs)
        self.weight = weight

    def _weights(self, epoch):
        return self.weight


OPTIONS = {
    'uniform': dict(),
    'balance': dict(balance=1.0),
    'half balance': dict(balance=0.5),
    'copies': dict(balance=1.0, replacement=True),
    'uniform copies': dict(replacement=True),
    'minimum': dict(min_per_class=5),
    'minimum of copies': dict(min_per_class=7, replacement=True),
    'all': dict(balance=0.3, min_per_class=6, replacement=True),
}


def expected_sizes(keep_ratio, balance=0.0, replacement=False, **kwargs):
    """Return the expected draws of each class without a minimum."""
    size = LABELS.bincount().double()
    weight = size * (100 / (4 * size)) ** balance
    budget, capped = round(100 * keep_ratio), torch.zeros(4, dtype=torch.bool)
    while True:
        rest = budget - size[capped].sum()
        out = weight * (rest / weight[~capped].sum())
        out = torch.where(capped, size, out)
        if replacement or bool((out <= size + 1e-9).all()):
            return out
        capped |= out > size


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('keep_ratio', [0.3, 0.71, 1.0])
def test_draws_of_each_class(name, keep_ratio):
    options = OPTIONS[name]
    sampler = SoftRandomSampler(100, keep_ratio, 30, y=LABELS, **options)
    expected = expected_sizes(keep_ratio, **options)
    minimum = options.get('min_per_class', 0)
    for _ in range(30):
        out = torch.tensor(list(sampler))
        assert out.numel() == len(sampler) == sampler.budget
        count = LABELS[out].bincount(minlength=4)
        if name in ['uniform', 'uniform copies']:
            assert len(set(out.tolist())) == sampler.budget
        elif minimum == 0:
            assert (count >= (expected - 1e-6).floor()).all()
            assert (count <= (expected + 1e-6).ceil()).all()
        if not options.get('replacement', False):
            assert len(set(out.tolist())) == sampler.budget
            assert (count >= LABELS.bincount().clamp(max=minimum)).all()
        assert (count >= min(minimum, 5)).all()
        if options.get('replacement', False):
            assert (count >= minimum).all()


def test_copies_are_spread_over_the_class():
    sampler = SoftRandomSampler(
        100, 0.8, 20, y=LABELS, balance=1.0, replacement=True
    )
    for _ in range(20):
        count = torch.tensor(list(sampler)).bincount(minlength=100)
        assert (count[LABELS == 3] == 4).all()  # 20 draws of 5 graphs.
        assert (count[LABELS == 2] == 2).all()
        assert count[LABELS == 1].max() == 1
    assert sampler.history()['per_class'] == [[20, 20, 20, 20]] * 20


@pytest.mark.parametrize('shape', [(100,), (100, 1)])
@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.float])
def test_labels_of_other_types(shape, dtype):
    y = (LABELS * 3 - 5).to(dtype).view(shape)  # Classes of any number.
    options = dict(balance=1.0, replacement=True)
    expected = SoftRandomSampler(100, 0.4, 2, y=LABELS, **options)
    sampler = SoftRandomSampler(100, 0.4, 2, y=y, **options)
    assert list(sampler) == list(expected)
    assert sampler.history() == expected.history()


def test_labels_of_graphs_are_read_if_needed():
    class Graphs(list):
        num_loaded = 0

        def __getitem__(self, idx):
            self.num_loaded += 1
            return super().__getitem__(idx)

    graphs = make_graphs(100)
    for graph, label in zip(graphs, LABELS):
        graph.y = label.view(1)
    graphs = Graphs(graphs)
    SoftRandomSampler(graphs, 0.4, 2)
    assert graphs.num_loaded == 0
    sampler = SoftRandomSampler(graphs, 0.4, 2, balance=1.0, replacement=True)
    assert graphs.num_loaded == 100
    list(sampler)
    assert sampler.history()['per_class'] == [[10, 10, 10, 10]]


def test_without_classes():
    list(SoftRandomSampler(make_graphs(9), 0.5, 2))
    y = torch.rand(9)
    for options in [dict(balance=1.0), dict(min_per_class=1)]:
        for dataset in [9, make_graphs(9)]:
            with pytest.raises(ValueError, match=r"'y' .* \(got none\)"):
                SoftRandomSampler(dataset, 0.5, 2, **options)
        with pytest.raises(ValueError, match=r"'y' .* one integer per graph"):
            SoftRandomSampler(9, 0.5, 2, y=y, **options)


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('weighted', [False, True])
def test_loss_weight_is_unbiased(name, weighted):
    generator = torch.Generator().manual_seed(1)
    loss = torch.rand(100, generator=generator) + LABELS
    weight = torch.rand(100, generator=generator) + 0.1
    num_epochs, estimates, plain = 700, [], []
    sampler = WeightedSampler(
        weight if weighted else torch.ones(100),
        0.3,
        num_epochs,
        y=LABELS,
        **OPTIONS[name],
    )
    for _ in range(num_epochs):
        graph_idx = torch.tensor(list(sampler))
        loss_weight = sampler.loss_weight(graph_idx)
        assert loss_weight.shape == (30,)
        estimates.append((loss_weight * loss[graph_idx]).mean())
        plain.append(loss[graph_idx].mean())
    std, mean = torch.std_mean(torch.stack(estimates).double())
    error = float(std) / num_epochs**0.5
    assert float(mean) == pytest.approx(float(loss.mean()), abs=4 * error)
    if 'uniform' not in name:  # The plain mean is biased.
        difference = torch.stack(plain).mean() - loss.mean()
        assert abs(float(difference)) > 8 * error


@withDevice
def test_loss_weight(device):
    sampler = SoftRandomSampler(10, 0.5, 4)
    graph_idx = torch.tensor(list(sampler), device=device)
    assert sampler.loss_weight(graph_idx).tolist() == [1.0] * 5

    y = torch.tensor([0] * 8 + [1] * 2)
    sampler = SoftRandomSampler(
        10, 0.8, 4, y=y, balance=1.0, replacement=True, anneal_epochs=1
    )
    for _ in range(3):
        graph_idx = torch.tensor(list(sampler), device=device)
        weight = sampler.loss_weight(graph_idx)
        assert weight.device == graph_idx.device
        # 4 expected draws of 8 graphs, and 4 of 2 graphs:
        expected = [8 / (10 * (2 if i >= 8 else 0.5)) for i in graph_idx]
        torch.testing.assert_close(weight.tolist(), expected)
        weight = sampler.loss_weight(graph_idx.cpu())
        torch.testing.assert_close(weight.tolist(), expected)
    graph_idx = torch.tensor(list(sampler), device=device)  # On all graphs.
    assert sampler.loss_weight(graph_idx).tolist() == [1.0] * 10


@pytest.mark.parametrize('num_replicas', [1, 3])
@pytest.mark.parametrize('warmup, anneal', [(2, 0), (0, 1), (2, 3), (4, 4)])
def test_warmup_and_anneal_epochs(warmup, anneal, num_replicas):
    samplers = [
        SoftRandomSampler(
            11,
            0.4,
            7,
            warmup_epochs=warmup,
            anneal_epochs=anneal,
            num_replicas=num_replicas,
            rank=rank,
        )
        for rank in range(num_replicas)
    ]
    graphs = make_graphs(11)
    sampler, steps = samplers[0], {False: 0, True: 0}
    for epoch in range(7):
        full = epoch < warmup or epoch >= 7 - anneal
        size = 11 if full else 4
        length = math.ceil(size / num_replicas)
        for drop_last in [False, True]:
            expected = math.ceil(length / 2)
            if drop_last:
                expected = length // 2
            # Before the epoch is planned:
            assert sampler.steps_per_epoch(2, drop_last) == expected
            loader = DataLoader(
                graphs, 2, sampler=sampler, drop_last=drop_last
            )
            assert len(loader) == expected
            steps[drop_last] += expected
        assert len(sampler) == length
        parts = [list(sampler) for sampler in samplers]
        assert [len(part) for part in parts] == [length] * num_replicas
        merged = [i for group in zip(*parts) for i in group][:size]
        assert len(set(merged)) == size
        if full:
            assert set(merged) == set(range(11))
    for drop_last in [False, True]:
        assert sampler.total_steps(2, drop_last) == steps[drop_last]
    num_graphs = sampler.history()['num_graphs']
    assert num_graphs == [
        11 if i < warmup or i >= 7 - anneal else 4 for i in range(7)
    ]


def test_steps_of_a_loader():
    sampler = SoftRandomSampler(11, 0.4, 5, warmup_epochs=1, anneal_epochs=1)
    loader = DataLoader(make_graphs(11), 2, sampler=sampler)
    steps = []
    for _ in range(5):
        planned = len(loader)
        steps.append(sum(1 for _ in loader))
        assert steps[-1] == planned
    assert steps == [6, 2, 2, 2, 6] and sampler.total_steps(2) == 18


def test_epochs_after_the_last_one_are_annealed():
    sampler = SoftRandomSampler(10, 0.5, 3, anneal_epochs=1)
    assert [len(list(sampler)) for _ in range(5)] == [5, 5, 10, 10, 10]
    sampler = SoftRandomSampler(10, 0.5, 3)
    assert [len(list(sampler)) for _ in range(5)] == [5] * 5


@pytest.mark.parametrize('name', OPTIONS)
def test_ranks_share_a_draw_with_options(name):
    options = dict(y=LABELS, **OPTIONS[name])
    whole = SoftRandomSampler(100, 0.31, 3, **options)
    samplers = [
        SoftRandomSampler(100, 0.31, 3, num_replicas=4, rank=rank, **options)
        for rank in range(4)
    ]
    for _ in range(3):
        expected = list(whole)
        parts = [list(sampler) for sampler in samplers]
        merged = [i for group in zip(*parts) for i in group]
        assert merged == expected + expected[:1]  # Padded.
        graph_idx = torch.tensor(expected)
        weight = whole.loss_weight(graph_idx)
        for sampler in samplers:
            assert torch.equal(sampler.loss_weight(graph_idx), weight)


@pytest.mark.parametrize('name', OPTIONS)
def test_state_resumes_with_options(name):
    def make(seed=0):
        return SoftRandomSampler(
            100, 0.3, 9, y=LABELS, anneal_epochs=2, seed=seed, **OPTIONS[name]
        )

    sampler = make()
    list(sampler), list(sampler)
    state = sampler.state_dict()
    graph_idx = torch.arange(100)
    weight = sampler.loss_weight(graph_idx)
    expected = [list(sampler) for _ in range(7)]
    history = sampler.history()

    other = make(seed=5)
    list(other)
    other.load_state_dict(state)
    assert_same_state(other.state_dict(), state)
    assert torch.equal(other.loss_weight(graph_idx), weight)
    assert [list(other) for _ in range(7)] == expected
    assert other.history() == history

    # The current epoch is repeated in the same order:
    other = make(seed=5)
    other.load_state_dict(state)
    repeated = make()
    list(repeated), list(repeated)
    for x in [other, repeated]:
        x.set_epoch(1)
    assert list(other) == list(repeated)


def test_feedback_of_copies():
    class CopySampler(WeightedSampler):
        def update(self, feedback, graph_idx):
            self._record(graph_idx, feedback.view(-1, 1))

        def _observe(self, graph_idx, feedback):
            self.observed = dict(
                zip(graph_idx.tolist(), feedback.view(-1).tolist())
            )

    weight = torch.tensor([6.0, 3.0, 2.0, 1.0])
    sampler = CopySampler(weight, 1.0, 2, replacement=True)
    drawn = list(sampler)
    assert sorted(drawn)[:3] == [0, 0, 1] and len(drawn) == 4
    values = torch.arange(4.0)
    sampler.update(values[:2], torch.tensor(drawn[:2]))
    sampler.update(values[2:], torch.tensor(drawn[2:]))
    list(sampler)
    assert sampler.observed == {
        i: pytest.approx(values[torch.tensor(drawn) == i].mean().item())
        for i in set(drawn)
    }


def test_errors_of_options():
    y = torch.tensor([0] * 6 + [1] * 3)
    for options, message in [
        (dict(balance=-0.1), r"'balance' of 'ToySampler' .* \(got -0.1\)"),
        (dict(balance=1.1), r"'balance' .* in \[0, 1\] \(got 1.1\)"),
        (dict(balance=float('nan')), r"'balance' .* \(got nan\)"),
        (dict(min_per_class=-1), r"'min_per_class' .* \(got -1\)"),
        (
            dict(min_per_class=3, y=y),
            r"'min_per_class' .* 2 times into 4 draws \(got 3\)",
        ),
        (dict(warmup_epochs=-1), r"'warmup_epochs' .* \(got -1\)"),
        (dict(anneal_epochs=-2), r"'anneal_epochs' .* \(got -2\)"),
        (dict(y=y[1:]), r"'y' .* of 9 classes, .* \(got \[8\]\)"),
        (dict(y=[0] * 9), r"'y' .* tensor .* \(got .*list"),
        (dict(y=torch.tensor(1)), r"'y' .* \(got \[\]\)"),
        (dict(y=torch.rand(9)), r"'y' .* \(got torch.float32 of shape"),
        (dict(y=torch.zeros(9, 2)), r"'y' .* one integer per graph"),
        (dict(rank=-1), r"'rank' .* \(got -1\)"),
        (dict(num_replicas=0), r"'rank' .* 'num_replicas'"),
    ]:
        with pytest.raises(ValueError, match=message):
            ToySampler(9, 0.5, 2, **options)
    with pytest.raises(ValueError, match=r"'batch_size' .* \(got -1\)"):
        ToySampler(9, 0.5, 2).total_steps(-1)
