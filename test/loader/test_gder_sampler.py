import copy
import warnings

import pytest
import torch
from torch.utils.data import Subset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import GDeRSampler
from torch_geometric_ext.nn import HypersphericalPrototypes


def assert_same_state(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value, other[key], rtol=0, atol=0, equal_nan=True
            )
        else:
            assert value == other[key], key


class FakePrototypes(torch.nn.Module):
    """Return the embedding as the unfamiliarity."""

    def forward(self, h, y):
        zero = h.new_zeros(h.size(0))
        return h.sum() * 0, torch.stack([zero, h[:, 0], zero], dim=-1)


class Trainer:
    """Train prototypes on fixed embeddings of `num_graphs` graphs."""

    def __init__(self, num_graphs=60, keep_ratio=0.5, num_epochs=20, **kwargs):
        torch.manual_seed(12345)
        device = kwargs.pop('device', None)
        self.batch_size = kwargs.pop('batch_size', 8)
        self.y = torch.randint(2, (num_graphs,), device=device)
        self.h = torch.randn(num_graphs, 4, device=device)
        self.h[:, 0] += 2 * self.y
        self.prototypes = HypersphericalPrototypes(4, 2).to(device)
        self.optimizer = torch.optim.Adam(self.prototypes.parameters(), 0.01)
        kwargs.setdefault('draw', 'paper')
        self.sampler = GDeRSampler(
            num_graphs, self.prototypes, keep_ratio, num_epochs, **kwargs
        )

    def epoch(self):
        graphs = list(self.sampler)
        graph_idx = torch.tensor(graphs, device=self.y.device)
        for idx in graph_idx.split(self.batch_size):
            self.optimizer.zero_grad()
            self.sampler.update(self.h[idx], self.y[idx], idx).backward()
            self.optimizer.step()
        return graphs

    def state_dict(self):
        parts = [self.prototypes, self.optimizer, self.sampler]
        return copy.deepcopy([part.state_dict() for part in parts])

    def load_state_dict(self, state):
        self.prototypes.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])
        self.sampler.load_state_dict(state[2])


@withDevice
def test_gder_sampler(device, ext):
    trainer = Trainer(device=device)
    assert str(trainer.sampler) == (
        'GDeRSampler(60, keep_ratio=0.5, num_epochs=20)'
    )
    assert trainer.sampler.scores.isnan().all()
    epochs = [trainer.epoch() for _ in range(20)]
    assert all(len(set(epoch)) == len(epoch) == 30 for epoch in epochs)
    assert set().union(*epochs) == set(range(60))

    # Subsets overlap less and less (Eq. (14)):
    sets = [set(epoch) for epoch in epochs]
    overlap = [len(a & b) for a, b in zip(sets, sets[1:])]
    expected = [round(30 * 0.7 * (1 - t / 20) ** 2) for t in range(19)]
    assert overlap == expected

    trainer.sampler.set_epoch(20)
    assert trainer.sampler.scores.isfinite().all()
    assert (trainer.sampler.scores > 0).all()


def test_gder_sampler_is_deterministic(ext):
    trainers = [Trainer(), Trainer(), Trainer(seed=1)]
    epochs = [[t.epoch() for _ in range(5)] for t in trainers]
    assert epochs[0] == epochs[1] != epochs[2]


def test_gder_sampler_state(ext):
    trainer = Trainer()
    for _ in range(3):
        trainer.epoch()
    state = trainer.state_dict()
    expected = [trainer.epoch() for _ in range(5)]

    other = Trainer(seed=1)
    other.epoch()
    other.load_state_dict(state)
    assert [other.epoch() for _ in range(5)] == expected
    assert_same_state(other.sampler.state_dict(), trainer.sampler.state_dict())

    # An incomplete state changes nothing:
    before = other.sampler.state_dict()
    state[2].pop('scores')
    with pytest.raises(ValueError, match=r"none of \['scores'\]"):
        other.sampler.load_state_dict(state[2])
    assert_same_state(other.sampler.state_dict(), before)


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('subset', [False, True])
def test_scores_are_keyed_by_graph(num_workers, drop_last, subset):
    graphs = [
        Data(x=torch.full((1, 1), float(i)), y=torch.tensor([i % 2]))
        for i in range(40)
    ]
    identity = torch.arange(40)
    if subset:
        identity = identity.flip(0)[::2]
        graphs = Subset(graphs, identity.tolist())
    dataset = IndexedDataset(graphs)
    sampler = GDeRSampler(
        dataset,
        FakePrototypes(),
        0.6,
        num_epochs=9,
        draw='paper',
        standardize=False,
    )
    loader = DataLoader(
        dataset,
        batch_size=5,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        persistent_workers=num_workers > 0,
    )
    for epoch in range(9):
        for batch in loader:
            # Encode the graph and the epoch in the score:
            h = batch.x / 40 + epoch / 80
            sampler.update(h, batch.y, batch.graph_idx)

    sampler.set_epoch(9)
    crowd = torch.tensor(1.0).sigmoid()  # All graphs share a prototype.
    unfamiliarity = (sampler.scores * 0.5 * crowd).logit() - identity / 40
    last_epoch = 80 * unfamiliarity[sampler.scores.isfinite()]
    assert ((last_epoch - last_epoch.round()).abs() < 0.01).all()
    assert last_epoch.round().min() >= 0 and last_epoch.round().max() == 8
    assert sampler.scores.isfinite().sum() >= 0.9 * len(dataset)


def test_scores():
    class Scores(torch.nn.Module):
        def forward(self, h, y):
            return h.sum(), h

    # Each row: risk, unfamiliarity and nearest prototype of a graph.
    h = torch.tensor(
        [[1.0, 3.0, 0.0], [2.0, 2.0, 0.0], [4.0, 9.0, 0.0], [1.0, 3.0, 2.0]]
    )
    args = h, torch.zeros(4, dtype=torch.long), torch.arange(4)
    crowd = torch.tensor([0.75, 0.75, 0.75, 0.25])
    for standardize in [True, False]:
        sampler = GDeRSampler(
            4, Scores(), 1.0, 2, draw='paper', standardize=standardize
        )
        list(sampler)
        sampler.update(*args)
        list(sampler)
        risk, unfamiliarity = h[:, 0], h[:, 1]
        if standardize:
            risk, unfamiliarity, other = (
                (x - x.mean()) / x.std(correction=0)
                for x in [risk, unfamiliarity, crowd]
            )
        else:
            other = crowd
        expected = unfamiliarity.sigmoid() / (
            (risk.sigmoid() + 1e-6) * (other.sigmoid() + 1e-6)
        )
        torch.testing.assert_close(sampler.scores, expected)

    # Graphs whose new scores are not finite keep their last score:
    h = h.clone()
    h[1, 0] = float('nan')
    before = sampler.scores.clone()
    sampler.update(h[:2], args[1][:2], args[2][:2])
    sampler.set_epoch(2)
    assert sampler.scores[1] == before[1] and sampler.scores[0] != before[0]


@pytest.mark.filterwarnings('ignore:.*got no feedback')
def test_draws_are_in_proportion_to_scores():
    sampler = GDeRSampler(200, FakePrototypes(), 0.2, 10**6, draw='paper')
    sampler.scores[:100], sampler.scores[100:] = 1.0, 4.0
    count = torch.zeros(2)
    for epoch in range(200):
        sampler.set_epoch(10**6 + epoch)  # Retains no graph.
        count += (torch.tensor(list(sampler)) // 100).bincount(minlength=2)
    # Below 4 / 5, as the previous subset is excluded:
    assert 0.65 < float(count[1] / count.sum()) < 0.8

    # Graphs without a score have the mean score:
    sampler = GDeRSampler(200, FakePrototypes(), 0.2, 10**6, draw='paper')
    sampler.scores[::4], sampler.scores[2::4] = 1.0, 3.0
    count = torch.zeros(2)
    for epoch in range(200):
        sampler.set_epoch(10**6 + epoch)
        count += (torch.tensor(list(sampler)) % 2).bincount(minlength=2)
    assert 0.45 < float(count[1] / count.sum()) < 0.6


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(num_graphs=1),
        dict(keep_ratio=1.0),
        dict(keep_ratio=0.9),
        dict(keep_ratio=1e-6),
        dict(batch_size=1),
        dict(retention=0.0),
        dict(retention=1.0, retention_decay=0.0),
        dict(num_epochs=1),
    ],
)
def test_corner_cases(kwargs, ext):
    trainer = Trainer(**kwargs)
    for _ in range(5):  # Also beyond `num_epochs`.
        out = trainer.epoch()
        assert len(set(out)) == len(out) == trainer.sampler.budget


def test_all_graphs_equal(ext):
    trainer = Trainer()
    trainer.h[:], trainer.y[:] = 1.0, 0
    epochs = [trainer.epoch() for _ in range(20)]
    assert set().union(*epochs) == set(range(60))


def test_warnings():
    trainer = Trainer()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(3):
            trainer.epoch()

    trainer = Trainer()
    trainer.optimizer = torch.optim.SGD(trainer.prototypes.parameters(), 0.0)
    trainer.epoch()
    with pytest.warns(UserWarning, match='found its prototypes unchanged'):
        trainer.epoch()
    with warnings.catch_warnings():  # Only once.
        warnings.simplefilter('error')
        trainer.epoch()

    trainer = Trainer()
    trainer.epoch()
    other = Trainer()
    other.load_state_dict(trainer.state_dict())
    with warnings.catch_warnings():  # Trained by another process.
        warnings.simplefilter('error')
        other.epoch()

    sampler = Trainer().sampler
    next(iter(sampler))  # An unfinished epoch does not warn.
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        list(sampler)
    with pytest.warns(UserWarning, match='got no feedback in epoch 1'):
        list(sampler)


def test_errors():
    graphs = [Data(x=torch.ones(1, 1)) for _ in range(10)]
    indexed, prototypes = (
        IndexedDataset(graphs),
        HypersphericalPrototypes(4, 2),
    )
    for wrong in [graphs, Subset(indexed, [0, 1])]:
        with pytest.raises(TypeError, match="needs to be an 'IndexedDataset'"):
            GDeRSampler(wrong, prototypes, 0.5, 10)
    with pytest.raises(TypeError, match="'prototypes' of 'GDeRSampler'"):
        GDeRSampler(indexed, 2, 0.5, 10)
    with pytest.raises(ValueError, match=r"'retention' .* \(got 1.5\)"):
        GDeRSampler(indexed, prototypes, 0.5, 10, retention=1.5)
    with pytest.raises(ValueError, match=r"'retention_decay' .* \(got -1\)"):
        GDeRSampler(indexed, prototypes, 0.5, 10, retention_decay=-1)

    for kwargs, message in [
        (dict(balance=2.0), r"'balance' .* be 'auto' or in \[0, 1\]"),
        (dict(balance='yes'), r"'balance' .* \(got yes\)"),
        (dict(draw='random'), "'draw' .* be 'trusted' or 'paper'"),
    ]:
        with pytest.raises(ValueError, match=message):
            GDeRSampler(indexed, prototypes, 0.5, 10, **kwargs)
    sampler = GDeRSampler(indexed, prototypes, 0.5, 10, draw='paper')
    with pytest.raises(NotImplementedError, match="draw='trusted'"):
        sampler.suspects()

    sampler = GDeRSampler(indexed, prototypes, 0.5, 10)
    h, y = torch.randn(2, 4), torch.tensor([0, 1])
    graph_idx = torch.tensor(list(sampler))[:2]
    with pytest.raises(TypeError, match=r'\(got None\). Wrap the data set'):
        sampler.update(h, y, None)
    with pytest.raises(TypeError, match=r'\(got torch.int32\)'):
        sampler.update(h, y, graph_idx.int())
    with pytest.raises(ValueError, match=r'of shape \[2\], .* \(got \[1\]\)'):
        sampler.update(h, y, graph_idx[:1])
    with pytest.raises(ValueError, match="'h' of 'HypersphericalPrototypes'"):
        sampler.update(torch.randn(2, 5), y, graph_idx)
    with pytest.raises(ValueError, match=r'labels in \[0, 2\)'):
        sampler.update(h, y + 1, graph_idx)
    with pytest.raises(ValueError, match='drawn in the current epoch 0'):
        sampler.update(h, y, torch.tensor([10, 0]))
    state = sampler.state_dict()  # Nothing is recorded:
    assert state['graph_idx'].numel() == state['embedding_idx'].numel() == 0


def run_rank(path):
    rank = torch.distributed.get_rank()
    trainer = Trainer(num_graphs=61)
    assert trainer.sampler.num_replicas == 2 and trainer.sampler.rank == rank
    trainer.prototypes = torch.nn.parallel.DistributedDataParallel(
        trainer.prototypes
    )
    trainer.sampler.prototypes = trainer.prototypes
    epochs = [trainer.epoch() for _ in range(4)]
    state = trainer.sampler.state_dict()

    # New feedback replaces the old one if an epoch is repeated:
    trainer.sampler.load_state_dict(state)
    trainer.sampler.set_epoch(3)
    trainer.h = -trainer.h
    assert trainer.epoch() == epochs[-1]
    again = trainer.sampler.state_dict()
    torch.save((epochs, state, again), f'{path}/{rank}.pt')


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    (first, state, again), (second, other, _) = (
        torch.load(tmp_path / f'{rank}.pt') for rank in range(2)
    )
    # Both ranks have the same state, with feedback of all graphs:
    assert_same_state(state, other)
    for a, b in zip(first, second):
        assert len(a) == len(b) == 15
        assert len(set(a) | set(b)) == 30
    assert state['graph_idx'].tolist() == sorted(first[-1] + second[-1])
    assert state['scores'].isfinite().sum() > 40
    assert torch.equal(again['graph_idx'], state['graph_idx'])
    assert (again['feedback'] != state['feedback']).any(dim=1).all()
