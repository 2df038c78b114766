"""Tests of the default draw of `GDeRSampler`."""

import copy

import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

import torch_geometric_ext.loader.gder_sampler
from devices import withDevice
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import GDeRSampler
from torch_geometric_ext.loader.trusted_draw import NUM_PROBES, TrustedDraw

SCALE = 1024  # Nearest prototypes hardly change embeddings.


class FakePrototypes(torch.nn.Module):
    """Return nearest prototypes from the last column of the embedding."""

    num_prototypes = 2

    def __init__(self):
        super().__init__()
        self.dummy = torch.nn.Parameter(torch.zeros(()))

    def forward(self, h, y):
        with torch.no_grad():
            self.dummy.add_(1.0)
        zero = h.new_zeros(h.size(0))
        nearest = (h[:, -1].detach() * SCALE).round()
        scores = torch.stack([zero, zero, nearest], dim=-1)
        return h.sum() * 0, scores


def make_data(num_graphs=400, fraction=0.1, seed=0):
    """Return embeddings, a tenth of which have other directions."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(num_graphs, 8, generator=generator)
    h = torch.cat([h + 4, 0.3 * torch.randn(h.shape, generator=generator)], 1)
    perm = torch.randperm(num_graphs, generator=generator)
    outlier = torch.zeros(num_graphs, dtype=torch.bool)
    outlier[perm[: round(fraction * num_graphs)]] = True
    noise = torch.randn(num_graphs, 16, generator=generator)
    h[outlier] = 4 * noise[outlier]
    y = torch.randint(2, (num_graphs,), generator=generator)
    return h, y, outlier


class Trainer:
    """Pass fixed embeddings to a sampler, in mini-batches."""

    def __init__(self, h, y, nearest=None, keep_ratio=0.5, **kwargs):
        # The nearest prototype is of the class of the graph by default:
        nearest = 2 * y if nearest is None else nearest
        nearest = nearest.view(-1, 1).to(h) / SCALE
        self.h = torch.cat([h, nearest], dim=1)
        self.y = y
        self.batch_size = kwargs.pop('batch_size', 16)
        kwargs = {'num_epochs': 20, 'y': kwargs.pop('groups', None), **kwargs}
        self.sampler = GDeRSampler(
            y.numel(), FakePrototypes(), keep_ratio, **kwargs
        )

    def epoch(self):
        out = list(self.sampler)
        graph_idx = torch.tensor(out, device=self.y.device)
        for idx in graph_idx.split(self.batch_size):
            self.sampler.update(self.h[idx], self.y[idx], idx)
        return out


@withDevice
@pytest.mark.parametrize('keep_ratio', [0.3, 0.5, 1.0])
def test_outliers_become_suspects(device, keep_ratio):
    h, y, outlier = make_data()
    trainer = Trainer(h.to(device), y.to(device), keep_ratio=keep_ratio)
    draws = []
    for _ in range(20):
        out = trainer.epoch()
        assert len(out) == trainer.sampler.budget
        draws.append(int(outlier[out].sum()))
    trainer.sampler.set_epoch(20)
    suspects = trainer.sampler.suspects()
    assert suspects.dtype == torch.int64
    assert outlier[suspects].float().mean() > 0.9  # Precision.
    assert outlier[suspects].sum() > 0.9 * outlier.sum()  # Recall.
    scores = trainer.sampler.scores[suspects]
    assert torch.equal(scores, scores.sort(descending=True).values)
    # Graphs without a score come first, then suspects are hardly drawn:
    assert max(draws[6:]) <= 3 and sum(draws[-3:]) <= 1
    num_suspects = trainer.sampler.history()['num_suspects']
    assert num_suspects[0] == 0 and num_suspects[-1] == suspects.numel()


def test_each_graph_is_drawn_before_suspicion():
    h, y, _ = make_data()
    trainer = Trainer(h, y, keep_ratio=0.25)
    drawn = [graph for _ in range(4) for graph in trainer.epoch()]
    assert sorted(drawn) == list(range(400))


def test_clean_graphs_are_not_distrusted():
    h, y, _ = make_data(fraction=0.0)
    for robust in [True, False]:
        trainer = Trainer(h, y, robust=robust)
        for _ in range(10):
            assert len(set(trainer.epoch())) == 200
        assert trainer.sampler.suspects().numel() == 0
    h, y, _ = make_data()
    trainer = Trainer(h, y, robust=False)
    for _ in range(10):
        trainer.epoch()
    assert trainer.sampler.suspects().numel() == 0


def test_a_class_is_not_corrupted():
    h, _, outlier = make_data()
    trainer = Trainer(h, outlier.long())  # Outliers are a class of their own.
    for _ in range(10):
        trainer.epoch()
    assert trainer.sampler.suspects().numel() == 0


def test_a_class_that_is_not_learned_is_balanced():
    h, _, _ = make_data(fraction=0.0)
    y = (torch.arange(400) < 40).long()
    trainer = Trainer(h, y, nearest=torch.zeros(400))
    for epoch in range(10):
        count = y[trainer.epoch()].bincount(minlength=2)
        if epoch >= NUM_PROBES:
            assert count.tolist() == [100, 100]
        else:
            assert count[1] < 60
    balance = trainer.sampler.history()['balance']
    assert balance == [0.0] * NUM_PROBES + [1.0] * (10 - NUM_PROBES)


def test_wrong_labels_do_not_balance():
    h, _, _ = make_data(fraction=0.0)
    true = (torch.arange(400) < 40).long()
    y = true.clone()
    y[40:80] = 1  # Half of the labels of the class are wrong.
    trainer = Trainer(h, y, nearest=2 * true)
    for _ in range(10):
        trainer.epoch()
    assert set(trainer.sampler.history()['balance']) == {0.0}


def test_fixed_balance():
    h, _, _ = make_data(fraction=0.0)
    y = (torch.arange(400) < 40).long()
    for balance, expected in [(0.0, 20), (1.0, 100)]:
        trainer = Trainer(h, y, groups=y, balance=balance)
        for _ in range(3):
            count = y[trainer.epoch()].bincount(minlength=2)
            # Graphs without a score come first, and are no sample of classes:
            assert balance == 0.0 or abs(int(count[1]) - expected) <= 1


def test_labels_are_learned_from_feedback():
    h, _, _ = make_data(fraction=0.0)
    y = (torch.arange(400) < 40).long()
    trainer = Trainer(h, y)
    trainer.epoch()
    assert 'per_class' not in trainer.sampler.history()
    trainer.epoch()
    trainer.epoch()
    # Some graphs of the second epoch are of unknown class:
    assert trainer.sampler.history()['per_class'][:2] == [None, None]
    count = trainer.sampler.history()['per_class'][2]
    assert sum(count) == 200


def test_virtual_classes():
    h, y, outlier = make_data()
    trainer = Trainer(h, y, nearest=torch.arange(400) % 6)
    trainer.y = torch.zeros(400, dtype=torch.long)
    for _ in range(20):
        graph_idx = torch.tensor(list(trainer.sampler))
        for idx in graph_idx.split(16):
            trainer.sampler.update(trainer.h[idx], None, idx)
    assert set(trainer.sampler.history()['balance']) == {0.0}
    count = trainer.sampler.history()['per_class'][-1]
    assert len(count) == 3 and sum(count) == 200
    suspects = trainer.sampler.suspects()
    assert outlier[suspects].float().mean() > 0.9


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('subset', [False, True])
def test_distances_are_keyed_by_graph(num_workers, subset):
    h, y, outlier = make_data(200)
    graphs = [
        Data(
            x=h[i : i + 1], y=y[i : i + 1], edge_index=torch.empty(2, 0).long()
        )
        for i in range(200)
    ]
    if subset:
        identity = torch.arange(200).flip(0)
        graphs, outlier = Subset(graphs, identity.tolist()), outlier[identity]
    dataset = IndexedDataset(graphs)
    sampler = GDeRSampler(dataset, FakePrototypes(), 0.5, num_epochs=20)
    loader = DataLoader(
        dataset,
        batch_size=16,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    for _ in range(8):
        for batch in loader:
            nearest = 2 * batch.y.view(-1, 1) / SCALE
            x = torch.cat([batch.x, nearest], dim=1)
            sampler.update(x, batch.y, batch.graph_idx)
    sampler.set_epoch(8)
    assert outlier[sampler.suspects()].float().mean() > 0.9
    assert outlier[sampler.suspects()].sum() > 0.9 * outlier.sum()


def test_chunks_of_embeddings(monkeypatch):
    h, y, outlier = make_data(1000)
    module = torch_geometric_ext.loader.gder_sampler
    monkeypatch.setattr(module, 'MAX_EMBEDDINGS', 200)
    trainer = Trainer(h, y)
    for _ in range(6):
        trainer.epoch()
        state = trainer.sampler.state_dict()
        assert state['embedding_idx'].numel() < 200
    trainer.sampler.set_epoch(6)
    assert outlier[trainer.sampler.suspects()].sum() > 0.9 * outlier.sum()
    assert outlier[trainer.sampler.suspects()].float().mean() > 0.8


def test_state_resumes():
    h, y, _ = make_data()
    trainer = Trainer(h, y)
    for _ in range(5):
        trainer.epoch()
    state = copy.deepcopy(trainer.sampler.state_dict())
    expected = [trainer.epoch() for _ in range(5)]
    other = Trainer(h, y, seed=1)
    other.epoch()
    other.sampler.load_state_dict(state)
    assert [other.epoch() for _ in range(5)] == expected
    assert other.sampler.history() == trainer.sampler.history()
    suspects = trainer.sampler.suspects()
    assert torch.equal(other.sampler.suspects(), suspects)

    # A repeated epoch replaces its feedback:
    other.sampler.load_state_dict(state)
    other.sampler.set_epoch(4)
    assert other.sampler.state_dict()['embedding_idx'].numel() == 0
    other.epoch()
    assert [other.epoch() for _ in range(5)] == expected


@pytest.mark.parametrize(
    'key',
    ['distance', 'suspicion', 'suspicious', 'recall', 'embedding', 'group'],
)
def test_damaged_states(key):
    h, y, _ = make_data()
    trainer = Trainer(h, y)
    trainer.epoch(), trainer.epoch()
    state = trainer.sampler.state_dict()
    before = copy.deepcopy(state)
    for value in [None, 'text', torch.ones(3, 3, 3)]:
        with pytest.raises(ValueError, match=f"wrong '{key}'"):
            trainer.sampler.load_state_dict({**state, key: value})
    after = trainer.sampler.state_dict()
    assert torch.equal(before['order'], after['order'])
    for name in ['distance', 'suspicion', 'embedding', 'group']:
        torch.testing.assert_close(before[name], after[name], equal_nan=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.double])
def test_other_types(dtype):
    h, y, outlier = make_data()
    trainer = Trainer(h.to(dtype), y)
    for _ in range(8):
        trainer.epoch()
    trainer.sampler.set_epoch(8)
    assert outlier[trainer.sampler.suspects()].sum() > 0.9 * outlier.sum()


@pytest.mark.parametrize(
    'case', ['one', 'two', 'equal', 'zero', 'nan', 'one class', 'wide']
)
def test_corner_cases(case):
    h, y, _ = make_data({'one': 1, 'two': 2}.get(case, 60))
    if case == 'equal':
        h[:] = 1.0
    if case == 'zero':
        h[:] = 0.0
    if case == 'nan':
        h[::3] = float('nan')
    if case == 'one class':
        y[:] = 1
    if case == 'wide':
        h = h.repeat(1, 10)
    trainer = Trainer(h, y)
    for _ in range(22):  # Also beyond `num_epochs`.
        assert len(trainer.epoch()) == trainer.sampler.budget


def test_repeats_are_averaged():
    policy = TrustedDraw(10, 5, None, True)
    feedback = torch.tensor([[1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    policy.observe(torch.tensor([2, 5]), feedback)
    assert policy.distance[2] == 1.0 and policy.distance[5] == 3.0
    policy.observe(torch.tensor([2]), feedback[1:])
    assert policy.distance[2] == 2.0  # Moves half of the way.
    assert int(policy.distance.isfinite().sum()) == 2


def run_rank(path):
    rank = torch.distributed.get_rank()
    h, y, _ = make_data(401)
    trainer = Trainer(h, y)
    epochs = [trainer.epoch() for _ in range(6)]
    state = trainer.sampler.state_dict()
    torch.save((epochs, state), f'{path}/{rank}.pt')


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    (first, state), (second, other) = (
        torch.load(tmp_path / f'{rank}.pt') for rank in range(2)
    )
    h, y, _ = make_data(401)
    single = Trainer(h, y)
    for a, b in zip(first, second):
        merged = [graph for pair in zip(a, b) for graph in pair]
        assert single.epoch() == merged[:200]  # Equals one rank.
    assert torch.equal(state['suspicion'], other['suspicion'])
    assert torch.equal(state['embedding_idx'], other['embedding_idx'])
