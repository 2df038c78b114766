import warnings
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.ops import unique_rows
from torch_geometric_ext.ops.computation_tree_ids import (
    check_categorical,
    check_edges,
    check_range,
    refine,
    row_labels,
)
from torch_geometric_ext.ops.ragged import row_index, row_ptr
from torch_geometric_ext.transforms.collated import Collated, read_chunks
from torch_geometric_ext.transforms.discretize import Discretize
from torch_geometric_ext.transforms.merge_shared_trees import (
    compact,
    merge_shared_trees,
)

Labels = Tuple[Tensor, Tensor]  # And the first row of each.

EDGE_KEYS = ['edge_attr', 'edge_weight', 'edge_type']
MIN_RATIO = 1.5


class ShareComputationTrees:
    r"""Finds the distinct computation trees of a data set of graphs, so that a
    network computes each of them once.

    The embedding that :math:`L` layers of message passing give a node depends
    on its computation tree of depth :math:`L` only, and most trees repeat:
    within a molecule, and across molecules. A graph is a multiset of trees,
    and a sum over its nodes is a sum over its distinct trees times their
    counts. Losses and gradients are those of training on all nodes, up to
    rounding.

    .. code-block:: python

        shared = ShareComputationTrees(num_layers=2)(train_dataset)
        print(shared.report())
        loader = SharedTreeLoader(shared, batch_size=512, shuffle=True)
        aggr = RootAggregation('sum')

        for batch in loader:
            h = gnn(batch.x, batch.edge_index)  # Two layers.
            loss = F.cross_entropy(head(aggr(h, batch)), batch.y)

    Exact for convolutions that read one hop, aggregate a multiset, and
    normalize by nothing but what the target sees;
    :func:`~torch_geometric_ext.nn.check_exact` tells whether a model is made
    of these.

    The data set is read in parts of :obj:`chunk_size` graphs and each part is
    forgotten once its trees are known. The result depends neither on the size
    of the parts nor on threads or ranks. See
    :func:`~torch_geometric_ext.ops.computation_tree_ids` for the cost; the
    result holds 12 bytes for each distinct tree, 8 (4 without edge attributes)
    for each of its children, and 8 for each distinct tree of each graph.

    Args:
        num_layers (int): The number of message-passing layers :math:`L`.
        gcn_norm (bool, optional): If set to :obj:`True`, trees tell the
            degrees of their leaves, and mini-batches carry self-loops and
            :obj:`edge_weight`, with which
            :class:`~torch_geometric.nn.conv.GCNConv` with
            :obj:`normalize=False` and :obj:`add_self_loops=False` gives what
            it gives by default on the plain graphs. (default: :obj:`False`)
        self_loops (str, optional): What happens to self-loops before trees
            are built: :obj:`"keep"` is right for convolutions that treat them
            as any other edge, :obj:`"remove"` for those that replace them by
            their own (:class:`~torch_geometric.nn.conv.GATConv` and others
            with :obj:`add_self_loops=True`). :obj:`gcn_norm` implies
            :obj:`"remove"`. (default: :obj:`"keep"`)
        edge_attr (bool, optional): Whether :obj:`edge_attr`,
            :obj:`edge_weight` and :obj:`edge_type` tell trees apart and are
            part of mini-batches. There is more to share without.
            (default: whether :obj:`gcn_norm` is not set)
        degree_labels (bool, optional): If set to :obj:`True`, the in-degree of
            each node (:obj:`torch.int64`, of shape :obj:`[num_nodes, 1]`)
            serves as :obj:`x` where it is missing. (default: :obj:`False`)
        discretizer (Discretize, optional): Makes continuous features
            categorical (a transform; it is fitted to the data set if that has
            not been done). Sharing is then exact with respect to the
            discretized data. (default: :obj:`None`)
        distributed (bool, optional): If set to :obj:`True`, each rank of
            :mod:`torch.distributed` reads its share of the graphs, and all
            get the whole result. (default: :obj:`False`)
        chunk_size (int, optional): The number of graphs to read at a time.
            (default: :obj:`4096`)

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        num_layers: int,
        gcn_norm: bool = False,
        *,
        self_loops: str = 'keep',
        edge_attr: Optional[bool] = None,
        degree_labels: bool = False,
        discretizer: Optional[Discretize] = None,
        distributed: bool = False,
        chunk_size: int = 4096,
    ) -> None:
        name = self.__class__.__name__
        if num_layers < 1:
            raise ValueError(
                f"'num_layers' of '{name}' needs to be positive (got "
                f'{num_layers})'
            )
        if self_loops not in ['keep', 'remove']:
            raise ValueError(
                f"'self_loops' of '{name}' needs to be 'keep' or 'remove' "
                f"(got '{self_loops}')"
            )
        if gcn_norm and edge_attr:
            raise ValueError(
                f"'edge_attr' of '{name}' needs to be 'False' if 'gcn_norm' "
                f"is set: 'GCNConv' reads no edge attributes"
            )
        if chunk_size < 1:
            raise ValueError(
                f"'chunk_size' of '{name}' needs to be positive (got "
                f'{chunk_size})'
            )
        if distributed and not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"'distributed' of '{name}' needs an initialized process group"
            )
        self.num_layers = num_layers
        self.gcn_norm = gcn_norm
        self.self_loops = 'remove' if gcn_norm else self_loops
        self.edge_attr = not gcn_norm if edge_attr is None else edge_attr
        self.degree_labels = degree_labels
        self.discretizer = discretizer
        self.distributed = distributed
        self.chunk_size = chunk_size

    def __call__(
        self,
        dataset: Any,
        known: Optional[SharedTrees] = None,
    ) -> SharedTrees:
        r"""Returns the shared trees of a data set.

        Args:
            dataset (Dataset or Sequence): Any data set of homogeneous graphs:
                in memory, on disk, a :class:`torch.utils.data.Subset`, a
                list. It stays as it is.
            known (SharedTrees, optional): If given, its trees keep their ids,
                and those it does not hold are ranked behind them. The result
                holds the trees of both, and the graphs of :obj:`dataset`.
                (default: :obj:`None`)

        Raises:
            TypeError: If :obj:`dataset` does not hold homogeneous graphs.
            ValueError: If features are missing or continuous, keys or shapes
                of graphs differ, or :obj:`known` was made with other settings.
        """
        if isinstance(dataset, BaseData) or not hasattr(dataset, '__len__'):
            raise TypeError(
                f"'dataset' of '{self.__class__.__name__}' needs to be a data "
                f'set of graphs (got {type(dataset)})'
            )
        if len(dataset) == 0:
            raise ValueError(
                f"'dataset' of '{self.__class__.__name__}' needs at least one "
                f'graph'
            )
        if known is not None:
            self._check_known(known)
        if self.discretizer is not None and not self.discretizer.fitted:
            self.discretizer.fit(dataset)

        # Merged in pairs of similar size, so that memory stays in proportion
        # to the result and each tree is merged O(log) times:
        stack: List[SharedTrees] = []
        start, stop = self._own_share(len(dataset))
        for chunk in read_chunks(dataset, start, stop, self.chunk_size):
            # A part may be too small to tell, and the first one tells it all:
            check = known is None and not stack
            stack.append(self._share(chunk, check))
            while len(stack) > 1 and _size(stack[-2]) < 2 * _size(stack[-1]):
                stack[-2:] = [merge_shared_trees(stack[-2:])]
        if self.distributed:
            parts: List[Any] = dist.get_world_size() * [None]
            dist.all_gather_object(parts, stack)
            stack = [shared for part in parts for shared in part]
        out = merge_shared_trees(stack, known)

        ratio = out.report().node_ratio
        if known is None and ratio < MIN_RATIO:
            warnings.warn(
                f'Sharing {self.num_layers} layers of computation trees does '
                f'not pay for this data set: there are only {ratio:.1f} nodes '
                f'for each distinct tree',
                stacklevel=2,
            )
        return out

    def _own_share(self, size: int) -> Tuple[int, int]:
        if not self.distributed:
            return 0, size
        rank, world_size = dist.get_rank(), dist.get_world_size()
        return rank * size // world_size, (rank + 1) * size // world_size

    def _check_known(self, known: SharedTrees) -> None:
        for key in ['num_layers', 'gcn_norm']:
            if getattr(known, key) != getattr(self, key):
                raise ValueError(
                    f"'known' needs to be made with the same '{key}' (got "
                    f'{getattr(known, key)}, expected {getattr(self, key)})'
                )

    def _share(self, chunk: Collated, check: bool) -> SharedTrees:
        """The shared trees of a part of the data set."""
        num_nodes = int(chunk.node_ptr[-1])
        num_bytes = sum(
            x.numel() * x.element_size() for x in chunk.attrs.values()
        )
        attrs = self._prepare(chunk.attrs, num_nodes)
        edge_index = attrs['edge_index']

        labels = {'x': self._labels(attrs, 'x', check)}
        if self.gcn_norm:
            degree = edge_index[1].bincount(minlength=num_nodes)
            attrs['degree'] = degree
            labels['degree'] = self._labels(attrs, 'degree', check)
        label, label_index = _combine(labels)
        edge_keys = [key for key in EDGE_KEYS if key in attrs]
        edge_label, edge_label_index = None, None
        if edge_keys:
            edge_label, edge_label_index = _combine(
                {key: self._labels(attrs, key, check) for key in edge_keys}
            )
        trees = refine(
            label, label_index, edge_index, self.num_layers, edge_label
        )

        graph_ptr, tree, count = _count(trees.ids[-1], chunk.node_ptr)
        return SharedTrees(
            self.num_layers,
            self.gcn_norm,
            bool((edge_index[0] == edge_index[1]).any()),
            {key: attrs[key][label_index] for key in labels},
            {key: attrs[key][edge_label_index] for key in edge_keys},
            [compact(level) for level in trees.levels],
            graph_ptr,
            tree,
            count,
            _graph_attrs(chunk),
            num_nodes,
            edge_index.size(1),
            num_bytes,
        )

    def _labels(
        self,
        attrs: Dict[str, Tensor],
        key: str,
        check: bool,
    ) -> Labels:
        labels = row_labels(attrs[key], key)
        discretizer = self.discretizer
        if check and (discretizer is None or key not in discretizer.attrs):
            check_categorical(attrs[key], attrs[key][labels[1]], key)
        return labels

    def _prepare(
        self,
        attrs: Dict[str, Tensor],
        num_nodes: int,
    ) -> Dict[str, Tensor]:
        """Discretized features, without self-loops where they go."""
        out = dict(attrs)
        if 'edge_index' not in out:
            if 'adj_t' in out:
                raise ValueError(
                    "'dataset' needs graphs with 'edge_index' (got 'adj_t')"
                )
            out['edge_index'] = torch.empty(2, 0, dtype=torch.long)
        if 'edge_weight' in out and self.gcn_norm:
            raise NotImplementedError(
                "'gcn_norm' does not support graphs with 'edge_weight'"
            )
        check_range(out['edge_index'], num_nodes)
        if 'x' not in out:
            if not self.degree_labels:
                raise ValueError(
                    "'dataset' needs graphs with 'x' (set "
                    "'degree_labels=True' to use the in-degrees, or add "
                    "features by a transform such as 'OneHotDegree')"
                )
            degree = out['edge_index'][1].bincount(minlength=num_nodes)
            out['x'] = degree.view(-1, 1)
        if out['x'].size(0) != num_nodes:
            raise ValueError(
                f"'x' needs one row for each of {num_nodes} nodes (got "
                f'{out["x"].size(0)})'
            )
        if self.discretizer is not None:
            out = self.discretizer(Data.from_dict(out)).to_dict()
        if not self.edge_attr:
            out = {k: v for k, v in out.items() if k not in EDGE_KEYS}
        for key in EDGE_KEYS:
            check_edges(out['edge_index'], out.get(key))
        if self.self_loops == 'remove':
            kept = out['edge_index'][0] != out['edge_index'][1]
            for key in EDGE_KEYS:
                if key in out:
                    out[key] = out[key][kept]
            out['edge_index'] = out['edge_index'][:, kept]
        return out

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_layers={self.num_layers}, '
            f"gcn_norm={self.gcn_norm}, self_loops='{self.self_loops}', "
            f'edge_attr={self.edge_attr})'
        )


def _combine(labels: Dict[str, Labels]) -> Labels:
    """One label for several."""
    if len(labels) == 1:
        return next(iter(labels.values()))
    return unique_rows(torch.stack([ids for ids, _ in labels.values()], dim=1))


def _count(ids: Tensor, node_ptr: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """The distinct ids of each graph, and how often it holds them."""
    node_ptr = node_ptr.to(ids.device)
    num_ids = int(ids.max()) + 1 if ids.numel() > 0 else 1
    code, count = torch.unique(
        row_index(node_ptr) * num_ids + ids, return_counts=True
    )
    graph = code // num_ids
    size = graph.bincount(minlength=node_ptr.numel() - 1)
    return row_ptr(size), (code - graph * num_ids).int(), count.int()


def _size(part: SharedTrees) -> int:
    return sum(part.num_trees)


def _graph_attrs(chunk: Collated) -> Dict[str, Tensor]:
    """Attributes with one row for each graph."""
    num_graphs = chunk.node_ptr.numel() - 1
    out = {}
    for key, ptr in chunk.ptrs.items():
        value = chunk.attrs[key]
        if key in [*EDGE_KEYS, 'x', 'edge_index', 'graph_idx']:
            continue
        if value.dim() > 0 and value.size(0) == num_graphs:
            if bool((ptr.diff() == 1).all()):
                out[key] = value
    if 'y' in chunk.ptrs and 'y' not in out:
        raise NotImplementedError(
            f"'y' needs one row for each graph (got "
            f'{chunk.attrs["y"].size(0)} rows in {num_graphs} graphs)'
        )
    return out
