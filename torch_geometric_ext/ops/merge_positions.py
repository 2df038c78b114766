from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.ops.check import check_integers
from torch_geometric_ext.ops.register import register_operator

# Sums of larger positions could overflow.
# `csrc/cpu/merge_positions_kernel.cpp` holds the same bound.
MAX_POSITION = 2**62


def merge_positions(index: Tensor, other: Tensor) -> Tuple[Tensor, Tensor]:
    r"""Merge two sets of ascending positions.

    Takes :math:`O(N + M)` time on CPU.

    Args:
        index (torch.Tensor): The first positions, without duplicates.
        other (torch.Tensor): The second positions, without duplicates.

    Shapes:
        - **input:** :obj:`index` :math:`(N)` and :obj:`other` :math:`(M)`,
          both :obj:`torch.int64`
        - **output:** the union :math:`(U)`, ascending, and the rank of each of
          its positions in :obj:`index`, or :math:`N` for those of
          :obj:`other` only, :math:`(U)`, both :obj:`torch.int64`

    Raises:
        ValueError: If positions are not ascending in :math:`[0, 2^{62})`
            (checked on CPU only).

    .. code-block:: python

        >>> index, other = torch.tensor([1, 4, 6]), torch.tensor([0, 4, 5])
        >>> merge_positions(index, other)
        (tensor([0, 1, 4, 5, 6]), tensor([3, 0, 1, 3, 2]))
    """
    out: Tuple[Tensor, Tensor] = _merge_positions(index, other)
    return out


def missing_positions(index: Tensor, rank: Tensor) -> Tensor:
    r"""Return the positions of given ranks among all positions that a set
    lacks.

    Takes :math:`O(N + M)` time on CPU.

    Args:
        index (torch.Tensor): The set of positions, ascending.
        rank (torch.Tensor): The ranks, ascending, counted from zero.

    Shapes:
        - **input:** :obj:`index` :math:`(N)` and :obj:`rank` :math:`(M)`,
          both :obj:`torch.int64`
        - **output:** positions :math:`(M)`, ascending, :obj:`torch.int64`

    Raises:
        ValueError: If positions or ranks are not ascending in
            :math:`[0, 2^{62})` (checked on CPU only).

    .. code-block:: python

        >>> missing_positions(torch.tensor([0, 2]), torch.tensor([0, 1, 2]))
        tensor([1, 3, 4])
    """
    out: Tensor = _missing_positions(index, rank)
    return out


def merge_positions_reference(
    index: Tensor, other: Tensor
) -> Tuple[Tensor, Tensor]:
    """Compute :func:`merge_positions` in plain PyTorch."""
    _check('merge_positions', 'index', index)
    _check('merge_positions', 'other', other)
    out = torch.cat([index, other]).unique()
    source = torch.searchsorted(index.contiguous(), out)
    found = F.pad(index, (0, 1), value=-1)[source] == out
    return out, source.where(found, index.numel())


def missing_positions_reference(index: Tensor, rank: Tensor) -> Tensor:
    """Compute :func:`missing_positions` in plain PyTorch."""
    _check('missing_positions', 'index', index)
    _check('missing_positions', 'rank', rank, distinct=False)
    num_before = index - torch.arange(index.numel(), device=index.device)
    return rank + torch.searchsorted(num_before, rank.contiguous(), right=True)


def _check(op: str, name: str, x: Tensor, distinct: bool = True) -> None:
    check_integers(op, name, x)
    if x.device.type != 'cpu' or x.numel() == 0:
        return
    falls = x[1:] <= x[:-1] if distinct else x[1:] < x[:-1]
    if x[0] < 0 or x[-1] >= MAX_POSITION or bool(falls.any()):
        duplicates = ', without duplicates' if distinct else ''
        raise ValueError(
            f"{op}: '{name}' needs to be ascending in [0, 2^62){duplicates}"
        )


def _merge_fake(index: Tensor, other: Tensor) -> Tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return index.new_empty(size), index.new_empty(size)


def _missing_fake(index: Tensor, rank: Tensor) -> Tensor:
    return torch.empty_like(rank)


_merge_positions = register_operator(
    'merge_positions', merge_positions_reference, _merge_fake
)
_missing_positions = register_operator(
    'missing_positions', missing_positions_reference, _missing_fake
)
