import warnings
from contextlib import nullcontext
from typing import Any, Iterator, Tuple, Type, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch_geometric.nn.aggr import (
    Aggregation,
    EquilibriumAggregation,
    GRUAggregation,
    LCMAggregation,
    LSTMAggregation,
    MeanAggregation,
    MLPAggregation,
    PatchTransformerAggregation,
    SumAggregation,
)
from torch_geometric.nn.resolver import aggregation_resolver
from torch_geometric.utils import scatter

from torch_geometric_ext.nn.shared_batch import current_context
from torch_geometric_ext.nn.tree_levels import rows_of
from torch_geometric_ext.ops.ragged import row_index, row_ptr

# Aggregations that depend on the order of nodes:
ORDERED_AGGRS: Tuple[Type[torch.nn.Module], ...] = (
    EquilibriumAggregation,
    GRUAggregation,
    LCMAggregation,
    LSTMAggregation,
    MLPAggregation,
    PatchTransformerAggregation,
)


PLAIN_NORM = (
    "'RootAggregation' pools trees that a batch normalization has counted "
    'once each, while it counts all nodes of plain graphs: convert the model '
    "by 'TreeBatchNorm.convert(model)' and run it within 'shared_batch', and "
    "see what else differs by 'check_exact(model, shared)'"
)


class RootAggregation(torch.nn.Module):
    r"""Pool nodes to graphs on plain graphs, condensed graphs, and shared
    computation trees.

    * For a mini-batch of
      :class:`~torch_geometric_ext.loader.SharedTreeLoader`, each graph pools
      its distinct trees as often as it holds them.
    * For a mini-batch of graphs with a :obj:`root_mask` (bool, per node) and,
      optionally, a :obj:`root_count` (per node), each graph pools its roots
      as often as :obj:`root_count` states.
    * For any other mini-batch, or an index vector, it is :obj:`aggr`.

    Sums and means are products with the sparse matrix of counts. Other
    aggregations, such as :obj:`"max"`, read every row as often as it counts:
    they are exact down to the gradients of ties, and cost as much as on the
    plain nodes.

    In training, a warning tells once if a batch normalization other than
    :class:`~torch_geometric_ext.nn.TreeBatchNorm` has computed embeddings of
    shared trees.

    Args:
        aggr (str or Aggregation, optional): The aggregation.
            (default: :obj:`"sum"`)
        **kwargs (optional): Arguments of an aggregation that is set by its
            name.

    Raises:
        ValueError: If :obj:`aggr` depends on the order of nodes.

    Shapes:
        - **input:** node embeddings :math:`(M, F)` and a mini-batch of
          :math:`B` graphs (or an index vector :math:`(M)`)
        - **output:** graph embeddings :math:`(B, F)`

    .. code-block:: python

        >>> aggr = RootAggregation('mean')
        >>> h = torch.tensor([[1.0], [3.0], [8.0]])
        >>> aggr(h, torch.tensor([0, 0, 1]))
        tensor([[2.],
                [8.]])
    """

    _norms_checked = False

    def __init__(
        self,
        aggr: Union[str, Aggregation] = 'sum',
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.aggr = aggregation_resolver(aggr, **kwargs)
        for module in self.aggr.modules():
            if isinstance(module, ORDERED_AGGRS):
                raise ValueError(
                    f"'aggr' of '{self.__class__.__name__}' needs to be an "
                    f'aggregation of multisets (got '
                    f"'{module.__class__.__name__}')"
                )

    def reset_parameters(self) -> None:
        """Reset the parameters of the aggregation."""
        self.aggr.reset_parameters()

    def forward(self, h: Tensor, batch: Any) -> Tensor:
        r"""Return one embedding for each graph.

        Args:
            h (torch.Tensor): The node embeddings. For shared trees, the rows
                of the highest level are enough. Outputs of inner layers in
                :func:`~torch_geometric_ext.nn.shared_batch` have rows of a
                lower level, which are repeated for the highest one: pool them
                within the block, or as the layers returned them.
            batch (Data or torch.Tensor): The mini-batch, or the graph of each
                node.

        Raises:
            ValueError: If the rows of :obj:`h` are not nodes of the
                mini-batch, or :obj:`batch` has another number of nodes.
        """
        context = current_context()
        with context.tracker.pause() if context else nullcontext():
            return self._pool(h, batch)

    def _pool(self, h: Tensor, batch: Any) -> Tensor:
        if isinstance(batch, Tensor):
            _check_index(h, batch)
            return self.aggr(h, batch)
        if 'root_ptr' in batch:
            self._check_norms(h)
            return self._pool_trees(_highest_level(h, batch), batch)

        index, size = batch.batch, getattr(batch, 'num_graphs', 1)
        num_nodes = batch.num_nodes if index is None else index.numel()
        _check_rows(h, num_nodes, num_nodes)
        if index is None:
            index = torch.zeros(h.size(0), dtype=torch.long, device=h.device)
        if 'root_mask' not in batch:
            return self.aggr(h, index, dim_size=size)
        key = 'root_count' if 'root_count' in batch else 'root_mask'
        return self._pool_roots(h, index, batch[key].long(), size)

    def _check_norms(self, h: Tensor) -> None:
        """Warn once if a batch normalization has counted each tree once."""
        if is_compiling() or self._norms_checked or h.grad_fn is None:
            return
        modes = set(_norm_modes(h.grad_fn))
        self._norms_checked = modes != {False}  # Evaluation tells nothing.
        if True in modes:
            warnings.warn(PLAIN_NORM, stacklevel=6)  # Where it is called.

    def _pool_trees(self, h: Tensor, batch: Any) -> Tensor:
        ptr, count = batch.root_ptr, batch.root_count
        kind = type(self.aggr)
        if kind is SumAggregation or kind is MeanAggregation:
            out = _weighted_sum(h, batch.root, ptr, count)
            if kind is SumAggregation:
                return out
            return out / _as_column(
                row_ptr(count)[ptr].diff().clamp(min=1), out
            )
        # A known number of rows avoids a synchronization.
        total = batch.num_roots
        index = row_index(ptr, batch.root.numel())
        index = index.repeat_interleave(count, output_size=total)
        row = batch.root.repeat_interleave(count, output_size=total)
        return self.aggr(h[row], index, dim_size=batch.num_graphs)

    def _pool_roots(
        self,
        h: Tensor,
        index: Tensor,
        count: Tensor,
        size: int,
    ) -> Tensor:
        kind = type(self.aggr)
        if kind is SumAggregation or kind is MeanAggregation:
            weight = _as_column(count, h)
            kept = h.masked_fill(weight == 0, 0)  # It may hold NaN.
            out = scatter(kept * weight, index, dim_size=size)
            if kind is SumAggregation:
                return out
            return out / _as_column(
                scatter(count, index, dim_size=size).clamp(min=1), out
            )
        row = torch.arange(h.size(0), device=h.device).repeat_interleave(count)
        return self.aggr(h[row], index[row], dim_size=size)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.aggr})'


def _weighted_sum(
    h: Tensor, row: Tensor, ptr: Tensor, count: Tensor
) -> Tensor:
    # An embedding bag multiplies by a sparse matrix without building it. Half
    # precision is too coarse for large counts:
    dtype = torch.promote_types(h.dtype, torch.float)
    out = F.embedding_bag(
        row,
        h.flatten(1).to(dtype),
        ptr,
        mode='sum',
        per_sample_weights=count.to(dtype),
        include_last_offset=True,
    )
    return out.view(out.size(0), *h.shape[1:]).to(h.dtype)


def _as_column(count: Tensor, h: Tensor) -> Tensor:
    return count.view(-1, *[1] * (h.dim() - 1))


def _highest_level(h: Tensor, batch: Any) -> Tensor:
    """Return rows that start with the trees of the highest level."""
    rows = rows_of(h)
    if rows is not None and rows.levels.batch.own is batch.own:
        if not rows.all_levels:
            return rows.levels.lift(h, rows.level, rows.levels.num_layers)
    sizes = batch.num_sampled_nodes
    _check_rows(h, sizes[0], sum(sizes))
    return h


def _norm_modes(node: Any) -> Iterator[bool]:
    """Iterate over the modes of batch normalizations in a graph of autograd:
    whether each is in training.
    """
    stack, seen = [node], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [parent for parent, _ in node.next_functions]
        if 'BatchNorm' not in node.name():
            continue
        # An instance normalization is computed as a batch of one example.
        if node._input_metadata[0].shape[0] != 1:
            yield getattr(node, '_saved_training', True)


def _check_index(h: Tensor, index: Tensor) -> None:
    if index.dim() != 1 or index.size(0) != h.size(0):
        raise ValueError(
            f"'batch' of 'RootAggregation' needs the graph of each of "
            f"{h.size(0)} rows of 'h' (got {list(index.shape)})"
        )


def _check_rows(h: Tensor, low: int, high: int) -> None:
    if not low <= h.size(0) <= high:
        raise ValueError(
            f"'h' of 'RootAggregation' needs one row for each of {high} nodes "
            f'of the mini-batch (got {h.size(0)})'
        )
