"""Multiply bags of words and other sparse features without their zeros."""

import warnings
from functools import cached_property
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import torch_geometric_ext.typing
from torch_geometric_ext.nn.dense.pattern import flatten
from torch_geometric_ext.ops.csr_product import DTYPES
from torch_geometric_ext.ops.csr_sparse_linear import csr_sparse_linear
from torch_geometric_ext.ops.ragged import take_rows
from torch_geometric_ext.ops.sparse_linear import sparse_linear

# Both were measured by `benchmark/full_batch/sparse_input.py`. Dense products
# catch up at 15 to 20 %, or below where they are faster:
MAX_DENSITY = 0.125
# Rows whose gradients fit into a cache:
BLOCK_SIZE = 2048
# Cost of a feature that is not zero, in weights of a sparse layer:
FEATURE_COST = 2.0
# Skipping the zeros of both sides pays up to this density of features, for any
# sparse weight. Measured by `benchmark/sparsity/sparse_features.py`.
MAX_SCATTERED = 0.075


class SparseInput:
    """Hold the nonzero values of static features.

    Args:
        x (torch.Tensor): The features, of shape :obj:`[N, C]`.
        rows (torch.Tensor, optional): The same as a CSR matrix.
            (default: :obj:`None`)
    """

    def __init__(self, x: Tensor, rows: Optional[Tensor] = None) -> None:
        self.x = x
        with warnings.catch_warnings():
            warnings.simplefilter(
                'ignore'
            )  # PyTorch calls CSR a beta feature.
            self.rows = x.to_sparse_csr() if rows is None else rows
        self._cols: Optional[Tensor] = None

    @classmethod
    def find(cls, x: Tensor) -> Optional['SparseInput']:
        """Compress features if few of their values are not zero."""
        if x.dim() != 2 or x.dtype not in DTYPES or x.requires_grad:
            return None
        if int(x.count_nonzero()) > MAX_DENSITY * x.numel():
            return None
        return cls(x)

    @cached_property
    def transposed_blocks(self) -> List[Tensor]:
        """The transposes of blocks of rows as CSR matrices, for gradients of
        weights.
        """
        rows, blocks = self.rows, []
        ptr, num_rows = rows.crow_indices(), rows.size(0)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for first in range(0, num_rows, BLOCK_SIZE):
                part = ptr[first : first + BLOCK_SIZE + 1]
                inside = slice(int(part[0]), int(part[-1]))
                block = torch.sparse_csr_tensor(
                    part - part[0],
                    rows.col_indices()[inside],
                    rows.values()[inside],
                    (part.numel() - 1, rows.size(1)),
                )
                blocks.append(transpose(block))
        return blocks

    @property
    def density(self) -> float:
        """The fraction of values that are not zero."""
        num_rows, num_features = self.rows.shape
        return self.rows.values().numel() / max(num_rows * num_features, 1)

    @property
    def num_bytes(self) -> int:
        """The memory of the compressed values, once by columns, too."""
        value, index = self.rows.values(), self.rows.col_indices()
        size = value.element_size() + index.element_size()
        return value.numel() * size * (1 + ('transposed_blocks' in vars(self)))

    def take(self, x: Tensor, nodes: Tensor) -> 'SparseInput':
        """Return the rows :obj:`x` of some nodes."""
        rows = self.rows
        ptr, index = take_rows(rows.crow_indices(), nodes)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            part = torch.sparse_csr_tensor(
                ptr, rows.col_indices()[index], rows.values()[index], x.shape
            )
        return SparseInput(x, part)

    def matmul(self, weight: Tensor) -> Tensor:
        """Multiply by a weight of shape :obj:`[C, O]`, differentiably."""
        out: Tensor = _Product.apply(weight, self)
        return out

    def product(self, weight: Tensor) -> Tensor:
        """Multiply by a weight, without gradients."""
        return self.rows @ weight

    def transposed_product(self, grad: Tensor) -> Tensor:
        """Multiply the transpose by gradients of shape :obj:`[N, O]`."""
        out = grad.new_zeros(self.rows.size(1), grad.size(1))
        blocks = zip(self.transposed_blocks, grad.split(BLOCK_SIZE))
        for block, rows in blocks:
            out.addmm_(block, rows)
        return out

    def from_rows(self, out: Tensor) -> Tensor:
        """Return the product of :obj:`x` from that of :obj:`rows`."""
        return out


class SparseInputs(TorchFunctionMode):
    """Multiply some tensors sparsely wherever a model multiplies them.

    Layers, their hooks and their parameters stay what they are: the mode
    sees the product itself, be it of :class:`torch.nn.Linear`, of a
    parametrized layer or of the operator :obj:`@`.

    Args:
        inputs (Dict[int, SparseInput]): The tensors, by their :func:`id`.
    """

    def __init__(self, inputs: Dict[int, SparseInput]) -> None:
        super().__init__()
        self.inputs = inputs

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        product = PRODUCTS.get(func)
        if product is not None and args:
            found = self.inputs.get(id(args[0]))
            if found is not None and not _autocasts(args[0]):
                with torch._C.DisableTorchFunction():
                    out = product(found, *args[1:], **kwargs)
                if out is not NotImplemented:
                    return out
        return func(*args, **kwargs)


def _linear(
    x: SparseInput, weight: Tensor, bias: Optional[Tensor] = None
) -> Any:
    if weight.dtype != x.x.dtype or weight.dim() != 2:
        return NotImplemented
    out = x.matmul(weight.t())
    return out if bias is None else out + bias


def _matmul(x: SparseInput, other: Any) -> Any:
    if not isinstance(other, Tensor) or other.layout != torch.strided:
        return NotImplemented
    if other.dtype != x.x.dtype or other.dim() != 2:
        return NotImplemented
    return x.matmul(other)


def _sparse_linear(
    x: SparseInput,
    values: Tensor,
    bias: Optional[Tensor],
    rowptr: Tensor,
    col: Tensor,
    *args: Any,
) -> Any:
    """Skip zeros of the features, and those of the weight, too, unless
    skipping zeros of the weight alone saves more work.
    """
    size = x.x.size(1), rowptr.numel() - 1
    numel = size[0] * size[1]
    if values.dtype != x.x.dtype:
        return NotImplemented
    with_kernel = torch_geometric_ext.typing.WITH_EXT and x.x.is_cpu
    is_sparser = FEATURE_COST * x.density * numel <= values.numel()
    if with_kernel and (is_sparser or x.density <= MAX_SCATTERED):
        pattern = rowptr, col, *args
        if type(x) is SparseInput:
            return csr_sparse_linear(x.rows, values, bias, *pattern)
        out = x.from_rows(csr_sparse_linear(x.rows, values, None, *pattern))
        return out if bias is None else out + bias
    if not is_sparser:
        return NotImplemented
    index = flatten(rowptr, col, size[0])
    weight = values.new_zeros(numel).scatter(0, index, values)
    return _linear(x, weight.view(size[1], size[0]), bias)


def _autocasts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


PRODUCTS: Dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
    sparse_linear: _sparse_linear,
}


def transpose(x: Tensor) -> Tensor:
    """Return the transpose of a CSR matrix, in CSR format."""
    cols = x.to_sparse_csc()
    size = x.size(1), x.size(0)
    index, value = cols.row_indices(), cols.values()
    return torch.sparse_csr_tensor(cols.ccol_indices(), index, value, size)


class _Product(torch.autograd.Function):
    """Multiply the features by a weight of any order of derivatives."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, inputs: SparseInput) -> Tensor:
        ctx.inputs = inputs
        # Checkpoints need as many saved tensors as a dense product has, which
        # recomputes this one.
        ctx.save_for_backward(inputs.x)
        return inputs.product(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _TransposedProduct.apply(grad, ctx.inputs), None


class _TransposedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, inputs: SparseInput) -> Tensor:
        ctx.inputs = inputs
        return inputs.transposed_product(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Product.apply(grad, ctx.inputs), None
