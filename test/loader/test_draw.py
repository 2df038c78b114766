import time

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from torch_geometric_ext.loader.draw import (
    balance_weight,
    expected_copies,
    raise_classes,
    round_to_sum,
    systematic_sample,
)

WEIGHTS = st.lists(
    st.one_of(
        st.just(0.0), st.floats(1e-6, 1e6), st.sampled_from([1.0, 2.0, 1e-9])
    ),
    min_size=1,
    max_size=30,
)


def bisect_copies(weight: Tensor, num_draws: int) -> Tensor:
    """Return `min(1, scale * weight)` with the sum `num_draws`."""
    low, high = 0.0, num_draws / float(weight[weight > 0].min())
    for _ in range(200):
        middle = (low + high) / 2
        if float((middle * weight).clamp(max=1).sum()) < num_draws:
            low = middle
        else:
            high = middle
    return (high * weight).clamp(max=1)


@given(WEIGHTS, st.integers(1, 30))
def test_expected_copies_without_replacement(weights, num_draws):
    weight = torch.tensor(weights, dtype=torch.double)
    num_draws = min(num_draws, weight.numel())
    before = weight.clone()
    out = expected_copies(weight, num_draws)
    assert torch.equal(weight, before)
    assert out.dtype == torch.double
    assert float(out.sum()) == pytest.approx(num_draws, abs=1e-9)
    assert (out >= 0).all() and (out <= 1).all()
    positive = weight > 0
    if int(positive.sum()) > num_draws:
        expected = bisect_copies(weight, num_draws)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-9)
    else:  # Graphs of weight zero share the rest equally.
        assert (out[positive] == 1).all()
        rest = num_draws - int(positive.sum())
        others = out[~positive]
        assert (others == rest / max(others.numel(), 1)).all()


@given(WEIGHTS, st.integers(1, 100))
def test_expected_copies_with_replacement(weights, num_draws):
    weight = torch.tensor(weights, dtype=torch.double)
    if float(weight.sum()) > 0:
        out = expected_copies(weight, num_draws, replacement=True)
        expected = [num_draws * x / sum(weights) for x in weights]
        expected = torch.tensor(expected, dtype=torch.double)
        torch.testing.assert_close(out, expected)
    elif num_draws <= weight.numel():
        out = expected_copies(weight, num_draws, replacement=True)
        assert (out == num_draws / weight.numel()).all()


def test_expected_copies_by_hand():
    weight = torch.tensor([6.0, 3.0, 2.0, 1.0, 0.0]).double()
    out = expected_copies(weight, 2)
    torch.testing.assert_close(out.tolist(), [1.0, 0.5, 1 / 3, 1 / 6, 0.0])
    # The second graph is capped as soon as the first one is:
    weight = torch.tensor([100.0, 8.0, 1.0, 1.0]).double()
    out = expected_copies(weight, 3)
    torch.testing.assert_close(out.tolist(), [1.0, 1.0, 0.5, 0.5])


def test_expected_copies_of_heavy_tails_is_fast():
    weight = torch.arange(1, 10**6 + 1, dtype=torch.double).pow(-3)
    start = time.perf_counter()
    out = expected_copies(weight, 10**5)
    assert time.perf_counter() - start < 5
    assert float(out.sum()) == pytest.approx(10**5)
    assert float(out.max()) == 1


@st.composite
def draws(draw):
    weights = draw(WEIGHTS.filter(lambda x: sum(x) > 0))
    weight = torch.tensor(weights, dtype=torch.double)
    replacement = draw(st.booleans())
    high = 3 * weight.numel() if replacement else weight.numel()
    num_draws = draw(st.integers(1, high))
    group = None
    if draw(st.booleans()):
        labels = st.integers(-1, 3)
        size = weight.numel()
        group = torch.tensor(
            draw(st.lists(labels, min_size=size, max_size=size))
        )
    return expected_copies(weight, num_draws, replacement), num_draws, group


def is_rounded(count: Tensor, expected: Tensor) -> bool:
    low, high = (expected - 1e-6).floor(), (expected + 1e-6).ceil()
    return bool(((count >= low) & (count <= high)).all())


@given(draws(), st.integers(0, 10**6))
def test_systematic_sample_rounds_up_or_down(case, seed):
    expected, num_draws, group = case
    generator = torch.Generator().manual_seed(seed)
    before = expected.clone()
    out = systematic_sample(expected, num_draws, generator, group)
    assert torch.equal(expected, before)
    assert out.dtype == torch.int64 and out.shape == (num_draws,)
    count = out.bincount(minlength=expected.numel())
    assert is_rounded(count, expected)
    if group is not None:
        label = group + 1
        size = torch.zeros(5, dtype=torch.double)
        size.index_add_(0, label, expected)
        assert is_rounded(label[out].bincount(minlength=5), size)


@pytest.mark.parametrize('with_group', [False, True])
def test_systematic_sample_is_unbiased(with_group):
    expected = torch.tensor([2.3, 0.0, 0.7, 1.0, 0.05, 0.95]).double()
    group = torch.tensor([0, 1, 1, 0, -1, 2]) if with_group else None
    generator = torch.Generator().manual_seed(0)
    num_trials, total = 4000, torch.zeros(6)
    for _ in range(num_trials):
        out = systematic_sample(expected, 5, generator, group)
        total += out.bincount(minlength=6)
    mean = total / num_trials
    fraction = expected.frac()
    error = (fraction * (1 - fraction) / num_trials).sqrt()
    assert ((mean - expected).abs() <= 4 * error + 1e-6).all()
    assert float(total[1]) == 0 and float(total[3]) == num_trials


def test_systematic_sample_pairs_all_graphs():
    # A fixed order would never draw neighbors together.
    generator = torch.Generator().manual_seed(0)
    expected = torch.full((6,), 1 / 3).double()
    pairs = {
        tuple(sorted(systematic_sample(expected, 2, generator).tolist()))
        for _ in range(500)
    }
    assert len(pairs) == 15


def test_systematic_sample_is_seeded():
    expected = torch.full((100,), 0.5).double()
    first, second, other = (
        systematic_sample(expected, 50, torch.Generator().manual_seed(seed))
        for seed in [0, 0, 1]
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    torch.manual_seed(3)
    first = systematic_sample(expected, 50)  # By the global generator.
    torch.manual_seed(3)
    assert torch.equal(systematic_sample(expected, 50), first)


def test_systematic_sample_of_many_classes():
    group = torch.arange(1000) % 300  # Does not fit into eight bits.
    expected = torch.full((1000,), 0.3).double()
    out = systematic_sample(expected, 300, None, group)
    size = torch.zeros(300, dtype=torch.double).index_add_(0, group, expected)
    assert is_rounded(group[out].bincount(minlength=300), size)


@pytest.mark.parametrize('num_draws', [1, 333_333, 10**6])
def test_systematic_sample_of_a_million_graphs(num_draws):
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(10**6, generator=generator, dtype=torch.double)
    group = (torch.arange(10**6) % 10 == 0).long()
    expected = expected_copies(balance_weight(weight, group, 1.0), num_draws)
    start = time.perf_counter()
    out = systematic_sample(expected, num_draws, generator, group)
    assert time.perf_counter() - start < 5
    count = out.bincount(minlength=10**6)
    assert out.numel() == num_draws and is_rounded(count, expected)


class LargestOffset:
    """Return the largest offset of a draw."""

    def __call__(self, *size, **kwargs):
        return torch.tensor(1 - 2**-53, dtype=torch.double)


def test_systematic_sample_with_the_largest_offset(monkeypatch):
    monkeypatch.setattr(torch, 'rand', LargestOffset())
    for num_draws in [1, 7, 3 * 10**6]:
        weight = torch.full((max(num_draws, 10),), 0.1).double()
        expected = expected_copies(weight, num_draws)
        out = systematic_sample(expected, num_draws)
        assert out.numel() == num_draws


@given(WEIGHTS, st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 10**6))
def test_balance_weight(weights, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.tensor(weights, dtype=torch.double)
    group = torch.randint(-1, 3, weight.shape, generator=generator)
    before = weight.clone()
    out = balance_weight(weight, group, exponent)
    assert torch.equal(weight, before)
    labels = [label for label in range(3) if sum_of(weights, group, label) > 0]
    total = sum(sum_of(weights, group, label) for label in labels)
    for i, label in enumerate(group.tolist()):
        expected = weights[i]
        if label in labels:
            size = sum_of(weights, group, label)
            expected *= (total / (len(labels) * size)) ** exponent
        assert float(out[i]) == pytest.approx(expected, rel=1e-9)
    if exponent == 1:
        for label in labels:
            size = float(out[group == label].sum())
            assert size == pytest.approx(total / len(labels), rel=1e-6)


def sum_of(weights, group, label):
    pairs = zip(weights, group.tolist())
    return sum(weight for weight, other in pairs if other == label)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 5),
    st.floats(0.1, 1.0),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_raise_classes(sizes, minimum, keep_ratio, replacement, seed):
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    num_draws = max(round(keep_ratio * sum(sizes)), 1)
    minimum = min(minimum, num_draws // len(sizes))  # The sampler checks it.
    weight = torch.rand(sum(sizes), generator=generator).double() ** 4 + 1e-6
    expected = expected_copies(weight, num_draws, replacement)
    before = expected.clone()
    out = raise_classes(expected, group, minimum, replacement)
    assert torch.equal(expected, before)
    assert float(out.sum()) == pytest.approx(num_draws, abs=1e-6)
    assert (out >= 0).all()
    if not replacement:
        assert (out <= 1 + 1e-9).all()
    for label, size in enumerate(sizes):
        target = minimum if replacement else min(minimum, size)
        assert float(out[group == label].sum()) > target - 1e-5
    low = [float(expected[group == i].sum()) for i in range(len(sizes))]
    if all(x >= minimum for x in low):
        assert torch.equal(out, expected)


def test_raise_classes_by_hand():
    # Classes of 8, 4 and 1 graphs with 8, 1 and 0.5 expected draws: raising
    # the last ones to 2 and 1 takes 1.5 draws from the first one.
    group = torch.tensor([0] * 8 + [1] * 4 + [2])
    expected = torch.tensor([1.0] * 8 + [0.25] * 4 + [0.5]).double()
    out = raise_classes(expected, group, 2)
    torch.testing.assert_close(out.tolist(), [6.5 / 8] * 8 + [0.5] * 4 + [1.0])
    # With replacement, the last graph is drawn twice:
    out = raise_classes(expected, group, 2, replacement=True)
    torch.testing.assert_close(out.tolist(), [5.5 / 8] * 8 + [0.5] * 4 + [2.0])


def test_raise_classes_of_many_classes():
    group = torch.arange(200_000) % 2000
    group[group == 7] = -1  # Graphs without a label.
    weight = torch.ones(group.numel()).double()
    weight[group < 1000] = 1e-3
    expected = expected_copies(weight, 20_000)
    out = raise_classes(expected, group, 5)
    assert float(out.sum()) == pytest.approx(20_000)
    known = group >= 0
    total = group[known].bincount(out[known])
    assert total[7] == 0
    low = torch.arange(2000) < 1000
    low[7] = False
    torch.testing.assert_close(total[low], torch.full((999,), 5.0).double())
    rest = (20_000 - 5 * 999) / (100 * 1000)  # Of each other graph.
    torch.testing.assert_close(
        out[weight == 1],
        torch.full((100 * 1000,), rest).double(),
        rtol=2e-3,
        atol=0,
    )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.integers(1, 50))
def test_round_to_sum(values, total):
    value = torch.tensor(values).double()
    value = value.clamp(min=1e-3) * (total / value.clamp(min=1e-3).sum())
    out = round_to_sum(value, total)
    assert int(out.sum()) == total
    assert ((out - value).abs() < 1).all()
    # No other rounding is closer:
    remainder = value - value.floor()
    up = out > value + 1e-6
    down = out < value - 1e-6
    if up.any() and down.any():
        assert remainder[up].min() >= remainder[down].max() - 1e-6


def test_round_to_sum_ignores_rounding_errors():
    value = torch.tensor([3 - 1e-13, 2 + 1e-13, 0.5, 0.5]).double()
    assert round_to_sum(value, 6).tolist() == [3, 2, 1, 0]
