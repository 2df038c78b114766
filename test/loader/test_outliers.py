import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_geometric_ext.loader import outliers
from torch_geometric_ext.loader.outliers import find_gap, robust_distance


def make_rows(num_rows, num_outliers, device=None, seed=12345):
    torch.manual_seed(seed)
    x = torch.randn(num_rows, 8) @ torch.randn(8, 8)
    x[:num_outliers] += 30.0
    return x.to(device)


@withCUDA
@pytest.mark.parametrize('num_rows', [100, 5000])
def test_robust_distance(num_rows, device):
    x = make_rows(num_rows, num_rows // 10, device)
    distance = robust_distance(x)
    gap, threshold, _ = find_gap(distance.cpu())
    assert gap > 0.5
    expected = torch.arange(num_rows, device=device) < num_rows // 10
    assert torch.equal(distance > threshold, expected)
    assert distance.median().abs() < 1e-6


def test_robust_distance_of_clean_rows():
    # Distances approach those of the covariance of all rows:
    torch.manual_seed(12345)
    x = torch.randn(5000, 8) * torch.linspace(0.5, 5, 8)
    center = x - x.mean(dim=0)
    cov = center.t() @ center / len(x)
    exact = ((center @ cov.inverse()) * center).sum(dim=-1).log()
    pair = torch.stack([robust_distance(x), exact])
    assert pair.corrcoef()[0, 1] > 0.95


def test_robust_distance_of_a_sample(monkeypatch):
    x = make_rows(5000, 500)
    distance = robust_distance(x)
    monkeypatch.setattr(outliers, 'MAX_ROWS', 10**6)
    expected = robust_distance(x)
    assert not torch.equal(distance, expected)
    assert (distance - expected).abs().max() < 0.5
    assert torch.stack([distance, expected]).corrcoef()[0, 1] > 0.99


def test_robust_distance_of_few_rows():
    assert robust_distance(torch.randn(7, 3)).tolist() == [0.0] * 7
