from typing import Optional

import torch
from torch import Tensor

from torch_geometric_ext.utils.class_budgets import class_budgets


def select_graphs(
    score: Tensor,
    keep_ratio: float,
    y: Optional[Tensor] = None,
    *,
    balance: float = 0.0,
    largest: bool = True,
) -> Tensor:
    r"""Return the graphs with the largest or smallest scores (static data
    pruning).

    Selects :obj:`round(keep_ratio * N)` of :math:`N` graphs, at least one. If
    labels are given, each class :math:`c` of :math:`N_c` graphs has a budget
    in proportion to :math:`N_c^{1 - \beta}`, rounded, and at most
    :math:`N_c`.

    .. code-block:: python

        >>> score = torch.tensor([0.1, 0.7, 0.4, 0.9])
        >>> select_graphs(score, keep_ratio=0.5)
        tensor([3, 1])
        >>> y = torch.tensor([0, 1, 0, 1])
        >>> select_graphs(score, keep_ratio=0.5, y=y)
        tensor([3, 2])

    Args:
        score (torch.Tensor): The score of each graph, of shape :math:`(N)`.
            NaN (unknown) is selected last.
        keep_ratio (float): Fraction of graphs to select, in :math:`(0, 1]`.
        y (torch.Tensor, optional): The class of each graph, of shape
            :math:`(N)` (int64). If :obj:`None`, classes have no budgets.
            (default: :obj:`None`)
        balance (float, optional): The exponent :math:`\beta` in
            :math:`[0, 1]`. With :obj:`0.0`, the subset has the class
            distribution of the data set; with :obj:`1.0`, classes are equally
            large, as far as they have enough graphs. (default: :obj:`0.0`)
        largest (bool, optional): If set to :obj:`False`, the smallest scores
            are selected. (default: :obj:`True`)

    Returns:
        The positions of the selected graphs (int64) on the device of
        :obj:`score`, best first, for :obj:`dataset[index]`. The first of
        several equal scores wins.

    Raises:
        ValueError: If an argument is out of its range or of the wrong shape.
    """
    if score.dim() != 1 or score.numel() == 0:
        raise ValueError(
            f"'score' of 'select_graphs' needs to be of shape [N] (got "
            f'{list(score.shape)})'
        )
    group, budgets = class_budgets(
        'select_graphs', score.numel(), keep_ratio, y, balance
    )
    order = _order(score, largest)
    if y is None:
        return order[: int(budgets[0])]
    group = group.to(score.device)[order]
    return order[_rank_in_group(group) < budgets.to(score.device)[group]]


def _order(score: Tensor, largest: bool) -> Tensor:
    """Return the positions of the scores, best first and NaN last."""
    if not score.is_floating_point():
        score = score.long()  # Unsigned integers have no negative.
    key = -score if largest else score
    return key.argsort(stable=True)


def _rank_in_group(group: Tensor) -> Tensor:
    """Return the number of earlier elements of the same group."""
    perm = group.argsort(stable=True)
    size = group.bincount()
    start = (size.cumsum(0) - size)[group[perm]]
    rank = torch.empty_like(perm)
    rank[perm] = torch.arange(perm.numel(), device=perm.device) - start
    return rank


def random_selection(
    num_graphs: int,
    keep_ratio: float,
    y: Optional[Tensor] = None,
    *,
    balance: float = 0.0,
    seed: int = 0,
) -> Tensor:
    r"""Return a random subset of the graphs, the baseline of static data
    pruning.

    See :func:`select_graphs` for budgets of classes.

    .. code-block:: python

        >>> random_selection(6, keep_ratio=0.5)
        tensor([4, 1, 0])

    Args:
        num_graphs (int): The number of graphs :math:`N`.
        keep_ratio (float): Fraction of graphs to select, in :math:`(0, 1]`.
        y (torch.Tensor, optional): The class of each graph, of shape
            :math:`(N)` (int64). (default: :obj:`None`)
        balance (float, optional): The exponent of the class budgets.
            (default: :obj:`0.0`)
        seed (int, optional): The seed of the draw. (default: :obj:`0`)

    Returns:
        The positions of the selected graphs (int64) in random order.

    Raises:
        ValueError: If an argument is out of its range or of the wrong shape.
    """
    if num_graphs < 1:
        raise ValueError(
            f"'num_graphs' of 'random_selection' needs to be at least one "
            f'(got {num_graphs})'
        )
    generator = torch.Generator().manual_seed(seed)
    score = torch.empty(num_graphs, dtype=torch.long)
    score[torch.randperm(num_graphs, generator=generator)] = torch.arange(
        num_graphs
    )
    y = None if y is None else y.cpu()
    return select_graphs(score, keep_ratio, y, balance=balance)
