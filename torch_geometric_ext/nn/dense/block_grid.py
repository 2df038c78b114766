from typing import Any, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.nn.dense.pattern import (
    Pattern,
    complete,
    compress,
    flatten,
    random_index,
    select_index,
)
from torch_geometric_ext.ops.block_weights import (
    BLOCK_SIZES,
    count_columns,
    expand_blocks,
)


class BlockGrid(NamedTuple):
    r"""Divide a weight into square blocks that are active or not as a whole.

    Blocks at the last rows and columns are cut to the weights that exist.
    Positions of blocks are ascending indices into the flattened grid. A block
    size of one is a grid of single weights.

    Attributes:
        size (Tuple[int, int]): The number of rows and columns of the weight.
        block_size (int): The size of blocks.
    """

    size: Tuple[int, int]
    block_size: int

    @property
    def shape(self) -> Tuple[int, int]:
        """The number of rows and columns of blocks."""
        num_rows, num_cols = (-(-x // self.block_size) for x in self.size)
        return num_rows, num_cols

    @property
    def num_blocks(self) -> int:
        """The number of active and inactive blocks."""
        return self.shape[0] * self.shape[1]

    def count_weights(self, blocks: Tensor) -> Tensor:
        """Return the number of weights of each block.

        Args:
            blocks (torch.Tensor): Positions of blocks (int64).
        """
        if self.block_size == 1:
            return torch.ones_like(blocks)
        num_cols = max(self.shape[1], 1)
        out = torch.ones_like(blocks)
        for x, size in zip([blocks // num_cols, blocks % num_cols], self.size):
            out *= (size - x * self.block_size).clamp(max=self.block_size)
        return out

    def draw(
        self, size: int, generator: Optional[torch.Generator] = None
    ) -> Tensor:
        """Draw the ascending positions of active blocks on the CPU.

        Single weights are drawn uniformly. The rows of larger blocks get equal
        numbers of them, up to one, since an output without any is constant.

        Args:
            size (int): The number of active blocks.
            generator (torch.Generator, optional): CPU generator.
                (default: the global generator)
        """
        if self.block_size == 1:
            return random_index(self.num_blocks, size, generator)
        kwargs: Any = dict(generator=generator, device='cpu')
        (num_rows, num_cols), device = self.shape, 'cpu'
        degree = torch.full(
            (num_rows,), size // max(num_rows, 1), device=device
        )
        extra = torch.randperm(num_rows, **kwargs)[: size - degree.sum()]
        degree[extra] += 1
        col = torch.rand(num_rows, num_cols, **kwargs).argsort(dim=1)
        mask = torch.arange(num_cols, device=device) < degree.view(-1, 1)
        row = torch.arange(num_rows, device=device).view(-1, 1)
        return (row * num_cols + col)[mask].sort().values

    def compress(self, index: Tensor) -> Pattern:
        """Return the pattern of the blocks of active weights.

        Args:
            index (torch.Tensor): Ascending positions of the active weights in
                the flattened weight (int64).

        Raises:
            ValueError: If some weights of a block are active, but not all.
        """
        if self.block_size == 1:
            return compress(index, self.size)
        blocks = self.find_blocks(index)
        if int(self.count_weights(blocks).sum()) != index.numel():
            raise ValueError(
                f"'index' needs to hold all or no weights of each block of "
                f'{self.block_size} x {self.block_size} (got '
                f'{index.numel()} weights, and {blocks.numel()} blocks whose '
                f'first weight is active)'
            )
        return compress(blocks, self.shape)

    def find_blocks(self, index: Tensor) -> Tensor:
        """Return the ascending positions of the blocks whose first weight is
        active.
        """
        row, col = index // max(self.size[1], 1), index % max(self.size[1], 1)
        is_first = (row % self.block_size == 0) & (col % self.block_size == 0)
        row, col = row[is_first], col[is_first]
        num_cols = self.shape[1]
        return row // self.block_size * num_cols + col // self.block_size

    def expand(self, blocks: Tensor) -> Tensor:
        """Return the ascending positions of the weights of blocks."""
        if self.block_size == 1:
            return blocks
        return self.flatten(*compress(blocks, self.shape)[:2])

    def flatten(
        self, rowptr: Tensor, col: Tensor, num_weights: Optional[int] = None
    ) -> Tensor:
        """Return the ascending positions of the weights of a pattern (int64).

        See :func:`~torch_geometric_ext.ops.block_weights.expand_blocks`
        for the arguments.
        """
        if self.block_size == 1:
            return flatten(rowptr, col, self.size[1])
        out = expand_blocks(rowptr, col, *self, num_weights)
        return out.row * self.size[1] + out.col

    def fan_in(self, rowptr: Tensor, col: Tensor) -> Tensor:
        """Return the number of active weights of each row of the weight."""
        if self.block_size == 1:
            return rowptr.diff()
        return count_columns(rowptr, col, *self)

    def complete(
        self, values: Tensor, rowptr: Tensor, col: Tensor, colptr: Tensor
    ) -> Pattern:
        """Check a stored weight and add the tensors that are not stored.

        See :func:`~torch_geometric_ext.nn.dense.pattern.complete`.
        """
        if self.block_size == 1:
            return complete(values, rowptr, col, colptr, self.size)
        pattern = complete(col, rowptr, col, colptr, self.shape)
        blocks = flatten(rowptr, col, self.shape[1])
        size = int(self.count_weights(blocks).sum())
        if values.dim() != 1 or values.numel() != size:
            raise ValueError(
                f"'values' of 'SparseLinear' needs to be a vector of the "
                f'{size} weights of {col.numel()} blocks (got '
                f'{list(values.shape)})'
            )
        return pattern

    def select(
        self,
        weight: Tensor,
        mask: Optional[Tensor] = None,
        sparsity: Optional[float] = None,
        index: Optional[Tensor] = None,
    ) -> Tensor:
        """Return the ascending positions of the weights of the blocks that a
        mask, a sparsity (by the mean square of a block) or positions select,
        or else of all blocks but those of zeros.

        Raises:
            ValueError: If several of them are given, or one is invalid.
        """
        num_given = sum(x is not None for x in [mask, sparsity, index])
        if self.block_size == 1 or num_given > 1 or mask is not None:
            return select_index(weight, mask, sparsity, index)
        if index is not None:
            return select_index(weight, index=index)
        square = self.mean_square(weight)
        if sparsity is None:
            return self.expand(square.nonzero().flatten())
        size = round((1 - sparsity) * self.num_blocks)
        blocks = square.topk(size, sorted=False).indices.sort().values
        return self.expand(blocks)

    def mean_square(self, weight: Tensor) -> Tensor:
        r"""Return the mean square of each block of a dense weight, of shape
        :math:`(\textrm{num\_blocks})`.

        It orders whole blocks as their norm does, and favors no cut block.
        """
        (num_rows, num_cols), size = self.shape, self.block_size
        wide = torch.promote_types(weight.dtype, torch.float)
        padding = [num_cols * size - self.size[1], num_rows * size]
        padding = [0, padding[0], 0, padding[1] - self.size[0]]
        out = F.pad(weight.to(wide), padding).square()
        out = out.view(num_rows, size, num_cols, size).sum((1, 3)).flatten()
        blocks = torch.arange(out.numel(), device=out.device)
        return out / self.count_weights(blocks)


def check_block_size(owner: str, block_size: int) -> None:
    """Raise a :class:`ValueError` unless there are loops for a block size."""
    if block_size not in [1, *BLOCK_SIZES]:
        raise ValueError(
            f"'block_size' of '{owner}' needs to be one of "
            f'{[1, *BLOCK_SIZES]} (got {block_size})'
        )
