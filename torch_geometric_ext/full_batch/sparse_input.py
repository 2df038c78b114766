import warnings
from typing import Any, Dict, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.nn.dense.sparse_linear import DenseLinear
from torch_geometric_ext.nn.linear_layers import (
    LINEARS,
    find_layers,
    obstacles,
    swap_layers,
)

DTYPES = [torch.float, torch.double]  # That sparse matrices may have.
COST = 2.0  # Of an input that is not zero, in weights that exist.
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

    @property
    def density(self) -> float:
        """The share of values that are not zero."""
        return self.rows.values().numel() / max(self.x.numel(), 1)

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
    """Lets the linear layers of a model, in place, multiply by what is not
    zero where they are given one of some inputs, which may become more.
    Sparse layers stay what they are to all others.
    """
    linears = find_layers(model, LINEARS)
    others = obstacles(model, list(linears))
    sizes = {found.x.size(1) for found in inputs}
    swaps: Dict[Module, Module] = {
        linear: SparseInputLinear(linear, inputs)
        for linear in linears
        if linear not in others and linear.weight.size(1) in sizes
        if type(linear) in LINEARS  # Others may have more attributes.
    }
    for layer in find_layers(model, (SparseLinear,)):
        if type(layer) is SparseLinear and layer.in_channels in sizes:
            layer.__class__ = DoublySparseLinear
            vars(layer).update(inputs=inputs)
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
        found = _find(self.inputs, x)
        if found is None:
            return F.linear(x, self.weight, self.bias)
        return _multiply(found, self.weight, self.bias)


class DoublySparseLinear(SparseLinear):
    r"""A sparse layer that knows some of its inputs to be sparse, too, and
    skips the zeros of its weights or of these, whichever saves more. Of the
    latter, a product takes :math:`O(\textrm{nnz}(\mathbf{X}) O)` time, and the
    memory of a dense weight for a moment.
    """

    inputs: List[SparseInput]

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        found = _find(self.inputs, x)
        if found is None or x.dtype != self.values.dtype:
            return super().forward(x)
        numel = self.in_channels * self.out_channels
        if COST * found.density * numel > self.values.numel():
            return super().forward(x)
        return _multiply(found, self.weight, self.bias)


def _find(inputs: List[SparseInput], x: Tensor) -> Optional[SparseInput]:
    if torch.is_autocast_enabled(x.device.type):
        return None
    return next((found for found in inputs if x is found.x), None)


def _multiply(
    found: SparseInput, weight: Tensor, bias: Optional[Tensor]
) -> Tensor:
    out: Tensor = _Product.apply(weight, found)
    return out if bias is None else out + bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, inputs: SparseInput) -> Tensor:
        ctx.inputs = inputs
        return inputs.rows @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (ctx.inputs.cols @ grad).t(), None
