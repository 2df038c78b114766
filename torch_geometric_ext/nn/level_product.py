"""Propagate in one level of shared computation trees by a sparse product.

Trees of a level read trees of the level below, of which there are fewer. A
product with a sparse matrix replaces messages, and linear layers that come
first transform the trees of the level below only. Subclasses, hooks, autocast,
learned edge weights, levels of few edges and devices other than CPU need
messages.
"""

from contextlib import contextmanager
from types import MethodType
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Set
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Module
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn import GCNConv, GINConv, GraphConv, SAGEConv

from torch_geometric_ext.nn.current_batch import current_product
from torch_geometric_ext.nn.hooks import HOOKS, is_hooked
from torch_geometric_ext.nn.multiply import can_multiply
from torch_geometric_ext.nn.multiply_first import is_linear, multiply
from torch_geometric_ext.nn.shallow_copy import shallow_copy
from torch_geometric_ext.nn.sum_conv import (
    SumConv,
    SumGINConv,
    SumGraphConv,
    SumSAGEConv,
)
from torch_geometric_ext.nn.tree_levels import TreeLevels
from torch_geometric_ext.ops.csr_product import CSRPair, csr_matrix
from torch_geometric_ext.ops.ragged import row_ptr

SUMS: Dict[type, type] = {
    GINConv: SumGINConv,
    GraphConv: SumGraphConv,
    SAGEConv: SumSAGEConv,
}
CLASSES = (GCNConv, *SUMS)

# PyTorch sorts that many int32 values by radix, four times as fast as fewer
# ones. Padding pays from about 7,000 on (benchmark/loader/tree_products.py).
RADIX_SIZE = 1 << 15
MIN_PADDED_SIZE = 1 << 13

# Fewer edges do not pay for a matrix that is used once
# (benchmark/loader/tree_products.py).
MIN_EDGES = 1 << 11

# Hooks that do not read the inputs and outputs of a convolution.
own_hooks: Set[Callable[..., Any]] = set()

# The number of open blocks that replace the forward pass of a convolution.
_num_blocks: 'WeakKeyDictionary[Module, int]' = WeakKeyDictionary()

# Matrices of mini-batches, by `edge_index`: those that are kept, keep them.
matrices = WeakTensorKeyDictionary()


class LevelProduct(NamedTuple):
    """A convolution on one level of trees, without messages.

    Args:
        conv (MessagePassing): The convolution.
        x (torch.Tensor): The features of the trees of the level below, of
            shape :obj:`[N, C]`.
        own (torch.Tensor): The row of each tree in :obj:`x` (int64, of shape
            :obj:`[M]`).
        matrix (CSRPair): The matrix of shape :obj:`[M, N]` that aggregates.
    """

    conv: Any
    x: Tensor
    own: Tensor
    matrix: CSRPair

    @classmethod
    def find(
        cls,
        conv: Module,
        x: Tensor,
        edge_weight: Optional[Tensor],
        levels: TreeLevels,
        level: int,
    ) -> Optional['LevelProduct']:
        """Return the product that replaces the messages of a convolution, or
        :obj:`None` if there is none.

        Args:
            conv (MessagePassing): The convolution.
            x (torch.Tensor): The features of the trees of the level below.
            edge_weight (torch.Tensor, optional): The weights of all edges of
                the mini-batch.
            levels (TreeLevels): The mini-batch.
            level (int): The level.
        """
        # Compiled code supports no sparse tensors.
        if is_compiling() or not _multiplies(conv, x, edge_weight):
            return None
        if levels.num_edges(level) < MIN_EDGES:
            return None
        is_mean = conv.aggr == 'mean'
        matrix = _matrix(levels, level, edge_weight, x.dtype, is_mean)
        if matrix is None:
            return None
        return cls(conv, x, levels.own(level), matrix)

    def run(self) -> Tensor:
        """Return the output of the convolution for the trees of the level."""
        conv, x, own, matrix = self
        if type(conv) is GCNConv:
            out = matrix.matmul(conv.lin(x))
            return out if conv.bias is None else out + conv.bias
        copy: SumConv = shallow_copy(conv, SUMS[type(conv)])
        linear = copy.first_linear()[1]
        if not is_linear(linear):
            return copy.finish(matrix.matmul(x), x, own)
        h = multiply(x, linear)
        return copy.finish_multiplied(matrix.matmul(h), h, x, own)


def run_level(conv: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the product of a convolution, or its forward pass if it has none."""
    product = current_product()
    if product is None or product.conv is not conv:
        return type(conv).forward(conv, *args, **kwargs)
    return product.run()


@contextmanager
def level_forward(conv: Module) -> Iterator[None]:
    """Replace the forward pass of a convolution that has products.

    Blocks nest.

    Args:
        conv (MessagePassing): The convolution.
    """
    is_ours = type(conv) in CLASSES and (
        conv in _num_blocks or 'forward' not in vars(conv)
    )
    if is_ours:  # Compiled models guard the function of a bound method.
        vars(conv)['forward'] = MethodType(run_level, conv)
        _num_blocks[conv] = _num_blocks.get(conv, 0) + 1
    try:
        yield
    finally:
        if is_ours:
            _num_blocks[conv] -= 1
            if _num_blocks[conv] == 0:
                del _num_blocks[conv], vars(conv)['forward']


def _multiplies(conv: Any, x: Tensor, weight: Optional[Tensor]) -> bool:
    """Return whether a product gives what messages give, and no hook reads
    the trees of the level.
    """
    return (
        type(conv) in CLASSES
        and conv in _num_blocks
        and x.is_cpu  # Not measured on other devices.
        and x.layout == torch.strided
        and not torch.is_autocast_enabled(x.device.type)
        and can_multiply(conv, x, weight)
        and (weight is None or weight.numel() == weight.size(0))
        and (weight is None or weight.dtype == x.dtype)
        and not (type(conv) is GCNConv and conv.normalize)
        and not getattr(conv, 'project', False)
        and _are_linear(conv)
        and not _has_other_hooks(conv)
    )


def _are_linear(conv: Any) -> bool:
    """Return whether all layers that read the level below are linear."""
    names = ['lin', 'lin_r', 'lin_root']
    layers = [conv._modules.get(name) for name in names]
    return all(layer is None or is_linear(layer) for layer in layers)


def _has_other_hooks(conv: Module) -> bool:
    """Return whether a convolution or its layers have hooks, except those
    that run it level by level.
    """
    hooks = [hook for name in HOOKS for hook in getattr(conv, name).values()]
    return any(hook not in own_hooks for hook in hooks) or any(
        is_hooked(module) for module in conv.modules() if module is not conv
    )


def _matrix(
    levels: TreeLevels,
    level: int,
    weight: Optional[Tensor],
    dtype: torch.dtype,
    is_mean: bool,
) -> Optional[CSRPair]:
    """Return the matrix of a level, made once for each mini-batch."""
    edge_index = levels.batch.edge_index
    cache: Dict[Any, Any] = matrices.setdefault(edge_index, {})
    key = level, levels.size(level), weight is None, dtype, is_mean
    state = weight, _version(edge_index), _version(weight)
    found = cache.get(key)
    if found is None or found[0] is not weight or found[1:3] != state[1:]:
        matrix = make_matrix(levels, level, weight, dtype, is_mean)
        cache[key] = found = *state, matrix
    out: Optional[CSRPair] = found[-1]
    return out


def _version(x: Optional[Tensor]) -> Optional[int]:
    """Return how often a tensor was changed in-place, as far as known."""
    return None if x is None or x.is_inference() else x._version


def make_matrix(
    levels: TreeLevels,
    level: int,
    weight: Optional[Tensor],
    dtype: torch.dtype,
    is_mean: bool,
) -> Optional[CSRPair]:
    """Return the matrix of a level, or :obj:`None` if edges are out of range
    or not sorted by target.
    """
    size, num_cols = levels.size(level), levels.size(level - 1)
    source, target = levels.edge_index(level)
    # Self-loops of a GCN read the tree of one depth less:
    own = torch.cat([levels.own(level), torch.arange(num_cols)])
    source = own.index_select(0, source)
    degree = torch.bincount(target, minlength=size)
    row_size = torch.bincount(source, minlength=num_cols)
    if (
        degree.numel() != size
        or row_size.numel() != num_cols
        or target.numel() > torch.iinfo(torch.int).max
        or bool((target[1:] < target[:-1]).any())
    ):
        return None
    value = target.new_ones(target.numel(), dtype=dtype)
    if weight is not None:
        value = levels.cut_edges(weight, level).flatten()
    if is_mean:
        value = value / degree[target].to(dtype)
    perm = argsort_padded(source)
    parts = [
        (degree, source, value, num_cols),
        (row_size, target[perm], value[perm], size),
    ]
    return CSRPair(
        *(
            csr_matrix(row_ptr(sizes).int(), col.int(), value, num)
            for sizes, col, value, num in parts
        )
    )


def argsort_padded(index: Tensor) -> Tensor:
    """Sort indices below :math:`2^{31}`, stably."""
    index, size = index.int(), index.numel()
    if MIN_PADDED_SIZE <= size < RADIX_SIZE:
        last = torch.iinfo(torch.int).max
        index = torch.cat([index, index.new_full((RADIX_SIZE - size,), last)])
    return index.argsort(stable=True)[:size]
