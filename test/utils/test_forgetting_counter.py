import math

import pytest
import torch
from hostile_states import check_hostile_states

from devices import withDevice
from torch_geometric_ext.utils import ForgettingCounter, select_graphs


@withDevice
def test_forgetting_counter(device):
    counter = ForgettingCounter(30)
    assert str(counter) == 'ForgettingCounter(30)'
    generator = torch.manual_seed(1)
    history = [[] for _ in range(30)]
    for _ in range(40):
        # Graphs can occur several times in a mini-batch:
        idx = torch.randint(29, (12,), generator=generator)
        correct = torch.rand(12, generator=generator) < 0.6
        correct[idx == 7] = False
        counter.update(correct.to(device), idx.to(device))
        for i in idx.unique().tolist():
            history[i].append(bool(correct[idx == i].all()))

    expected = []
    for visits in history:
        events = sum(a and not b for a, b in zip(visits, visits[1:]))
        unknown = math.inf if visits else math.nan
        expected.append(float(events) if any(visits) else unknown)
    out = counter.scores()
    assert out.device == device
    torch.testing.assert_close(
        out.cpu(), torch.tensor(expected), rtol=0, atol=0, equal_nan=True
    )
    assert out[7] == math.inf and out[29].isnan() and 0 < out[0] < 40
    assert int(select_graphs(out, 0.01)) == 7


def test_state():
    counter, other = ForgettingCounter(3), ForgettingCounter(3)
    idx = torch.arange(3)
    counter.update(torch.tensor([True, True, False]), idx)
    counter.update(torch.empty(0).bool(), idx[:0])  # Changes nothing.
    state = counter.state_dict()
    counter.update(torch.tensor([False, True, False]), idx)
    assert counter.scores().tolist() == [1, 0, math.inf]

    other.load_state_dict(state)
    assert other.scores().tolist() == [0, 0, math.inf]
    other.update(torch.tensor([False, True, False]), idx)
    assert torch.equal(other.scores(), counter.scores())

    state.pop('learned')
    with pytest.raises(ValueError, match=r"got none of \['learned'\]"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"wrong 'count', .* shape \[3\]"):
        ForgettingCounter(4).load_state_dict(counter.state_dict())


def test_errors():
    with pytest.raises(ValueError, match=r'at least one \(got 0\)'):
        ForgettingCounter(0)
    counter = ForgettingCounter(3)
    idx, correct = torch.arange(2), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r'in \[0, 3\) \(got 2 to 3\)'):
        counter.update(correct, idx + 2)
    with pytest.raises(ValueError, match=r'in \[0, 3\) \(got -1 to 0\)'):
        counter.update(correct, idx - 1)
    with pytest.raises(ValueError, match="'graph_idx' .* torch.int32"):
        counter.update(correct, idx.int())
    with pytest.raises(ValueError, match="'correct' .* torch.float32"):
        counter.update(correct.float(), idx)
    assert counter.scores().isnan().all()


def test_hostile_states():
    def make():
        out = []
        for num_epochs in [2, 3]:
            counter = ForgettingCounter(4)
            for epoch in range(num_epochs):
                graph_idx = torch.arange(epoch, 4)
                counter.update(graph_idx % 2 == epoch % 2, graph_idx)
            out.append(counter)
        return out[0], out[1].state_dict()

    def behave(counter):
        counter.update(torch.tensor([False, True]), torch.tensor([2, 0]))
        return [counter.scores(), counter.state_dict()]

    check_hostile_states(make, behave)
