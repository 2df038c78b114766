import copy
from contextlib import nullcontext, suppress
from typing import Any

from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.lottery.shapes_only import ShapesOnly, keep_shapes
from torch_geometric_ext.lottery.task import LossFunction
from torch_geometric_ext.utils.macs import count_macs


def loss_macs(
    model: Module, loss_fn: LossFunction, batch: Any, by_shapes: bool = False
) -> int:
    """Return the multiply-adds of the loss of a mini-batch.

    Args:
        model (torch.nn.Module): The model.
        loss_fn (Callable): Returns the loss of the model on a mini-batch.
        batch (Any): The mini-batch.
        by_shapes (bool, optional): If set to :obj:`True`, try to count
            without computing floating point tensors first, which calls the
            loss a second time if shapes depend on values.
            (default: :obj:`False`)
    """
    if by_shapes:
        with suppress(Exception):  # User models can raise anything.
            loss = _Loss(keep_shapes(model), loss_fn, by_shapes)
            return count_macs(loss, keep_shapes(batch)).forward
    return count_macs(_Loss(model, loss_fn), batch).forward


class _Loss(Module):
    """The loss of a model in evaluation mode, as a module to count."""

    def __init__(
        self, model: Module, loss_fn: LossFunction, by_shapes: bool = False
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.loss_fn = loss_fn
        self.by_shapes = by_shapes

    def forward(self, batch: Any) -> Tensor:
        with ShapesOnly() if self.by_shapes else nullcontext():
            return self.loss_fn(self.model, batch)

    def __deepcopy__(self, memo: Any) -> '_Loss':
        model = copy.deepcopy(self.model, memo)
        return _Loss(model, self.loss_fn, self.by_shapes)
