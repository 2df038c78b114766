from typing import Callable, List, Optional

import torch
from torch import Tensor

from torch_geometric_ext.utils.class_budgets import class_budgets


def herding_selection(
    h: Tensor,
    keep_ratio: float,
    y: Optional[Tensor] = None,
    *,
    balance: float = 0.0,
) -> Tensor:
    r"""Return graphs whose mean embedding is close to that of their class, by
    herding from the `"Herding Dynamical Weights to Learn"
    <https://dl.acm.org/doi/10.1145/1553374.1553517>`_ paper.

    Each step selects the graph that brings the mean of the selected embeddings
    closest to the mean of all embeddings (of the class, if labels are given).
    Takes :math:`O(k N E)` time for :math:`k` of :math:`N` graphs with
    :math:`E` features, and :math:`C` times less with :math:`C` classes of
    equal size.

    .. note::
        The paper maximizes a scalar product with the accumulated difference of
        means and may select a row twice. Here, steps minimize the distance of
        means, as in :func:`~torch_geometric_ext.ops.herding`, and no graph is
        selected twice.

    .. code-block:: python

        >>> h = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> herding_selection(h, keep_ratio=0.5)
        tensor([1, 2])

    Args:
        h (torch.Tensor): The graph embeddings of shape :math:`(N, E)`.
        keep_ratio (float): Fraction of graphs to select, in :math:`(0, 1]`.
        y (torch.Tensor, optional): The class of each graph, of shape
            :math:`(N)` (int64). (default: :obj:`None`)
        balance (float, optional): The exponent of the class budgets, see
            :func:`select_graphs`. (default: :obj:`0.0`)

    Returns:
        The positions of the selected graphs (int64) on the device of
        :obj:`h`, class by class and in the order of selection.

    Raises:
        ValueError: If an argument is out of its range or of the wrong shape.
    """
    return _select('herding_selection', _herd, h, keep_ratio, y, balance)


def k_center_selection(
    h: Tensor,
    keep_ratio: float,
    y: Optional[Tensor] = None,
    *,
    balance: float = 0.0,
) -> Tensor:
    r"""Return graphs that cover all embeddings with a small radius, by the
    greedy algorithm of the `"Active Learning for Convolutional Neural
    Networks: A Core-Set Approach" <https://arxiv.org/abs/1708.00489>`_ paper.

    The first graph is the one closest to the mean. Each further step selects
    the graph that is farthest from the selected ones in Euclidean distance.
    The largest distance of a graph to the selected ones is at most twice the
    smallest one possible. Takes :math:`O(k N E)` time for :math:`k` of
    :math:`N` graphs with :math:`E` features, and :math:`C` times less with
    :math:`C` classes of equal size.

    .. note::
        The paper starts with a set of labeled rows. Outliers are far from
        other graphs and are selected early.

    .. code-block:: python

        >>> h = torch.tensor([[0.0], [1.0], [5.0], [6.5]])
        >>> k_center_selection(h, keep_ratio=0.5)
        tensor([2, 0])

    Args:
        h (torch.Tensor): The graph embeddings of shape :math:`(N, E)`.
        keep_ratio (float): Fraction of graphs to select, in :math:`(0, 1]`.
        y (torch.Tensor, optional): The class of each graph, of shape
            :math:`(N)` (int64). (default: :obj:`None`)
        balance (float, optional): The exponent of the class budgets, see
            :func:`select_graphs`. (default: :obj:`0.0`)

    Returns:
        The positions of the selected graphs (int64) on the device of
        :obj:`h`, class by class and in the order of selection.

    Raises:
        ValueError: If an argument is out of its range or of the wrong shape.
    """
    return _select('k_center_selection', _cover, h, keep_ratio, y, balance)


def _select(
    owner: str,
    select: Callable[[Tensor, int], Tensor],
    h: Tensor,
    keep_ratio: float,
    y: Optional[Tensor],
    balance: float,
) -> Tensor:
    """Select graphs within each class."""
    if h.dim() != 2 or h.size(0) == 0:
        raise ValueError(
            f"'h' of '{owner}' needs to be of shape [N, E] (got "
            f'{list(h.shape)})'
        )
    if not bool(h.isfinite().all()):
        raise ValueError(
            f"'h' of '{owner}' needs to be finite (got "
            f'{int((~h.isfinite()).any(dim=1).sum())} rows that are not)'
        )
    group, budgets = class_budgets(owner, h.size(0), keep_ratio, y, balance)
    out: List[Tensor] = []
    for label, budget in enumerate(budgets.tolist()):
        index = (group == label).nonzero().view(-1).to(h.device)
        rows = h.detach()[index]
        if not rows.dtype == torch.double:
            rows = rows.float()
        out.append(index[select(rows, budget)])
    return torch.cat(out)


def _herd(h: Tensor, budget: int) -> Tensor:
    # The squared distance of `mean` to the mean of t graphs is, up to terms
    # equal for all candidates i and a factor of t^2:
    #   |h_i|^2 - 2 h_i (t mean - sum of selected graphs)
    h = h - h.mean(dim=0)  # Hence `mean` is zero.
    score = h.square().sum(dim=1)
    out = torch.empty(budget, dtype=torch.long, device=h.device)
    for i in range(budget):
        best = score.argmin().view(1)
        out[i : i + 1] = best
        row = h.index_select(0, best).view(-1)
        score = (score + 2 * (h @ row)).index_fill(0, best, torch.inf)
    return out


def _cover(h: Tensor, budget: int) -> Tensor:
    h = h - h.mean(dim=0)
    square = h.square().sum(dim=1)
    radius = torch.full_like(square, torch.inf)
    out = torch.empty(budget, dtype=torch.long, device=h.device)
    best = square.argmin().view(1)
    for i in range(budget):
        out[i : i + 1] = best
        row = h.index_select(0, best).view(-1)
        distance = square + square.index_select(0, best) - 2 * (h @ row)
        # A selected graph is never farther than its copies:
        radius = torch.minimum(radius, distance).index_fill(0, best, -1.0)
        best = radius.argmax().view(1)
    return out
