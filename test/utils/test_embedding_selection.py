from itertools import combinations

import pytest
import torch

from devices import withDevice
from torch_geometric_ext.ops import herding
from torch_geometric_ext.utils import herding_selection, k_center_selection

SELECTIONS = [herding_selection, k_center_selection]


def herd(h, num):
    """Try all graphs in each step."""
    out = []
    for _ in range(num):
        distance = [
            float((h[[*out, i]].mean(dim=0) - h.mean(dim=0)).norm())
            if i not in out
            else torch.inf
            for i in range(len(h))
        ]
        out.append(distance.index(min(distance)))
    return out


def cover(h, num):
    distance = torch.cdist(h, h)
    out = [int((h - h.mean(dim=0)).norm(dim=1).argmin())]
    while len(out) < num:
        out.append(int(distance[out].min(dim=0)[0].argmax()))
    return out


@withDevice
@pytest.mark.parametrize('select', SELECTIONS)
def test_selection(device, select):
    h = torch.randn(40, 3, generator=torch.manual_seed(1)).double()
    brute_force = herd if select is herding_selection else cover
    out = select(h.to(device), keep_ratio=0.5)
    assert out.dtype == torch.int64 and out.device == device
    assert out.tolist() == brute_force(h, 20)
    # The first graphs of a larger selection are the smaller one:
    assert torch.equal(select(h.to(device), keep_ratio=0.2), out[:8])

    y = torch.tensor(24 * [1] + 16 * [0])[torch.randperm(40)]
    out = select(h.to(device), keep_ratio=0.5, y=y.to(device)).cpu()
    expected = []
    for label, num in [(0, 8), (1, 12)]:
        index = (y == label).nonzero().view(-1)
        expected += index[brute_force(h[index], num)].tolist()
    assert out.tolist() == expected
    out = select(h, keep_ratio=0.5, y=y, balance=1.0)
    assert y[out].bincount().tolist() == [10, 10]

    # Equal graphs are distinct, and all graphs can be selected:
    out = select(torch.ones(10, 2, device=device), keep_ratio=1.0)
    assert out.sort()[0].tolist() == list(range(10))


def test_herding_selection_equals_operator():
    h = torch.randint(-50, 50, (60, 4), generator=torch.manual_seed(2))
    out = herding(
        torch.arange(61) * 4,
        torch.arange(4).repeat(60),
        h.view(-1),
        torch.tensor([0, 60]),
        num_samples=30,
    )
    assert torch.equal(herding_selection(h.double(), 0.5), out)


def test_herding_selection_keeps_the_mean():
    h = torch.randn(500, 8, generator=torch.manual_seed(3)) + 5
    error = (h[herding_selection(h, 0.1)].mean(0) - h.mean(0)).norm()
    random = (h[:50].mean(0) - h.mean(0)).norm()
    assert error < 0.1 * random


def test_k_center_selection_covers_within_twice_the_optimum():
    for seed in range(10):
        h = torch.randn(12, 2, generator=torch.manual_seed(seed))
        distance = torch.cdist(h, h)
        radius = {
            centers: float(distance[list(centers)].min(dim=0)[0].max())
            for centers in combinations(range(12), 3)
        }
        out = k_center_selection(h, 0.25)
        assert radius[tuple(sorted(out.tolist()))] <= 2 * min(radius.values())


@pytest.mark.parametrize('select', SELECTIONS)
def test_errors(select):
    h = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"'h' .* \(got \[8\]\)"):
        select(h.view(-1), 0.5)
    with pytest.raises(
        ValueError, match=f"'keep_ratio' of '{select.__name__}"
    ):
        select(h, 1.5)
    with pytest.raises(ValueError, match=r'\[3\] for 4 graphs'):
        select(h, 0.5, torch.arange(3))
    h[1, 0] = float('nan')
    with pytest.raises(ValueError, match=r'finite \(got 1 rows'):
        select(h, 0.5)
