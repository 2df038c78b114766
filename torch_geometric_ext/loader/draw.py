"""Turn weights of graphs into draws with exact expectations."""

from typing import Optional

import torch
from torch import Tensor

# A class with this index has an unknown label:
UNKNOWN = -1


def balance_weight(
    weight: Tensor,
    group: Tensor,
    exponent: float,
) -> Tensor:
    r"""Weight graphs inversely to the total weight of their class.

    The weight :math:`w_i` becomes :math:`w_i \, (W / (C \, W_{y_i}))^{\beta}`
    with the total weight :math:`W_c` of each of :math:`C` classes. With
    :math:`\beta = 1`, all classes have the same total weight.

    Args:
        weight (torch.Tensor): The weights, of shape :math:`(N)` (double).
        group (torch.Tensor): The classes, of shape :math:`(N)` (int64). Graphs
            of the class :obj:`-1` (unknown) keep their weight.
        exponent (float): The exponent :math:`\beta`.
    """
    unknown, index, known_weight = group == UNKNOWN, group, weight
    has_unknown = bool(unknown.any())
    if has_unknown:
        index = group.masked_fill(unknown, 0)
        known_weight = weight.masked_fill(unknown, 0.0)
    total = index.bincount(known_weight)
    ratio = total / total.sum() * max(int((total > 0).sum()), 1)
    # A class without weight keeps none:
    factor = torch.where(ratio > 0, ratio, 1.0) ** -exponent
    out = factor.index_select(0, index).mul_(weight)
    return torch.where(unknown, weight, out) if has_unknown else out


def expected_copies(
    weight: Tensor,
    num_draws: int,
    replacement: bool = False,
) -> Tensor:
    r"""Return how often each graph is drawn in expectation.

    Without replacement, the result is :math:`\pi_i = \min(1, \lambda w_i)`
    with :math:`\lambda` such that :math:`\sum_i \pi_i` is the number of draws.
    With replacement, it is :math:`\lambda w_i` and may exceed one.

    Args:
        weight (torch.Tensor): The non-negative weights, of shape :math:`(N)`
            (double).
        num_draws (int): The number of draws, at most :math:`N` without
            replacement.
        replacement (bool, optional): If set to :obj:`True`, a graph can be
            drawn several times. (default: :obj:`False`)
    """
    if replacement and bool(weight.sum() > 0):
        return weight * (num_draws / weight.sum())
    positive = weight > 0
    if int(positive.sum()) <= num_draws:  # Graphs of weight zero fill up.
        missing = num_draws - int(positive.sum())
        num_others = max(weight.numel() - int(positive.sum()), 1)
        out = torch.full_like(weight, missing / num_others)
        return out.masked_fill_(positive, 1.0)
    # At least one graph is added to the capped ones in each iteration:
    out = weight * (num_draws / weight.sum())
    capped = out >= 1
    while bool((out > 1).any()):
        rest = num_draws - capped.sum()
        out = weight * (rest / weight[~capped].sum())
        out[capped] = 1.0
        capped = out >= 1
    return out


def raise_classes(
    expected: Tensor,
    group: Tensor,
    min_per_class: int,
    replacement: bool = False,
) -> Tensor:
    """Raise the expected draws of each class to a minimum, at the cost of
    the other classes.

    Without replacement, a class with fewer graphs is drawn completely.

    Args:
        expected (torch.Tensor): The expected draws of each graph.
        group (torch.Tensor): The class of each graph, or :obj:`-1`.
        min_per_class (int): The minimum number of draws of a class.
        replacement (bool, optional): If set to :obj:`True`, a graph can be
            drawn several times. (default: :obj:`False`)
    """
    known = group != UNKNOWN
    index = torch.where(known, group, 0)
    size = index.bincount(known.double()).long()
    total = index.bincount(expected * known)
    target = torch.full_like(size, min_per_class)
    if not replacement:
        target = torch.minimum(target, size)
    target[size == 0] = 0

    scale, num_draws = 1.0, float(expected.sum())
    raised = torch.zeros_like(size, dtype=torch.bool)
    while True:  # Scaling down may drop others below.
        low = ~raised & (scale * total < target - 1e-6)
        if not bool(low.any()):
            break
        raised |= low
        others = num_draws - float(total[raised].sum())
        if others > 0:
            scale = (num_draws - int(target[raised].sum())) / others

    out = expected * scale
    position = (raised[index] & known).nonzero().view(-1)
    position = position[index[position].argsort(stable=True)]
    graphs = position.split(size[raised].tolist())
    for graph_idx, num_copies in zip(graphs, target[raised].tolist()):
        out[graph_idx] = expected_copies(
            expected[graph_idx], num_copies, replacement
        )
    return out


def round_to_sum(value: Tensor, total: int) -> Tensor:
    """Round values down or up to integers of a given sum, those with the
    largest remainders up.

    Args:
        value (torch.Tensor): Non-negative values, of shape :math:`(C)`, with
            the sum :obj:`total`.
        total (int): The sum of the result.
    """
    nearest = value.round()
    # Values that are integers except for rounding errors are not rounded up:
    value = torch.where((value - nearest).abs() < 1e-6, nearest, value)
    out = value.floor().long()
    remainder = value - out
    num_missing = total - int(out.sum())
    out[remainder.argsort(descending=True, stable=True)[:num_missing]] += 1
    return out


def systematic_sample(
    expected: Tensor,
    num_draws: int,
    generator: Optional[torch.Generator] = None,
    group: Optional[Tensor] = None,
) -> Tensor:
    r"""Draw each graph :math:`\lfloor \pi_i \rfloor` or :math:`\lceil \pi_i
    \rceil` times, with expectation :math:`\pi_i`.

    Graphs are put on a line in random order, each with a length of
    :math:`\pi_i`, and points at distance one with a random offset are the
    draws (Madow, 1949). If classes are given, each class is a segment of the
    line, and its number of draws is its expectation rounded up or down.

    Takes :math:`O(N)` time.

    Args:
        expected (torch.Tensor): The expected draws :math:`\pi_i`, of shape
            :math:`(N)` (double), with the sum :obj:`num_draws`.
        num_draws (int): The number of draws.
        generator (torch.Generator, optional): The generator.
            (default: the global generator)
        group (torch.Tensor, optional): The class of each graph.

    Returns:
        The drawn positions, of shape :math:`(num\_draws)` (int64).
    """
    order = torch.randperm(expected.numel(), generator=generator)
    if group is not None:
        key = group
        if int(key.max()) < 127:  # Faster, as a radix sort.
            key = key.to(torch.int8)
        key = key.index_select(0, order)
        order = order.index_select(0, key.argsort(stable=True))
    line = expected.index_select(0, order).cumsum(0)
    line *= num_draws / line[-1]
    line.clamp_(max=num_draws)  # Despite rounding.
    line[-1] = num_draws
    offset = torch.rand((), generator=generator, dtype=torch.double)
    # Conversion to integers rounds down, as all values are positive:
    count = line.add_(offset).long().clamp_(max=num_draws)
    count[1:] -= count[:-1].clone()
    return order.repeat_interleave(count)
