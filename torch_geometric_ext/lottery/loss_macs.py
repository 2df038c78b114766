import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.lottery.task import Task
from torch_geometric_ext.utils.macs import count_macs


def loss_macs(model: Module, task: Task, seed: int) -> int:
    """The multiply-adds of the loss of a first mini-batch, the same one for
    each model.
    """
    torch.manual_seed(seed)
    return count_macs(_Loss(model, task), next(iter(task.batches()))).forward


class _Loss(Module):
    """The loss of a model as a module, to be counted."""

    def __init__(self, model: Module, task: Task) -> None:
        super().__init__()
        self.model = model.eval()
        self.task = task

    def forward(self, batch: Any) -> Tensor:
        return self.task.loss(self.model, batch)

    def __deepcopy__(self, memo: Any) -> '_Loss':
        return _Loss(copy.deepcopy(self.model, memo), self.task)
