from typing import Optional

import torch
from torch import Tensor

from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.edge_selection import (
    prune_by_degree,
    prune_by_score,
    prune_randomly,
)
from torch_geometric_ext.lottery.edges.learned_scores import LearnedScores


class EdgePruner:
    """Choose which edges of a graph remain.

    Args:
        pairs (EdgePairs): The edges, of which pairs are pruned together.
        sparsity (float): The fraction of pairs to prune.
        score (str): The ranking: :obj:`"degree"`, :obj:`"learned"` or
            :obj:`"random"`.

    Attributes:
        target (int): Number of pairs that remain in the end.
    """

    def __init__(self, pairs: EdgePairs, sparsity: float, score: str) -> None:
        self.pairs = pairs
        self.score = score
        self.target = round((1 - sparsity) * pairs.num_pairs)

    def all_pairs(self) -> Tensor:
        """Return a mask of all pairs."""
        ends = self.pairs.ends
        return ends.new_ones(self.pairs.num_pairs, dtype=torch.bool)

    def prune(
        self,
        mask: Tensor,
        size: int,
        scores: Optional[Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """Return a mask of :obj:`size` of the pairs in :obj:`mask`, ranked by
        learned scores if there are any.
        """
        if scores is not None:
            return prune_by_score(mask, size, scores)
        if self.score == 'degree':
            return prune_by_degree(mask, size, self.pairs, generator)
        return prune_randomly(mask, size, generator)

    def learned_scores(
        self, mask: Tensor, generator: torch.Generator
    ) -> Optional[LearnedScores]:
        """Return scores of the pairs in :obj:`mask` to train, if the ranking
        needs them.
        """
        if self.score != 'learned':
            return None
        return LearnedScores(self.pairs, mask, generator)
