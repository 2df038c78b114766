import pytest
import torch
from torch_geometric.datasets import FakeDataset

from devices import withDevice
from torch_geometric_ext.utils import random_selection, select_graphs


@withDevice
@pytest.mark.parametrize('largest', [True, False])
@pytest.mark.parametrize('keep_ratio', [1e-6, 0.3, 0.55, 1.0])
def test_select_graphs(device, largest, keep_ratio):
    score = torch.randint(9, (60,), device=device)  # With ties.
    y = torch.tensor(30 * [5] + 18 * [0] + 12 * [-1], device=device)
    y = y[torch.randperm(60, device=device)]
    budget = max(round(60 * keep_ratio), 1)

    def best(positions, num):
        sign = -1 if largest else 1
        positions = sorted(positions, key=lambda i: (sign * int(score[i]), i))
        return positions[:num]

    out = select_graphs(score, keep_ratio, largest=largest)
    assert out.dtype == torch.int64 and out.device == device
    assert out.tolist() == best(range(60), budget)
    assert torch.equal(
        select_graphs(score.to(torch.uint8), keep_ratio, largest=largest), out
    )

    out = select_graphs(score, keep_ratio, y, largest=largest)
    assert out.numel() == budget
    assert out.tolist() == best(out.tolist(), budget)  # Best first.
    for label, size in [(5, 30), (0, 18), (-1, 12)]:
        num = int((y[out] == label).sum())
        assert abs(num - size / 60 * budget) < 1
        members = (y == label).nonzero().view(-1).tolist()
        assert out[y[out] == label].tolist() == best(members, num)


def test_class_budgets():
    y = torch.tensor(80 * [0] + 15 * [1] + 5 * [2])
    score = torch.rand(100)
    cases = [
        (0.4, 0.0, [32, 6, 2]),
        (0.15, 1.0, [5, 5, 5]),
        (0.4, 1.0, [20, 15, 5]),  # Small classes are complete.
        (0.3, 1.0, [13, 12, 5]),
        (1.0, 0.5, [80, 15, 5]),
        (0.01, 0.0, [1, 0, 0]),
        # In proportion to 8.94, 3.87 and 2.24:
        (0.15, 0.5, [9, 4, 2]),
    ]
    for keep_ratio, balance, expected in cases:
        out = select_graphs(score, keep_ratio, y, balance=balance)
        assert y[out].bincount(minlength=3).tolist() == expected
        assert out.unique().numel() == out.numel()


def test_unknown_scores_are_selected_last():
    nan, inf = float('nan'), float('inf')
    score = torch.tensor([nan, 1.0, inf, -inf, nan])
    assert select_graphs(score, 1.0).tolist() == [2, 1, 3, 0, 4]
    assert select_graphs(score, 1.0, largest=False).tolist() == [3, 1, 2, 0, 4]


def test_random_selection():
    out = random_selection(100, 0.3)
    assert out.unique().numel() == out.numel() == 30
    assert torch.equal(out, random_selection(100, 0.3))
    assert not torch.equal(out, random_selection(100, 0.3, seed=1))
    assert len(FakeDataset(num_graphs=100)[out]) == 30

    # Every graph is equally likely:
    count = torch.zeros(10)
    for seed in range(2000):
        count[random_selection(10, 0.3, seed=seed)] += 1
    assert ((count - 600).abs() < 5 * (2000 * 0.3 * 0.7) ** 0.5).all()

    y = torch.tensor(90 * [0] + 10 * [1])
    out = random_selection(100, 0.2, y, balance=1.0)
    assert y[out].bincount().tolist() == [10, 10]


def test_errors():
    score = torch.rand(4)
    with pytest.raises(ValueError, match=r"'score' .* \(got \[2, 2\]\)"):
        select_graphs(score.view(2, 2), 0.5)
    with pytest.raises(ValueError, match=r'in \(0, 1\] \(got 0.0\)'):
        select_graphs(score, 0.0)
    with pytest.raises(ValueError, match=r"'balance' .* \(got 2.0\)"):
        select_graphs(score, 0.5, balance=2.0)
    with pytest.raises(ValueError, match=r'torch.float32 of shape \[4\]'):
        select_graphs(score, 0.5, y=score)
    with pytest.raises(ValueError, match="'num_graphs' of 'random_selection'"):
        random_selection(0, 0.5)
