"""Which pairs of edges to keep."""

import torch
from torch import Tensor

from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.sparsity.ranking import top_mask

NUM_ROUNDS = 32


def random_pairs(
    mask: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Keeps :obj:`size` of the pairs that exist, at random."""
    score = torch.rand(mask.numel(), generator=generator).to(mask.device)
    return top_mask(score.masked_fill(~mask, -1), size)


def crowded_pairs(
    pairs: EdgePairs, mask: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    r"""Keeps :obj:`size` of the pairs that exist: in rounds, those of the
    largest :math:`d_u d_v` leave, with the degrees of what is left. It takes
    :math:`O(E \log E)` time for each round.
    """
    (u, v), num_kept = pairs.ends, int(mask.sum())
    noise = torch.rand(mask.numel(), generator=generator).to(mask.device)
    for i in range(1, NUM_ROUNDS + 1):
        kept = mask.to(torch.float)
        degree = kept.new_zeros(pairs.num_nodes)
        degree.scatter_add_(0, u, kept).scatter_add_(0, v, kept)
        # Noise is below a degree, and only sorts what is equal:
        score = -(degree[u] * degree[v] + noise)
        step = round(num_kept + (size - num_kept) * i / NUM_ROUNDS)
        mask = top_mask(score.masked_fill(~mask, -torch.inf), step)
    return mask


def spread_penalty(score: Tensor) -> Tensor:
    r"""Draws scores apart, :math:`\exp(-\frac{1}{2} \textrm{mean}_{i, j} |s_i
    - s_j|) - \log \textrm{var}(\mathbf{s})`, in :math:`O(E \log E)` time.
    """
    size = score.numel()
    ordered = score.sort().values
    # The i-th smallest is above i - 1 and below n - i others:
    sign = torch.arange(1 - size, size, 2, device=score.device)
    mean = 2 * (ordered * sign.to(score.dtype)).sum() / size**2
    return (-mean / 2).exp() - score.var(unbiased=False).log()
