import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_geometric_ext.loader.paper_draw import PaperDraw


@given(
    st.integers(1, 60),
    st.floats(0.01, 1.0),
    st.integers(1, 8),
    st.floats(0.0, 1.0),
    st.floats(0.0, 4.0),
    st.integers(0, 10),
)
def test_sizes(size, keep_ratio, num_epochs, retention, decay, epoch):
    policy = PaperDraw(size, num_epochs, retention, decay, True)
    budget = max(round(keep_ratio * size), 1)
    generator = torch.Generator().manual_seed(size)
    drawn = torch.zeros(size, dtype=torch.bool)
    out = policy.draw(0, budget, drawn, generator)
    assert sorted(out.tolist()) == sorted(set(out.tolist()))
    drawn[out] = True

    # Eq. (14), clipped to the graphs there are:
    remaining = max(1 - max(epoch - 1, 0) / num_epochs, 0)
    expected = round(budget * retention * remaining**decay)
    expected = max(expected, 2 * budget - size)
    out = policy.draw(epoch, budget, drawn, generator)
    assert len(set(out.tolist())) == len(out) == budget
    assert int(drawn[out].sum()) == expected


def test_draws_follow_scores():
    policy = PaperDraw(40, 10, 0.5, 0.0, True)
    policy.scores[:30] = torch.arange(30) % 3 + 1.0
    drawn = torch.arange(40) < 20
    generator = torch.Generator().manual_seed(12345)
    count = torch.zeros(40)
    for _ in range(4000):
        count[policy.draw(1, 2, drawn, generator)] += 1
    # One graph of each pool. Graphs without a score have the mean score, 2:
    weight = policy.scores.nan_to_num(nan=2.0)
    for pool in [drawn, ~drawn]:
        expected = 4000 * weight[pool] / weight[pool].sum()
        assert (count[pool] - expected).abs().max() < 5 * expected.max().sqrt()


@pytest.mark.parametrize('standardize', [False, True])
def test_crowded_graphs_have_low_scores(standardize):
    policy = PaperDraw(10, 5, 0.7, 2.0, standardize)
    feedback = torch.ones(10, 3)
    feedback[:, 2] = torch.tensor([0.0] * 9 + [1.0])
    policy.observe(torch.arange(10), feedback)
    assert policy.scores[9] > policy.scores[:9].max()
    risk = feedback.clone()
    risk[:, 2], risk[4, 0] = 0.0, 3.0
    policy.observe(torch.arange(10), risk)
    assert policy.scores.argmin() == 4
    unfamiliar = feedback.clone()
    unfamiliar[:, 2], unfamiliar[6, 1] = 0.0, 3.0
    policy.observe(torch.arange(10), unfamiliar)
    assert policy.scores.argmax() == 6


def test_feedback_that_is_not_finite():
    policy = PaperDraw(3, 5, 0.7, 2.0, True)
    policy.observe(torch.arange(3), torch.full((3, 3), float('nan')))
    assert policy.scores.isnan().all()
    feedback = torch.tensor([[1.0, 2.0, 0.0], [float('inf'), 1.0, 0.0]])
    policy.observe(torch.tensor([2, 0]), feedback)
    assert policy.scores.isfinite().tolist() == [False, False, True]


def test_state_is_a_copy():
    policy = PaperDraw(3, 5, 0.7, 2.0, True)
    state = policy.state()
    policy.observe(torch.arange(3), torch.rand(3, 3))
    assert state['scores'].isnan().all()
    policy.load(state)
    policy.observe(torch.arange(3), torch.rand(3, 3))
    assert state['scores'].isnan().all()
