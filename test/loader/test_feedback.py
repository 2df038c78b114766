import copy
from collections import defaultdict

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from devices import withDevice
from torch_geometric_ext.loader.feedback import Feedback, average, keep_last

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.floats(-9, 9, width=32)))


def sort(pairs):
    """Return positions in ascending order with two columns of feedback."""
    pairs = sorted(pairs, key=lambda pair: pair[0])
    graph_idx = torch.tensor([x for x, _ in pairs], dtype=torch.long)
    rows = [[y, 2 * y + 1] for _, y in pairs]
    return graph_idx, torch.tensor(rows).view(-1, 2)


@given(PAIRS)
def test_average(pairs):
    rows = defaultdict(list)
    for i, value in pairs:
        rows[i].append(value)
    before = sort(pairs)
    graph_idx, feedback = average(*before)
    assert graph_idx.tolist() == sorted(rows)
    assert feedback.dtype == torch.float and feedback.size(1) == 2
    for i, row in zip(graph_idx.tolist(), feedback.tolist()):
        mean = sum(rows[i]) / len(rows[i])
        expected = [pytest.approx(x, abs=1e-5) for x in (mean, 2 * mean + 1)]
        assert row == expected


@given(PAIRS)
def test_keep_last(pairs):
    last = dict(pairs)
    graph_idx, feedback = keep_last(*sort(pairs))
    assert graph_idx.tolist() == sorted(last)
    assert feedback[:, 0].tolist() == [last[i] for i in sorted(last)]


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_average_of_other_types(dtype):
    graph_idx = torch.zeros(1000, dtype=torch.long)
    feedback = torch.full((1000, 1), 100.0, dtype=dtype)
    graph_idx, feedback = average(graph_idx, feedback)
    assert graph_idx.tolist() == [0] and feedback.dtype == dtype
    assert feedback.tolist() == [[100.0]]  # The sum does not overflow.


@withDevice
def test_gather(device):
    feedback = Feedback('Toy', 2)
    graph_idx, values = feedback.gather(1)
    assert graph_idx.dtype == torch.long and graph_idx.shape == (0,)
    assert values.shape == (0, 2) and feedback.num_rows == 0

    first = torch.tensor([3, 1], device=device)
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    feedback.add(first, rows)
    first.fill_(0)  # The caller may reuse it.
    feedback.add(torch.tensor([1]), torch.tensor([[5.0, 6.0]]))  # On the CPU.
    # Columns of another type, as given by a model in half precision:
    columns = torch.tensor([[7.0]]).half().to(device)
    feedback.add(torch.tensor([0], device=device), columns, columns + 1)
    assert feedback.num_rows == 4

    for _ in range(2):  # Nothing is dropped.
        graph_idx, values = feedback.gather(1)
        assert graph_idx.tolist() == [0, 1, 1, 3]
        assert values.tolist() == [[7, 8], [3, 4], [5, 6], [1, 2]]
        assert values.device.type == graph_idx.device.type == 'cpu'
    feedback.clear()
    assert feedback.gather(1)[0].numel() == feedback.num_rows == 0


def test_pop():
    feedback = Feedback('Toy', 1)
    feedback.add(torch.tensor([2, 0]), torch.tensor([[1.0], [2.0]]))
    feedback.add(torch.tensor([1]), torch.tensor([[3.0]]))
    graph_idx, values = feedback.pop()
    assert graph_idx.tolist() == [2, 0, 1]
    assert values.tolist() == [[1.0], [2.0], [3.0]]
    assert feedback.num_rows == 0 and feedback.gather(1)[0].numel() == 0


@withDevice
def test_check(device):
    feedback = Feedback('Toy', 1)
    drawn = torch.tensor([True, False, True])
    feedback.check(torch.tensor([0, 2, 2]), drawn, 1)
    for wrong in [[0, 1], [3], [-1], [0, -3]]:
        with pytest.raises(
            ValueError, match="'graph_idx' of 'Toy' .* current epoch 7"
        ):
            feedback.check(torch.tensor(wrong), drawn, 7)


def run_rank(path):
    rank, out = dist.get_rank(), {}
    both = Feedback('Toy', 1)
    both.add(torch.tensor([4 - rank, 0]), torch.full((2, 1), float(rank)))
    out['both'] = both.gather(2)
    # One rank has no feedback:
    single = Feedback('Toy', 1)
    if rank == 1:
        single.add(torch.tensor([2]), torch.ones(1, 1))
    out['single'] = single.gather(2)
    out['none'] = Feedback('Toy', 1).gather(2)
    torch.save(copy.deepcopy(out), f'{path}/{rank}.pt')


def test_gather_without_processes(monkeypatch):
    feedback = Feedback('Sampler', 1)
    feedback.add(torch.tensor([7, 3]), torch.tensor([[70.0], [30.0]]))
    others = [
        (torch.empty(0, dtype=torch.long), torch.empty(0, 1)),
        (torch.tensor([0, 5]), torch.tensor([[0.0], [50.0]])),
    ]

    def all_gather_object(out, own):
        out[:] = [own, *others]

    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'all_gather_object', all_gather_object)
    graph_idx, values = feedback.gather(num_replicas=3)
    assert graph_idx.tolist() == [0, 3, 5, 7]
    assert values.tolist() == [[0], [30], [50], [70]]


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    for rank in range(2):
        out = torch.load(tmp_path / f'{rank}.pt')
        graph_idx, values = out['both']
        assert graph_idx.tolist() == [0, 0, 3, 4]
        assert values.view(-1).tolist() == [0.0, 1.0, 1.0, 0.0]
        graph_idx, values = average(graph_idx, values)
        assert values.view(-1).tolist() == [0.5, 1.0, 0.0]
        assert [x.tolist() for x in out['single']] == [[2], [[1.0]]]
        assert [x.numel() for x in out['none']] == [0, 0]


@withDevice
def test_feedback_joins_columns(device):
    feedback = Feedback('Sampler', 3)
    index = torch.tensor([3, 1], device=device)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    label = torch.tensor([[5], [6]], device=device)
    feedback.add(index, x, label)
    feedback.add(index[:1] - 1, x[:1], label[1:])
    assert feedback.num_rows == 3

    graph_idx, values = feedback.gather(num_replicas=1)
    assert graph_idx.tolist() == [1, 2, 3]
    assert values.tolist() == [[3, 4, 6], [1, 2, 6], [1, 2, 5]]
    graph_idx, values = feedback.pop()
    assert values.device == index.device
    assert graph_idx.tolist() == [3, 1, 2] and feedback.num_rows == 0


@withDevice
def test_feedback_joins_loaded_rows(device):
    feedback = Feedback('Sampler', 2)
    feedback.add(torch.tensor([4, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    index = torch.tensor([2], device=device)
    column = torch.tensor([[7]], device=device)
    feedback.add(index, column.bfloat16(), column)
    graph_idx, values = feedback.gather(num_replicas=1)
    assert graph_idx.tolist() == [0, 2, 4]
    assert values.tolist() == [[3, 4], [7, 7], [1, 2]]


def test_feedback_ignores_later_changes():
    feedback = Feedback('Sampler', 1)
    index = torch.tensor([1])
    feedback.add(index, torch.ones(1, 1))
    index.zero_()
    assert feedback.gather(num_replicas=1)[0].tolist() == [1]
    feedback.clear()
    assert feedback.num_rows == 0
    graph_idx, values = feedback.gather(num_replicas=1)
    assert graph_idx.size() == (0,) and values.size() == (0, 1)


def test_feedback_errors():
    feedback = Feedback('Sampler', 1)
    drawn = torch.tensor([True, False])
    feedback.check(torch.tensor([0]), drawn, epoch=0)
    for index in [1, 2, -1]:
        with pytest.raises(ValueError, match="'graph_idx' of 'Sampler'"):
            feedback.check(torch.tensor([index]), drawn, epoch=0)
