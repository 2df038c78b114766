import copy
import warnings
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torch_geometric_ext.data import SharedTreeBatch, SharedTrees
from torch_geometric_ext.data.tree_gcn_norm import tree_gcn_norm
from torch_geometric_ext.ops import extract_trees
from torch_geometric_ext.ops.ragged import row_index, row_ptr

MIN_RATIO = 0.9  # Of nodes to trees; where time breaks even, as measured.


class SharedTreeLoader(DataLoader):
    r"""Loads mini-batches of graphs in which every distinct computation tree
    occurs once.

    A mini-batch is a :class:`~torch_geometric_ext.data.SharedTreeBatch` with
    the trees of its graphs and what they are made of, extracted in time in
    proportion to its size. If it holds the whole data set
    (:obj:`batch_size=len(shared)`), graphs are in the order of the data set
    and its tensors are the same in each epoch: nothing is copied, so do not
    change them in place.

    .. code-block:: python

        shared = ShareComputationTrees(num_layers=2)(train_dataset)
        loader = SharedTreeLoader(shared, batch_size=512, shuffle=True)
        aggr = RootAggregation('sum')

        for batch in loader:
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
        **kwargs (optional): Other arguments of
            :class:`torch.utils.data.DataLoader`, such as :obj:`sampler`,
            :obj:`drop_last`, :obj:`num_workers` or :obj:`pin_memory`.

    Raises:
        TypeError: If :obj:`shared` is something else.
    """

    def __init__(
        self,
        shared: SharedTrees,
        batch_size: int = 1,
        shuffle: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(shared, SharedTrees):
            raise TypeError(
                f"'shared' of '{self.__class__.__name__}' needs to be "
                f"'SharedTrees' (got {type(shared)}). Make them by "
                f"'ShareComputationTrees(num_layers)(dataset)'"
            )
        kwargs.pop('collate_fn', None)
        kwargs.pop('dataset', None)
        if kwargs.get('batch_sampler') is None:
            kwargs.update(batch_size=batch_size, shuffle=shuffle)
        super().__init__(_BatchDataset(shared), collate_fn=_identity, **kwargs)
        self._warn_if_slow()

    def _warn_if_slow(self) -> None:
        size = len(self.dataset)  # type: ignore[arg-type]
        if self.batch_size is None or size == 0:
            return
        batch_size = min(self.batch_size, size)
        spread = torch.arange(batch_size) * size // batch_size
        batch = self.dataset.__getitems__(spread.tolist())  # type: ignore
        num_nodes = batch.num_roots
        if num_nodes < MIN_RATIO * batch.num_nodes:
            warnings.warn(
                f'Mini-batches of {batch_size} graphs hold about '
                f'{batch.num_nodes} trees in {batch.num_layers + 1} levels in '
                f'place of {num_nodes} nodes, which hardly pays. Larger '
                f"mini-batches share more, and 'LevelwiseConv' computes less",
                stacklevel=3,
            )


class _Union(NamedTuple):
    """All levels as one graph, the highest first."""

    ptr: Tensor  # [M + 1]
    child: Tensor  # [C]
    own: Tensor  # [M]
    label: Tensor  # [M]
    edge_attrs: Dict[str, Tensor]  # [C, ...]


class _BatchDataset(Dataset):
    """A data set whose items are mini-batches, asked for by lists."""

    def __init__(self, shared: SharedTrees) -> None:
        self.shared = shared
        self.union = _union(shared)
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
            edge_attrs={k: v[out.edge] for k, v in union.edge_attrs.items()},
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
        """Whether there are no trees but those of the graphs."""
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
            edge_attrs=union.edge_attrs,
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
        graph_attrs = self.shared.graph_attrs
        return SharedTreeBatch(
            x=self.shared.node_attrs['x'][label],
            edge_index=edge_index,
            **edge_attrs,
            **{k: v[graph_idx] for k, v in graph_attrs.items()},
            graph_idx=graph_idx,
            root=root,
            root_ptr=root_ptr,
            root_count=root_count.long(),
            num_roots=int(root_count.sum()),
            own=own,
            num_sampled_nodes=num_nodes,
            num_sampled_edges=num_edges,
        )


def _union(shared: SharedTrees) -> _Union:
    num_trees = shared.num_trees[::-1]
    offset = row_ptr(torch.tensor(num_trees)).tolist()
    total = offset[-1]
    if total >= 1 << 31:
        raise ValueError(
            f"'shared' needs fewer than 2^31 trees in all levels (got {total})"
        )
    # From the lowest level to the highest:
    num_labels = num_trees[-1]
    device = shared.tree.device
    labels = [torch.arange(num_labels, dtype=torch.int, device=device)]
    owns = [labels[0] + (total - num_labels)]
    children, sizes = [], [labels[0].long() * 0]
    for below, level in zip(offset[-2::-1], shared.levels):
        labels.append(labels[-1][level.own])
        owns.append(level.own + below)
        children.append(level.child + below)
        sizes.append(level.ptr.diff())
    union = _Union(
        row_ptr(torch.cat(sizes[::-1])),
        torch.cat([labels[0][:0], *children[::-1]]),
        torch.cat(owns[::-1]),
        torch.cat(labels[::-1]),
        {},
    )
    if shared.gcn_norm:  # Trees of level 0 are leaves.
        ptr, child, weight = tree_gcn_norm(
            shared, union.label, union.ptr, union.child, total - num_labels
        )
        return union._replace(
            ptr=ptr, child=child, edge_attrs={'edge_weight': weight}
        )
    if shared.edge_attrs:
        edge_label = torch.cat([lv.edge_label for lv in shared.levels[::-1]])
        for key, value in shared.edge_attrs.items():
            union.edge_attrs[key] = value[edge_label]
    return union


def _identity(batch: Any) -> Any:
    return batch
