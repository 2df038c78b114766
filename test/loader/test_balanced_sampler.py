import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import BalancedSampler

LABELS = torch.tensor([2] * 70 + [0] * 20 + [1] * 10)


def count(graph_idx):
    return LABELS[torch.tensor(graph_idx)].bincount(minlength=3)


@pytest.mark.parametrize('keep_ratio', [0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize('balance', [0.0, 0.4, 1.0])
@pytest.mark.parametrize('replacement', [False, True])
def test_classes_are_balanced(keep_ratio, balance, replacement):
    sampler = BalancedSampler(
        100,
        keep_ratio,
        40,
        y=LABELS,
        balance=balance,
        replacement=replacement,
    )
    budget, size = round(100 * keep_ratio), torch.tensor([20, 10, 70])
    weight = size * (100 / (3 * size)) ** balance
    expected = budget * weight / weight.sum()
    total = torch.zeros(3)
    for _ in range(40):
        out = list(sampler)
        assert len(out) == budget
        total += count(out)
        if replacement:
            if balance > 0:
                assert ((count(out) - expected).abs() < 1 + 1e-4).all()
            copies = torch.tensor(out).bincount(minlength=100).float()
            per_graph = (expected / size)[LABELS]
            assert ((copies - per_graph).abs() < 1 + 1e-4).all()
        else:
            assert len(set(out)) == budget
            if balance == 1:  # Small classes are complete first.
                for label, members in enumerate(size.tolist()):
                    assert count(out)[label] >= min(members, budget // 3)
    if replacement:
        torch.testing.assert_close(
            total / 40, expected, atol=2.5 if balance == 0 else 0.6, rtol=0
        )


def test_defaults():
    sampler = BalancedSampler(100, 0.6, 3, y=LABELS)
    assert sampler.balance == 1 and sampler.replacement
    assert str(sampler) == 'BalancedSampler(100, keep_ratio=0.6, num_epochs=3)'
    epochs = [list(sampler) for _ in range(3)]
    assert [count(out).tolist() for out in epochs] == [[20, 20, 20]] * 3
    assert len({tuple(sorted(out)) for out in epochs}) == 3
    other = BalancedSampler(100, 0.6, 3, y=LABELS)
    assert [list(other) for _ in range(3)] == epochs
    other = BalancedSampler(100, 0.6, 3, y=LABELS, seed=1)
    assert list(other) != epochs[0]


@withDevice
def test_loader(device):
    graphs = [
        Data(x=torch.ones(2, 1), y=label.view(1)).to(device)
        for label in LABELS
    ]
    dataset = IndexedDataset(graphs)
    sampler = BalancedSampler(dataset, 0.3, 2)  # Reads the labels of graphs.
    for _ in range(2):
        y = torch.cat(
            [batch.y for batch in DataLoader(dataset, 8, sampler=sampler)]
        )
        assert y.bincount().tolist() == [10, 10, 10]
    graph_idx = torch.arange(100, device=device)
    weight = sampler.loss_weight(graph_idx)
    expected = 3 * LABELS.bincount().to(device)[LABELS.to(device)] / 100
    torch.testing.assert_close(weight, expected)
    # Labels of another device:
    other = BalancedSampler(100, 0.3, 2, y=LABELS.to(device))
    assert count(list(other)).tolist() == [10, 10, 10]


@pytest.mark.parametrize('replacement', [False, True])
def test_ranks(replacement):
    options = dict(y=LABELS, replacement=replacement)
    whole = list(BalancedSampler(100, 0.5, 3, **options))
    parts = [
        list(BalancedSampler(100, 0.5, 3, num_replicas=4, rank=i, **options))
        for i in range(4)
    ]
    assert [i for group in zip(*parts) for i in group] == whole + whole[:2]


def test_state_resumes():
    sampler = BalancedSampler(100, 0.45, 5, y=LABELS)
    list(sampler)
    state = sampler.state_dict()
    other = BalancedSampler(100, 0.45, 5, y=LABELS, seed=7)
    other.load_state_dict(state)
    for _ in range(3):
        assert list(other) == list(sampler)
    assert other.history() == sampler.history()


@pytest.mark.parametrize('sizes', [[1], [5], [1, 1], [9, 1, 1]])
@pytest.mark.parametrize('replacement', [False, True])
def test_few_graphs(sizes, replacement):
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for keep_ratio in [0.1, 0.5, 1.0]:
        sampler = BalancedSampler(
            len(y), keep_ratio, 5, y=y, replacement=replacement
        )
        for _ in range(5):
            out = list(sampler)
            assert len(out) == max(round(keep_ratio * len(y)), 1)
            if not replacement:
                assert len(set(out)) == len(out)


def test_errors():
    with pytest.raises(ValueError, match=r"'y' of 'BalancedSampler' .*none"):
        BalancedSampler(100, 0.5, 3)
    with pytest.raises(ValueError, match=r"'y' .* \(got torch.float32"):
        BalancedSampler(100, 0.5, 3, y=torch.rand(100))
    with pytest.raises(ValueError, match=r"'balance' .* \(got 2.0\)"):
        BalancedSampler(100, 0.5, 3, y=LABELS, balance=2.0)
