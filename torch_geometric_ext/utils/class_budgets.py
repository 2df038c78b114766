from typing import Optional, Tuple

import torch
from torch import Tensor


def class_budgets(
    owner: str,
    num_graphs: int,
    keep_ratio: float,
    y: Optional[Tensor],
    balance: float = 0.0,
) -> Tuple[Tensor, Tensor]:
    r"""Divide the budget of a selection among classes.

    Args:
        owner (str): The name of the function, for errors.
        num_graphs (int): The number of graphs :math:`N`.
        keep_ratio (float): Fraction of graphs to select.
        y (torch.Tensor, optional): The class of each graph. If :obj:`None`,
            all graphs are of one class.
        balance (float, optional): The exponent :math:`\beta`: budgets are in
            proportion to :math:`N_c^{1 - \beta}`. (default: :obj:`0.0`)

    Returns:
        The class of each graph, in :math:`[0, C)`, and the number of graphs
        to select from each class, with the sum
        :math:`\max(\textrm{round}(r N), 1)`, both int64 on the CPU.

    Raises:
        ValueError: If an argument is out of its range or of the wrong shape.
    """
    for name, value, valid, interval in [
        ('keep_ratio', keep_ratio, 0 < keep_ratio <= 1, '(0, 1]'),
        ('balance', balance, 0 <= balance <= 1, '[0, 1]'),
    ]:
        if not valid:
            raise ValueError(
                f"'{name}' of '{owner}' needs to be in {interval} (got "
                f'{value})'
            )
    budget = max(round(keep_ratio * num_graphs), 1)
    if y is None:
        group = torch.zeros(num_graphs, dtype=torch.long)
        return group, torch.tensor([budget])
    if y.shape != (num_graphs,) or y.is_floating_point():
        raise ValueError(
            f"'y' of '{owner}' needs to hold one integer per graph, its class "
            f'(got {y.dtype} of shape {list(y.shape)} for {num_graphs} graphs)'
        )
    group = y.cpu().unique(return_inverse=True)[1]
    size = group.bincount()
    quota = _fill_up(size.double(), budget, balance)
    out = quota.floor().long()
    # The largest remainders are rounded up. A full class has none:
    missing = budget - int(out.sum())
    remainder = (quota - out).masked_fill(out >= size, -1)
    out[remainder.argsort(descending=True, stable=True)[:missing]] += 1
    return group, out


def _fill_up(size: Tensor, budget: int, balance: float) -> Tensor:
    """Return the expected number of graphs of each class, at most its size.

    What a class exceeds its size by is divided among the others.
    """
    quota, weight = torch.zeros_like(size), size ** (1 - balance)
    open_ = torch.ones_like(size, dtype=torch.bool)
    while bool(open_.any()):
        rest = budget - float(quota[~open_].sum())
        share = rest * weight / weight[open_].sum()
        full = open_ & (share > size)
        if not bool(full.any()):
            quota[open_] = share[open_]
            break
        quota[full] = size[full]
        open_ &= ~full
    # Without rounding errors below integers, such as 2.9999999:
    return torch.minimum((quota * 1e9).round() / 1e9, size)
