import copy
import warnings
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
)

from torch_geometric_ext.data import SharedTreeBatch, SharedTrees
from torch_geometric_ext.data.shared_trees import take_attrs
from torch_geometric_ext.data.tree_gcn_norm import tree_gcn_norm
from torch_geometric_ext.loader.batch_report import BatchReport
from torch_geometric_ext.ops import extract_trees
from torch_geometric_ext.ops.ragged import row_index, row_ptr
from torch_geometric_ext.ops.tree_union import TreeUnion, unite_levels

NUM_SAMPLES = 8  # Mini-batches in a report, a choice.

# Least ratios of work that paid on all data sets in
# benchmark/loader/shared_trees.py, against plain mini-batches that are kept.
MIN_RATIO = 1.15
# Extraction takes a part of each step.
MIN_FRESH_RATIO = 1.3


class SharedTreeLoader(DataLoader):
    r"""Load mini-batches in which every distinct computation tree occurs once.

    A mini-batch is a :class:`~torch_geometric_ext.data.SharedTreeBatch` with
    the trees of its graphs and the trees of all levels below, extracted in
    time in proportion to its size.
    :func:`~torch_geometric_ext.nn.shared_batch` runs a model on it, level by
    level.

    .. code-block:: python

        shared = ShareComputationTrees(num_layers=2)(train_dataset)
        loader = SharedTreeLoader(shared, batch_size=512, shuffle=True)
        print(loader.report())
        aggr = RootAggregation('sum')

        for batch in loader:
            with shared_batch(batch):
                h = gnn(batch.x, batch.edge_index)
            loss = F.cross_entropy(head(aggr(h, batch)), batch.y)

    Any sampler of graphs works, such as
    :class:`~torch_geometric_ext.loader.GDeRSampler`; mini-batches carry
    :obj:`graph_idx`.

    Args:
        shared (SharedTrees): The trees, made by
            :class:`~torch_geometric_ext.transforms.ShareComputationTrees`.
        batch_size (int, optional): The number of graphs in a mini-batch.
            (default: :obj:`1`)
        shuffle (bool, optional): If set to :obj:`True`, graphs come in a new
            order in each epoch. (default: :obj:`False`)
        cached (bool, optional): If set to :obj:`True`, mini-batches are
            extracted in the first epoch and kept, in as much memory as
            :obj:`report().num_cached_bytes` estimates, and 16 bytes more for
            each edge that is multiplied in single precision. With
            :obj:`shuffle`,
            later epochs load the same mini-batches in a new order: graphs are
            not mixed anew, and :obj:`drop_last` leaves out the same graphs.
            (default: :obj:`False`)
        **kwargs (optional): Other arguments of
            :class:`torch.utils.data.DataLoader`, such as :obj:`sampler`,
            :obj:`drop_last`, :obj:`num_workers` or :obj:`pin_memory`.

    Raises:
        TypeError: If :obj:`shared` is not :obj:`SharedTrees`.
        ValueError: If :obj:`cached` is combined with a sampler.

    .. rubric:: Details

    .. note::
        A mini-batch of the whole data set (:obj:`batch_size=len(shared)`)
        holds the graphs in the order of the data set. Its tensors, and those
        of cached mini-batches, are the same in each epoch: do not change them
        in-place.
    """

    def __init__(
        self,
        shared: SharedTrees,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        cached: bool = False,
        **kwargs: Any,
    ) -> None:
        name = self.__class__.__name__
        if not isinstance(shared, SharedTrees):
            raise TypeError(
                f"'shared' of '{name}' needs to be 'SharedTrees' (got "
                f'{type(shared)}). Make them by '
                f"'ShareComputationTrees(num_layers)(dataset)'"
            )
        for key in ['sampler', 'batch_sampler']:
            if cached and kwargs.get(key) is not None:
                raise ValueError(
                    f"'cached' of '{name}' needs mini-batches that stay the "
                    f"same (got '{key}')"
                )
        kwargs.pop('collate_fn', None)
        kwargs.pop('dataset', None)
        if kwargs.get('batch_sampler') is None:
            kwargs.update(batch_size=batch_size, shuffle=shuffle)
        self.cached = cached
        self._batches: Optional[List[SharedTreeBatch]] = None
        super().__init__(_BatchDataset(shared), collate_fn=_identity, **kwargs)
        self._warn_if_slow()

    def __iter__(self) -> Any:
        return self._iter_cached() if self.cached else super().__iter__()

    def _iter_cached(self) -> Iterator[SharedTreeBatch]:
        if self._batches is None:
            batches = []
            for batch in super().__iter__():
                batches.append(batch)
                yield copy.copy(batch)
            self._batches = batches
            return
        order = torch.arange(len(self._batches))
        if isinstance(self.sampler, RandomSampler):
            order = torch.randperm(len(order), generator=self.generator)
        for i in order.tolist():
            yield copy.copy(self._batches[i])

    def report(self) -> BatchReport:
        r"""Return the sizes of mini-batches on plain graphs and on trees.

        Sizes are means over a sample of mini-batches: neighboring graphs if
        graphs come in order, and random graphs otherwise. The numbers of
        :meth:`~torch_geometric_ext.data.SharedTrees.report` are those of one
        mini-batch of the whole data set, in which more is shared.

        Raises:
            ValueError: If the loader has a :obj:`batch_sampler`, or no graphs.
        """
        size = len(self.dataset)  # type: ignore[arg-type]
        if self.batch_size is None or size == 0:
            raise ValueError(
                f"'report' of '{self.__class__.__name__}' needs a "
                f"'batch_size' and graphs (got {self.batch_size} and {size})"
            )
        batch_size = min(self.batch_size, size)
        num_batches = min(NUM_SAMPLES, size // batch_size)
        if isinstance(self.sampler, SequentialSampler):
            start = torch.arange(num_batches) * (size // num_batches)
            samples = start.view(-1, 1) + torch.arange(batch_size)
        else:
            generator = torch.Generator().manual_seed(0)
            perm = torch.randperm(size, generator=generator)
            samples = perm[: num_batches * batch_size].view(num_batches, -1)
        return BatchReport.from_batches(
            [self.dataset.batch(idx) for idx in samples],  # type: ignore
            num_loaded=-(-size // batch_size) if self.cached else 0,
        )

    def _warn_if_slow(self) -> None:
        size = len(self.dataset)  # type: ignore[arg-type]
        if self.batch_size is None or size == 0:
            return
        report = self.report()
        is_kept = self.cached or self.batch_size >= size
        if report.work_ratio >= (MIN_RATIO if is_kept else MIN_FRESH_RATIO):
            return
        advice = '' if is_kept else ', and to extract them once (cached=True)'
        warnings.warn(
            f'Mini-batches of {report.num_graphs} graphs share so little that '
            f'training hardly pays (work on plain graphs to work on trees, '
            f'after the first layer: {report.work_ratio:.2f}). It helps to '
            f'use larger mini-batches or fewer layers{advice}',
            stacklevel=3,
        )


class _BatchDataset(Dataset):
    """Extract a mini-batch for a list of indices."""

    def __init__(self, shared: SharedTrees) -> None:
        self.shared = shared
        self.union, self.edge_attrs = _unite(shared)
        self._full: Optional[SharedTreeBatch] = None

    def __len__(self) -> int:
        return len(self.shared)

    def __getitem__(self, idx: int) -> SharedTreeBatch:
        return self.__getitems__([idx])

    def __getitems__(self, indices: List[int]) -> SharedTreeBatch:
        return self.batch(torch.tensor(indices, dtype=torch.long))

    def batch(self, graph_idx: Tensor) -> SharedTreeBatch:
        shared, union = self.shared, self.union
        if self._is_everything(graph_idx) and self._all_used():
            if self._full is None:
                self._full = self._full_batch()
            return copy.copy(self._full)
        out = extract_trees(
            graph_idx.to(union.ptr.device),
            shared.graph_ptr,
            shared.tree,
            union.ptr,
            union.child,
            union.own,
            shared.num_layers,
        )
        sizes = out.sizes.tolist()
        return self._make(
            graph_idx,
            label=union.label[out.node],
            edge_index=out.edge_index,
            edge_attrs={k: v[out.edge] for k, v in self.edge_attrs.items()},
            root=out.root,
            root_ptr=out.root_ptr,
            root_count=shared.count[out.entry],
            own=out.own,
            num_nodes=[num for num, _ in sizes],
            num_edges=[num for _, num in sizes[:-1]],
        )

    def _is_everything(self, graph_idx: Tensor) -> bool:
        size = len(self.shared)
        if graph_idx.numel() != size or size == 0:
            return False
        low, high = (int(i) for i in graph_idx.aminmax())
        if low < 0 or high >= size:
            return False
        return bool((graph_idx.bincount(minlength=size) == 1).all())

    def _all_used(self) -> bool:
        """Return whether each tree belongs to a graph."""
        if self._full is not None:
            return True
        return self.shared.tree.unique().numel() == self.shared.num_trees[-1]

    def _full_batch(self) -> SharedTreeBatch:
        shared, union = self.shared, self.union
        num_nodes = shared.num_trees[::-1]
        bounds = union.ptr[row_ptr(torch.tensor(num_nodes))]
        return self._make(
            torch.arange(len(shared)),
            label=union.label,
            edge_index=torch.stack([union.child.long(), row_index(union.ptr)]),
            edge_attrs=self.edge_attrs,
            root=shared.tree.long(),
            root_ptr=shared.graph_ptr,
            root_count=shared.count,
            own=union.own.long(),
            num_nodes=num_nodes,
            num_edges=bounds.diff()[:-1].tolist(),
        )

    def _make(
        self,
        graph_idx: Tensor,
        label: Tensor,
        edge_index: Tensor,
        edge_attrs: Dict[str, Tensor],
        root: Tensor,
        root_ptr: Tensor,
        root_count: Tensor,
        own: Tensor,
        num_nodes: List[int],
        num_edges: List[int],
    ) -> SharedTreeBatch:
        return SharedTreeBatch(
            x=self.shared.node_attrs['x'][label],
            edge_index=edge_index,
            **edge_attrs,
            **take_attrs(self.shared.graph_attrs, graph_idx),
            graph_idx=graph_idx,
            root=root,
            root_ptr=root_ptr,
            root_count=root_count.long(),
            num_roots=int(root_count.sum()),
            own=own,
            num_sampled_nodes=num_nodes,
            num_sampled_edges=num_edges,
        )


def _unite(shared: SharedTrees) -> Tuple[TreeUnion, Dict[str, Tensor]]:
    """Return the trees of all levels, and the attributes of their edges."""
    total = sum(shared.num_trees)
    if total >= 1 << 31:
        raise ValueError(
            f"'shared' needs fewer than 2^31 trees in all levels (got {total})"
        )
    union = unite_levels(shared.num_trees[0], shared.levels)
    if shared.gcn_norm:  # Trees of level 0 are leaves.
        ptr, child, weight = tree_gcn_norm(
            shared,
            union.label,
            union.ptr,
            union.child,
            total - shared.num_trees[0],
        )
        return union._replace(ptr=ptr, child=child), {'edge_weight': weight}
    if not shared.edge_attrs:
        return union, {}
    label = torch.cat([level.edge_label for level in shared.levels[::-1]])
    return union, {key: x[label] for key, x in shared.edge_attrs.items()}


def _identity(batch: Any) -> Any:
    return batch
