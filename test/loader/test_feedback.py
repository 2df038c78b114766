import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_geometric_ext.loader.feedback import Feedback


@withCUDA
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


@withCUDA
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
