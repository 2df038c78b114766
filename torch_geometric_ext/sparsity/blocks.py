"""Rank and move the blocks of sparse layers."""

from typing import List, NamedTuple, Tuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.nn.dense.pattern import flatten
from torch_geometric_ext.ops.block_weights import expand_blocks
from torch_geometric_ext.ops.top_positions import top_positions
from torch_geometric_ext.sparsity.optimizer_state import move_weights


class ActiveBlocks(NamedTuple):
    """Active blocks of a layer. Single weights are blocks of one weight.

    Attributes:
        position (torch.Tensor): The ascending positions of the blocks in the
            grid of the layer (int64).
        owner (torch.Tensor): The block of each weight (int64).
        magnitude (torch.Tensor): The root mean square of each block.
        num_weights (torch.Tensor): The number of weights of each block.
    """

    position: Tensor
    owner: Tensor
    magnitude: Tensor
    num_weights: Tensor

    @classmethod
    def of(cls, layer: SparseLinear) -> 'ActiveBlocks':
        """Return the active blocks of a layer."""
        magnitude = layer.values.detach().abs()
        if layer.block_size == 1:
            index = layer.index
            owner = torch.arange(index.numel(), device=index.device)
            return cls(index, owner, magnitude, torch.ones_like(index))
        rowptr, col, size = layer.rowptr, layer.col, magnitude.numel()
        index = flatten(rowptr, col, layer.grid.shape[1])
        num_weights = layer.grid.count_weights(index)
        owner = expand_blocks(rowptr, col, *layer.grid, size).block
        wide = magnitude.to(torch.promote_types(magnitude.dtype, torch.float))
        total = wide.new_zeros(index.numel())
        total.index_add_(0, owner, wide.square())
        return cls(index, owner, (total / num_weights).sqrt(), num_weights)


def move_blocks(
    layer: SparseLinear, optimizer: Optimizer, score: Tensor, fraction: float
) -> Tuple[Tensor, Tensor]:
    """Drop the active blocks of the smallest norm, and grow as many inactive
    blocks of the highest scores.

    Blocks that are cut at the edges of the weight are replaced by blocks with
    as many weights, so that the number of active weights is constant.

    Args:
        layer (SparseLinear): The layer.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        score (torch.Tensor): The score of each block of the grid. Blocks of
            negative scores do not grow.
        fraction (float): The fraction of active blocks to drop.

    Returns:
        The positions of new weights, and all active positions afterwards.
    """
    grid, active = layer.grid, ActiveBlocks.of(layer)
    blocks = torch.arange(grid.num_blocks, device=score.device)
    num_weights = grid.count_weights(blocks)
    is_free = score >= 0
    is_free[active.position] = False
    kept: List[Tensor] = []
    grown: List[Tensor] = []
    for size in active.num_weights.unique().tolist():  # At most four.
        own = (active.num_weights == size).nonzero().flatten()
        free = (is_free & (num_weights == size)).nonzero().flatten()
        num_moves = min(round(fraction * own.numel()), free.numel())
        num_kept = own.numel() - num_moves
        kept.append(own[top_positions(active.magnitude[own], num_kept)])
        grown.append(free[top_positions(score[free], num_moves)])
    is_kept = torch.zeros_like(active.position, dtype=torch.bool)
    is_kept[torch.cat(kept)] = True
    remaining = is_kept[active.owner].nonzero().flatten()
    index = grid.expand(torch.cat(grown).sort().values)
    return index, move_weights(layer, optimizer, layer.index, remaining, index)


def largest_blocks(active: List[ActiveBlocks], size: int) -> List[Tensor]:
    """Return the positions of the weights of the blocks of the largest root
    mean squares, at most :obj:`size` weights in all, for each layer.
    """
    device = active[0].magnitude.device
    magnitude = torch.cat(
        [x.magnitude.to(device, active[0].magnitude.dtype) for x in active]
    )
    num_weights = torch.cat([x.num_weights.to(device) for x in active])
    if int(num_weights.sum()) == magnitude.numel():
        top = top_positions(magnitude, size)
    else:
        order = magnitude.nan_to_num(nan=torch.inf)
        order = order.argsort(descending=True, stable=True)
        top = order[num_weights[order].cumsum(0) <= size]
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    mask[top] = True
    masks = mask.split([x.magnitude.numel() for x in active])
    return [
        mask.to(x.owner.device)[x.owner].nonzero().flatten()
        for mask, x in zip(masks, active)
    ]
