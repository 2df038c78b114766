"""Sizes of tickets in the rounds of iterative magnitude pruning."""

import math

from torch_geometric_ext.lottery.settings import Settings

# Fractions of remaining weights and edges that a round prunes, as in
# "A Unified Lottery Ticket Hypothesis for Graph Neural Networks":
WEIGHT_RATE = 0.2
EDGE_RATE = 0.05


def num_rounds(settings: Settings) -> int:
    """Return the number of rounds that reach both sparsities."""
    return max(
        _num_rounds(settings.weight_sparsity, WEIGHT_RATE),
        _num_rounds(settings.edge_sparsity, EDGE_RATE),
    )


def num_weights(number: int, total: int) -> int:
    """Return the number of weights that remain after some rounds."""
    return round((1 - WEIGHT_RATE) ** number * total)


def num_edges(number: int, total: int) -> int:
    """Return the number of edges that remain after some rounds."""
    return round((1 - EDGE_RATE) ** number * total)


def _num_rounds(sparsity: float, rate: float) -> int:
    if sparsity == 0:
        return 0
    number = math.log(1 - sparsity) / math.log(1 - rate)
    return max(math.ceil(number - 1e-9), 1)
