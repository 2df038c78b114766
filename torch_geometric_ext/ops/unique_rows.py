from typing import Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.ragged import first_occurrence
from torch_geometric_ext.ops.register import register_operator


def unique_rows(x: Tensor, num_known: int = 0) -> Tuple[Tensor, Tensor]:
    r"""Numbers the distinct rows of a matrix, in the lexicographic order of
    their values.

    Two rows get the same id if and only if they are equal. The ids of the
    first :obj:`num_known` rows, which need to be distinct, are their
    positions; all others are ranked behind them. With none known, ids depend
    on the set of rows only, not on their order.

    Takes :math:`O(NF + T \log T)` time and 8 bytes for each row on CPU, on all
    threads of :obj:`torch`, with a result that does not depend on their
    number.

    Args:
        x (torch.Tensor): A matrix of any numeric type.
        num_known (int, optional): The number of rows whose ids are given.
            (default: :obj:`0`)

    Shapes:
        - **input:** :obj:`x` :math:`(N, F)`
        - **output:** ids :math:`(N)`, and the position of the first row of
          each id :math:`(T)`, both :obj:`torch.int64`

    Raises:
        ValueError: If :obj:`x` is not a matrix or contains :obj:`NaN`, or
            known rows are missing or equal.

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
    """The operator :func:`unique_rows` in plain PyTorch."""
    if x.dim() != 2:
        raise ValueError(
            f"unique_rows: 'x' needs to be two-dimensional (got {x.dim()} "
            f'dimensions)'
        )
    if x.is_floating_point() and bool(x.isnan().any()):
        raise ValueError("unique_rows: 'x' contains NaN")
    if x.numel() == 0:
        inverse = torch.zeros(x.size(0), dtype=torch.long, device=x.device)
        num_rows = min(x.size(0), 1)
    else:
        rows, inverse = torch.unique(x, dim=0, return_inverse=True)
        num_rows = rows.size(0)
    index = first_occurrence(inverse, num_rows)
    return known_first(inverse, index, num_known)


def known_first(
    inverse: Tensor,
    index: Tensor,
    num_known: int,
) -> Tuple[Tensor, Tensor]:
    """Moves the ids of the known rows to the front."""
    if not 0 <= num_known <= inverse.numel():
        raise ValueError(
            f"unique: 'num_known' needs to be in [0, {inverse.numel()}] (got "
            f'{num_known})'
        )
    known = index < num_known
    if int(known.sum()) != num_known:
        raise ValueError(
            f'unique: the first {num_known} rows need to be distinct'
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
