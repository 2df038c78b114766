import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devices import withDevice
from torch_geometric_ext.loader import outliers
from torch_geometric_ext.loader.outliers import (
    embedding_features,
    find_gap,
    robust_distance,
)


def make_rows(num_rows, num_outliers, device=None, seed=12345):
    torch.manual_seed(seed)
    x = torch.randn(num_rows, 8) @ torch.randn(8, 8)
    x[:num_outliers] += 30.0
    return x.to(device)


@withDevice
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


def reference_distance(x):
    """State the robust distance in NumPy, without a sample of rows."""
    num_central = int(0.6 * len(x))
    # PyTorch's median is the lower one of two:
    center = np.sort(x, axis=0)[(len(x) - 1) // 2]
    distance = np.abs(x - center).sum(axis=1)
    for _ in range(5):
        central = x[np.argsort(distance, kind='stable')[:num_central]]
        cov = np.cov(central, rowvar=False).reshape(x.shape[1], x.shape[1])
        variance = np.diag(cov)
        ridge = 0.1 * variance + 1e-4 * variance.mean() + 1e-12
        cov = 0.9 * cov + np.diag(ridge)
        offset = x - central.mean(axis=0)
        distance = (offset * np.linalg.solve(cov, offset.T).T).sum(axis=1)
    out = np.log(np.maximum(distance, 1e-12))
    return out - np.sort(out)[(len(x) - 1) // 2]


@pytest.mark.parametrize(
    'shape', [(8, 3), (9, 1), (60, 8), (200, 8), (1000, 4), (20, 50)]
)
def test_robust_distance_against_reference(shape):
    generator = torch.Generator().manual_seed(shape[0])
    x = torch.randn(shape, generator=generator, dtype=torch.double)
    x = x @ torch.randn(
        shape[1], shape[1], generator=generator, dtype=torch.double
    )
    x[: shape[0] // 10] += 5.0
    expected = torch.from_numpy(reference_distance(x.numpy()))
    torch.testing.assert_close(robust_distance(x), expected)


def test_robust_distance_of_moved_and_scaled_rows():
    x = make_rows(400, 40).double()
    expected = robust_distance(x)
    for scale in [1e-3, 1.0, 1e3]:
        out = robust_distance(scale * x + 7.0)
        # Scales hardly matter, as a constant is added to the covariance:
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    perm = torch.randperm(400)
    torch.testing.assert_close(robust_distance(x[perm]), expected[perm])


@withDevice
def test_robust_distance_of_degenerate_rows(device):
    x = make_rows(100, 10, device)
    x[:, 3] = 5.0  # A constant column.
    assert robust_distance(x)[:10].min() > robust_distance(x)[10:].max()
    zero = torch.zeros(100, device=device)
    assert torch.equal(robust_distance(torch.ones_like(x)), zero)
    # More than half of the rows are equal, with and without rounding errors:
    x = make_rows(100, 0, device)
    x[:55] = x[0]
    assert torch.equal(robust_distance(x), zero)
    assert torch.equal(robust_distance(x + 1e-6 * torch.randn_like(x)), zero)
    x = torch.randn(10, 100, device=device)  # Fewer rows than columns.
    assert robust_distance(x).isfinite().all()


@withDevice
@pytest.mark.parametrize('num_rows', [5, 100, 3000])
def test_rows_that_are_not_finite_are_ignored(num_rows, device):
    x = make_rows(num_rows, num_rows // 10, device)
    expected = robust_distance(x)
    wrong = torch.zeros(num_rows, dtype=torch.bool, device=device)
    wrong[num_rows // 2 :: 20] = True
    x[wrong, 2] = float('nan')
    x[wrong.nonzero()[::2, 0], 2] = float('inf')
    distance = robust_distance(x)
    assert torch.equal(distance.isnan(), wrong)
    assert (distance - expected)[~wrong].abs().max() < 0.7
    if num_rows > 5:
        pair = torch.stack([distance, expected])[:, ~wrong]
        assert pair.corrcoef()[0, 1] > 0.99
    x[:] = float('nan')
    assert robust_distance(x).isnan().all()


@withDevice
def test_embedding_features(device):
    h = torch.randn(6, 5, device=device)
    out = embedding_features(h.bfloat16())
    assert out.shape == (6, 6) and out.dtype == torch.float
    torch.testing.assert_close(
        out[:, 5].exp(), h.norm(dim=1), rtol=0.01, atol=0
    )
    norm = out[:, :5].norm(dim=1)
    torch.testing.assert_close(norm, torch.ones(6, device=device))
    assert embedding_features(torch.zeros(2, 5)).isfinite().all()

    # A projection of wide embeddings keeps distances and is always the same:
    h = torch.randn(50, 500, device=device)
    out = embedding_features(h)
    assert out.shape == (50, 65)
    assert torch.equal(out, embedding_features(h.clone()))
    direction = torch.nn.functional.normalize(h, dim=1)
    ratio = torch.pdist(out[:, :64]) / torch.pdist(direction)
    assert 0.5 < ratio.min() and ratio.max() < 1.6


def reference_gap(values):
    """State the gap by all splits of sorted values."""
    x, size = sorted(values), len(values)
    splits = []
    for num_upper in range(max(math.ceil(0.02 * size), 3), int(0.45 * size)):
        low, up = x[: size - num_upper], x[size - num_upper :]
        low_10, low_90 = (low[int(q * len(low))] for q in (0.1, 0.9))
        up_10, up_90 = (up[int(q * len(up))] for q in (0.1, 0.9))
        gap = (up_10 - low_90) / (low_90 - low_10 + up_90 - up_10 + 0.1)
        splits.append((gap, low_90, up_10))
    if not splits:
        return 0.0, math.inf, math.inf
    largest = max(splits)[0]
    # The first one has the smallest upper group:
    low, up = next(split[1:] for split in splits if split[0] >= 0.85 * largest)
    return largest, low + (up - low) / 4, (low + up) / 2


@given(
    st.lists(st.integers(-5, 40), min_size=1, max_size=120),
    st.integers(0, 60),
    st.integers(0, 30),
)
def test_find_gap_against_reference(values, num_more, offset):
    # Quarters, so that float32 and ties are exact:
    values = [x / 4 for x in values] + [
        offset + i / 8 for i in range(num_more)
    ]
    x = torch.tensor(values, dtype=torch.double)
    gap, threshold, middle = find_gap(x[torch.randperm(len(values))])
    expected = reference_gap(values)
    assert gap == pytest.approx(expected[0], rel=1e-9)
    assert (threshold, middle) == pytest.approx(expected[1:], rel=1e-9)
    if math.isfinite(threshold):
        # At most 45 % of the values are outliers:
        assert int((x > threshold).sum()) < 0.5 * len(values)


def test_find_gap_prefers_the_smaller_group():
    x = torch.cat([torch.linspace(0, 1, 60), torch.linspace(5, 6, 30)])
    gap, threshold, middle = find_gap(x)
    assert gap > 1 and 1 < threshold < middle < 5
    x = torch.cat([x, torch.linspace(10.5, 11.5, 10)])
    assert 6 < find_gap(x)[1] < 10.5
    assert find_gap(torch.zeros(100))[0] == 0.0
    assert find_gap(torch.empty(0)) == (0.0, math.inf, math.inf)
