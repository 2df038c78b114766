"""Prune edge pairs by degrees, by learned scores, or at random."""

import torch
from torch import Tensor

from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.sparsity.ranking import top_mask

# Fraction of all pairs that degrees rank before the rest is pruned at random,
# chosen by `benchmark/lottery/lottery.py`.
DEGREE_FRACTION = 0.35

NUM_ROUNDS = 32  # A choice: how often degrees are computed anew.


def prune_randomly(
    mask: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Return a mask of :obj:`size` random pairs of :obj:`mask`."""
    score = torch.rand(mask.numel(), generator=generator).to(mask.device)
    return top_mask(score.masked_fill(~mask, -1), size)


def prune_by_score(mask: Tensor, size: int, scores: Tensor) -> Tensor:
    """Return a mask of the :obj:`size` pairs of :obj:`mask` whose scores have
    the largest magnitude.
    """
    # Scores of pairs that remain are at least one, all others zero:
    return top_mask((scores.abs() + 1).masked_fill(~mask, 0), size)


def prune_by_degree(
    mask: Tensor, size: int, pairs: EdgePairs, generator: torch.Generator
) -> Tensor:
    """Return a mask of :obj:`size` pairs of :obj:`mask`: prune the largest
    degree products first, and pairs at random once
    :obj:`DEGREE_FRACTION` of all pairs are pruned.
    """
    first = round((1 - DEGREE_FRACTION) * mask.numel())
    first = min(max(first, size), int(mask.sum()))
    mask = prune_by_degree_product(mask, first, pairs, generator)
    return prune_randomly(mask, size, generator)


def prune_by_degree_product(
    mask: Tensor, size: int, pairs: EdgePairs, generator: torch.Generator
) -> Tensor:
    r"""Return a mask of :obj:`size` pairs of :obj:`mask`: prune pairs of the
    largest :math:`d_u d_v` in rounds, by the degrees of the remaining graph,
    in :math:`O(E)` time for each round.
    """
    (u, v), num_pairs = pairs.ends, int(mask.sum())
    # Noise is smaller than one, and only breaks ties:
    noise = torch.rand(mask.numel(), generator=generator).to(mask.device)
    ones = mask.to(torch.float)
    degree = ones.new_zeros(pairs.num_nodes)
    degree.scatter_add_(0, u, ones).scatter_add_(0, v, ones)
    current = num_pairs
    for i in range(1, NUM_ROUNDS + 1):
        step = round(num_pairs + (size - num_pairs) * i / NUM_ROUNDS)
        score = torch.addcmul(
            noise, degree.index_select(0, u), degree.index_select(0, v)
        )
        gone = top_mask(score.masked_fill_(~mask, -1), current - step)
        mask, current = mask & ~gone, step
        ends = pairs.ends[:, gone].flatten()
        degree.scatter_add_(0, ends, degree.new_full((1,), -1).expand_as(ends))
    return mask


def spread_penalty(score: Tensor) -> Tensor:
    r"""Return a penalty of similar scores, :math:`\exp(-\frac{1}{2}
    \textrm{mean}_{i, j} |s_i - s_j|) - \log \textrm{var}(\mathbf{s})`, in
    :math:`O(E \log E)` time.
    """
    size = score.numel()
    ordered = score.sort().values
    # The i-th smallest score exceeds i - 1 others and is below n - i others:
    sign = torch.arange(1 - size, size, 2, device=score.device)
    mean = 2 * (ordered * sign.to(score.dtype)).sum() / size**2
    return (-mean / 2).exp() - score.var(unbiased=False).log()
