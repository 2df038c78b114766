import warnings
from typing import Any, Dict, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.nn.dense.sparse_linear import DenseLinear
from torch_geometric_ext.nn.linear_layers import (
    LINEARS,
    find_layers,
    obstacles,
    swap_layers,
)

DTYPES = [torch.float, torch.double]  # That sparse matrices may have.
MAX_DENSITY = 0.06  # Above, a dense product takes about as long.
SIZES = ['in_channels', 'in_features', 'out_channels', 'out_features']


class SparseInput:
    """Features of which few are not zero, by rows and by columns.

    Args:
        x (torch.Tensor): The features.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # That this format is new.
            self.rows = x.to_sparse_csr()
            cols = self.rows.to_sparse_csc()
            self.cols = torch.sparse_csr_tensor(
                cols.ccol_indices(),
                cols.row_indices(),
                cols.values(),
                (x.size(1), x.size(0)),
            )

    @classmethod
    def find(cls, x: Any) -> Optional['SparseInput']:
        """Compresses features where that pays."""
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            return None
        if x.dim() != 2 or x.dtype not in DTYPES or x.requires_grad:
            return None
        if int(x.count_nonzero()) > MAX_DENSITY * x.numel():
            return None
        return cls(x)

    def __deepcopy__(self, memo: Any) -> 'SparseInput':
        return self


def swap_linears(model: Module, inputs: List[SparseInput]) -> Module:
    """Lets the dense layers of a model, in place, multiply by what is not
    zero where they are given one of some inputs, which may become more.
    """
    linears = find_layers(model, LINEARS)
    others = obstacles(model, list(linears))
    sizes = {found.x.size(1) for found in inputs}
    swaps: Dict[Module, Module] = {
        linear: SparseInputLinear(linear, inputs)
        for linear in linears
        if linear not in others and linear.weight.size(1) in sizes
    }
    return swap_layers(model, swaps)


class SparseInputLinear(Module):
    """A linear layer that knows some of its inputs to be sparse. It has the
    parameters of the layer that it replaces, by the same names, and its
    sizes.
    """

    def __init__(self, linear: DenseLinear, inputs: List[SparseInput]) -> None:
        super().__init__()
        sizes = {key: x for key, x in vars(linear).items() if key in SIZES}
        vars(self).update(sizes)
        self.weight = linear.weight
        self.bias = linear.bias
        self.inputs = inputs

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:  # noqa: D102
        (x,) = [*args, *kwargs.values()]  # Its name differs.
        found = next((found for found in self.inputs if x is found.x), None)
        if found is not None and not torch.is_autocast_enabled(x.device.type):
            out: Tensor = _Product.apply(self.weight, found)
            return out if self.bias is None else out + self.bias
        return F.linear(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, inputs: SparseInput) -> Tensor:
        ctx.inputs = inputs
        return inputs.rows @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (ctx.inputs.cols @ grad).t(), None
