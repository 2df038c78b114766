"""Select the weights of dense layers that remain at a given sparsity."""

import math
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.nn.dense.distribution import (
    DISTRIBUTIONS,
    layer_budgets,
)
from torch_geometric_ext.sparsity.ranking import top_mask

GRANULARITIES = ['element', 'row', 'column', 'block']

Shapes = Dict[str, Tuple[int, int]]
Sparsity = Union[float, Mapping[str, float]]


class Projection:
    r"""Select the weights of largest magnitude, which is the Euclidean
    projection of weights onto those of a given sparsity.

    Args:
        shapes (Dict[str, Tuple[int, int]]): The shape of the weight of each
            layer.
        sparsity (float or Mapping[str, float]): The sparsity of the model, or
            of each layer by its name or pattern.
        distribution (str): The distribution of weights over layers.
        granularity (str): What is pruned as a whole.
        block_size (int): The number of rows and columns of a block.
        min_fan_in (int): The minimum number of weights per output.
        owner (str): The name of the pruner, for errors.
    """

    def __init__(
        self,
        shapes: Shapes,
        sparsity: Sparsity,
        distribution: str,
        granularity: str,
        block_size: int,
        min_fan_in: int,
        owner: str,
    ) -> None:
        _check(owner, distribution, granularity, block_size)
        self.granularity = granularity
        self.block_size = block_size
        numels = {name: math.prod(shape) for name, shape in shapes.items()}
        self.budgets: Dict[str, int] = {}  # Of each pruned layer.
        self.global_budget: Optional[int] = None  # Of all layers together.
        if isinstance(sparsity, Mapping):
            for name, value in _match(owner, list(shapes), sparsity).items():
                self.budgets[name] = round((1 - value) * numels[name])
        elif distribution == 'global':
            sparsity = _check_sparsity(owner, sparsity)
            self.budgets = numels
            self.global_budget = round((1 - sparsity) * sum(numels.values()))
        else:
            sparsity = _check_sparsity(owner, sparsity)
            sizes = [(shape[1], shape[0]) for shape in shapes.values()]
            budgets = layer_budgets(
                sizes, sparsity, distribution, min_fan_in=min_fan_in
            )
            self.budgets = dict(zip(shapes, budgets))

    def settings(self) -> Dict[str, Any]:
        """Return the arguments that determine the masks."""
        num_weights = list(self.budgets.values())
        if self.global_budget is not None:
            num_weights = [self.global_budget]
        return {
            'granularity': self.granularity,
            'block_size': self.block_size,
            'num_weights': num_weights,
        }

    @torch.no_grad()
    def masks(self, weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """Return the mask of the remaining weights of each layer."""
        if self.global_budget is not None:
            return self._global_masks(weights, self.global_budget)
        return {
            name: self._mask(weights[name], budget)
            for name, budget in self.budgets.items()
        }

    def _global_masks(
        self, weights: Mapping[str, Tensor], budget: int
    ) -> Dict[str, Tensor]:
        layers = [weights[name] for name in self.budgets]
        score = torch.cat([_finite(x.abs()).flatten() for x in layers])
        masks = top_mask(score, budget)
        parts = masks.split([x.numel() for x in layers])
        return {
            name: part.view_as(x)
            for name, part, x in zip(self.budgets, parts, layers)
        }

    def _mask(self, weight: Tensor, budget: int) -> Tensor:
        if self.granularity == 'element':
            score = _finite(weight.abs())
            return top_mask(score.flatten(), budget).view_as(weight)
        num_rows, num_cols = weight.shape
        rows, cols = {
            'row': (1, num_cols),
            'column': (num_rows, 1),
            'block': (
                min(self.block_size, num_rows),
                min(self.block_size, num_cols),
            ),
        }[self.granularity]
        pad = (0, -num_cols % cols, 0, -num_rows % rows)
        # Squares of small weights are zero in half precision:
        dtype = torch.promote_types(weight.dtype, torch.float)
        blocks = F.pad(weight.to(dtype).square(), pad)
        blocks = blocks.unflatten(1, (-1, cols)).unflatten(0, (-1, rows))
        score = _finite(blocks.sum(dim=(1, 3)))
        num_groups = round(budget / weight.numel() * score.numel())
        if budget > 0:  # A layer without weights would not pass gradients.
            num_groups = max(num_groups, 1)
        mask = top_mask(score.flatten(), num_groups).view_as(score)
        mask = mask.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
        return mask[:num_rows, :num_cols]


def _finite(score: Tensor) -> Tensor:
    """Rank values that are not finite first."""
    return score.nan_to_num(nan=math.inf, posinf=math.inf)


def _match(
    owner: str, names: List[str], sparsity: Mapping[str, float]
) -> Dict[str, float]:
    """Return the sparsity of each layer that matches a pattern, by the first
    one.
    """
    out: Dict[str, float] = {}
    for pattern, value in sparsity.items():
        value = _check_sparsity(owner, value)
        found = [name for name in names if fnmatchcase(name, pattern)]
        if len(found) == 0:
            raise ValueError(
                f"'sparsity' of '{owner}' needs to have names or patterns of "
                f'layers in {names} (got {pattern!r})'
            )
        for name in found:
            out.setdefault(name, value)
    if len(out) == 0:
        raise ValueError(
            f"'sparsity' of '{owner}' needs to have at least one layer "
            f'(got {dict(sparsity)})'
        )
    return {name: out[name] for name in names if name in out}


def _check_sparsity(owner: str, sparsity: Any) -> float:
    """Return a sparsity as a float."""
    try:
        sparsity = float(sparsity)
    except (TypeError, ValueError):
        raise TypeError(
            f"'sparsity' of '{owner}' needs to be a number or a mapping of "
            f'names to numbers (got {sparsity!r})'
        ) from None
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"'sparsity' of '{owner}' needs to be in [0, 1) (got {sparsity})"
        )
    return sparsity


def _check(
    owner: str, distribution: str, granularity: str, block_size: int
) -> None:
    distributions = [*DISTRIBUTIONS, 'global']
    if distribution not in distributions:
        raise ValueError(
            f"'distribution' of '{owner}' needs to be one of {distributions} "
            f'(got {distribution!r})'
        )
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"'granularity' of '{owner}' needs to be one of {GRANULARITIES} "
            f'(got {granularity!r})'
        )
    if block_size < 1:
        raise ValueError(
            f"'block_size' of '{owner}' needs to be at least one "
            f'(got {block_size})'
        )
    if distribution == 'global' and granularity != 'element':
        raise ValueError(
            f"'distribution' of '{owner}' needs to be 'uniform', 'er' or "
            f"'erk' for the granularity {granularity!r} (got 'global')"
        )
