import copy
from typing import Any

from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.lottery.task import LossFunction
from torch_geometric_ext.utils.macs import count_macs


def loss_macs(model: Module, loss_fn: LossFunction, batch: Any) -> int:
    """Return the multiply-adds of the loss of a mini-batch."""
    return count_macs(_Loss(model, loss_fn), batch).forward


class _Loss(Module):
    """The loss of a model in evaluation mode, as a module to count."""

    def __init__(self, model: Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model.eval()
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)

    def __deepcopy__(self, memo: Any) -> '_Loss':
        return _Loss(copy.deepcopy(self.model, memo), self.loss_fn)
