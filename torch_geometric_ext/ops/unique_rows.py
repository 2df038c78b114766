from typing import Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.ragged import first_occurrence
from torch_geometric_ext.ops.register import register_operator


def unique_rows(x: Tensor, num_known: int = 0) -> Tuple[Tensor, Tensor]:
    r"""Assign ids to the rows of a matrix, such that equal rows have equal
    ids.

    Ids rank the distinct rows in lexicographic order. They depend on the set
    of rows only, not on the order of rows. The first :obj:`num_known` rows
    need to be distinct and keep their positions as ids; all other distinct
    rows are ranked behind them.

    Takes :math:`O(NF + T \log T)` time and 8 bytes for each row on CPU, on all
    threads of :obj:`torch`. The result does not depend on the number of
    threads.

    Args:
        x (torch.Tensor): The matrix, of any real dtype.
        num_known (int, optional): The number of rows whose ids are their
            positions. (default: :obj:`0`)

    Shapes:
        - **input:** :obj:`x` :math:`(N, F)`
        - **output:** ids :math:`(N)`, and the first row of each id
          :math:`(T)`, both :obj:`torch.int64`

    Raises:
        ValueError: If :obj:`x` is no real matrix or contains :obj:`NaN`, if
            :obj:`num_known` is not in :math:`[0, N]`, or if known rows are
            equal.

    .. code-block:: python

        >>> ids, index = unique_rows(torch.tensor([[2, 0], [1, 5], [2, 0]]))
        >>> ids
        tensor([1, 0, 1])
        >>> index
        tensor([1, 0])
    """
    return _unique_rows(x, num_known)


def unique_rows_reference(
    x: Tensor,
    num_known: int = 0,
) -> Tuple[Tensor, Tensor]:
    """Compute :func:`unique_rows` in plain PyTorch."""
    if x.dim() != 2:
        raise ValueError(
            f"unique_rows: 'x' needs to be two-dimensional (got {x.dim()} "
            f'dimensions)'
        )
    if x.is_complex():
        raise ValueError(f"unique_rows: 'x' needs to be real (got {x.dtype})")
    if x.is_floating_point() and bool(x.isnan().any()):
        raise ValueError("unique_rows: 'x' contains NaN")
    if x.numel() == 0:
        inverse = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
        num_rows = min(x.size(0), 1)
    else:
        rows, inverse = torch.unique(x, dim=0, return_inverse=True)
        num_rows = rows.size(0)
    index = first_occurrence(inverse, num_rows)
    return known_first('unique_rows', inverse, index, num_known)


def known_first(
    op: str,
    inverse: Tensor,
    index: Tensor,
    num_known: int,
) -> Tuple[Tensor, Tensor]:
    """Reorder ids such that the ids of known rows are their positions."""
    if not 0 <= num_known <= inverse.numel():
        raise ValueError(
            f"{op}: 'num_known' needs to be in [0, {inverse.numel()}] (got "
            f'{num_known})'
        )
    known = index < num_known
    if int(known.sum()) != num_known:
        raise ValueError(
            f'{op}: the first {num_known} rows need to be distinct'
        )
    order = torch.where(known, index, inverse.numel()).argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device)
    return rank[inverse], index[order]


def _fake(x: Tensor, num_known: int = 0) -> Tuple[Tensor, Tensor]:
    num_rows = torch.library.get_ctx().new_dynamic_size()
    ids = x.new_empty(x.size(0), dtype=torch.long)
    return ids, x.new_empty(num_rows, dtype=torch.long)


_unique_rows = register_operator('unique_rows', unique_rows_reference, _fake)
