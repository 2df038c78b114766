import warnings
from typing import Any, Iterable, List, Optional, Union

import torch.distributed as dist
from torch_geometric.data.data import BaseData
from tqdm import tqdm

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.merge_trees import (
    merge_shared_trees,
)
from torch_geometric_ext.transforms.collated import Collated, read_chunks
from torch_geometric_ext.transforms.discretize import Discretize
from torch_geometric_ext.transforms.share_graphs import (
    Settings,
    check_labels,
    share_graphs,
)

LARGE_PART = 10_000  # Nodes.
MIN_RATIO = 1.5  # Of nodes to trees; mini-batches share less than all graphs.


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
            :obj:`normalize=False` and :obj:`add_self_loops=False`, called
            with :obj:`batch.edge_weight` (of the type of :obj:`x`, if that is
            floating point), gives what it gives by default on the plain
            graphs. Let :class:`torch_geometric.transforms.GCNNorm` prepare
            plain graphs for that model. (default: :obj:`False`)
        self_loops (str, optional): What happens to self-loops before trees
            are built: :obj:`"keep"` is right for convolutions that treat them
            as any other edge, :obj:`"remove"` for those that replace them by
            their own (:class:`~torch_geometric.nn.conv.GATConv` and others
            with :obj:`add_self_loops=True`). :obj:`gcn_norm` implies
            :obj:`"remove"`. (default: :obj:`"keep"`)
        edge_attr (bool, optional): Whether :obj:`edge_attr`,
            :obj:`edge_weight` and :obj:`edge_type` tell trees apart and are
            part of mini-batches. Set it to :obj:`False` if the model does not
            read them: there is more to share without.
            (default: whether :obj:`gcn_norm` is not set)
        degree_labels (bool, optional): If set to :obj:`True`, the in-degree of
            each node (:obj:`torch.int64`, of shape :obj:`[num_nodes, 1]`)
            serves as :obj:`x` where it is missing, for an embedding. For
            one-hot features, use
            :class:`torch_geometric.transforms.OneHotDegree` instead.
            (default: :obj:`False`)
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
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(
                f"'num_layers' of '{name}' needs to be a positive integer "
                f'(got {num_layers})'
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
                list. It stays as it is. Split it first: what is shared is not
                sliced (but loaders take samplers).
            known (SharedTrees, optional): If given, its trees keep their ids,
                and those it does not hold are ranked behind them. The result
                holds the trees of both, and the graphs of :obj:`dataset`.
                (default: :obj:`None`)

        Raises:
            TypeError: If :obj:`dataset` does not hold homogeneous graphs.
            ValueError: If features are missing or continuous, keys or shapes
                of graphs differ, or :obj:`known` was made with other settings.
        """
        check_dataset(dataset, self.__class__.__name__)
        if known is not None:
            self._check_known(known)
        out = self._find(dataset, known)
        if known is None:
            self._check_ratio(out)
        return out

    def _find(
        self,
        dataset: Any,
        known: Optional[SharedTrees] = None,
        log: bool = False,
    ) -> SharedTrees:
        if self.discretizer is not None and not self.discretizer.fitted:
            self.discretizer.fit(dataset)

        settings = Settings(
            self.num_layers,
            self.gcn_norm,
            self.self_loops,
            self.edge_attr,
            self.degree_labels,
            self.discretizer,
        )
        if self.distributed:
            parts = self._share_with_ranks(dataset, settings)
        else:
            chunks = read_chunks(dataset, 0, len(dataset), self.chunk_size)
            parts = _share(self._progress(chunks, len(dataset), log), settings)
        out = merge_shared_trees(parts, known)
        if known is None:
            check_labels(out, settings)
        return out

    def _progress(
        self,
        chunks: Iterable[Collated],
        num_graphs: int,
        log: bool,
    ) -> Iterable[Collated]:
        total = (num_graphs - 1) // self.chunk_size + 1
        return tqdm(chunks, 'Computation trees', total, disable=not log)

    def _share_with_ranks(
        self,
        dataset: Any,
        settings: Settings,
    ) -> List[SharedTrees]:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        start, stop = (
            (rank + i) * len(dataset) // world_size for i in range(2)
        )
        chunks = read_chunks(dataset, start, stop, self.chunk_size)
        result: Union[List[SharedTrees], Exception]
        try:
            result = _share(chunks, settings)
        except Exception as error:  # Raised below, by all ranks.
            result = error
        results: List[Any] = world_size * [None]
        dist.all_gather_object(results, result)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [part for result in results for part in result]

    def _check_ratio(self, shared: SharedTrees) -> None:
        report = shared.report()
        if report.node_ratio < MIN_RATIO:
            warnings.warn(
                f'Sharing {self.num_layers} layers of computation trees does '
                f'not pay for this data set: there are only '
                f'{report.node_ratio:.1f} nodes for each distinct tree. Fewer '
                f"layers share more, and 'LevelwiseConv' computes less",
                stacklevel=3,
            )

    def _check_known(self, known: SharedTrees) -> None:
        if not isinstance(known, SharedTrees):
            raise TypeError(
                f"'known' needs to be 'SharedTrees' (got {type(known)})"
            )
        self._check_depth(known, "'known'")

    def _check_depth(self, shared: SharedTrees, name: str) -> None:
        for key in ['num_layers', 'gcn_norm']:
            if getattr(shared, key) != getattr(self, key):
                raise ValueError(
                    f"{name} needs to be made with the same '{key}' (got "
                    f'{getattr(shared, key)}, expected {getattr(self, key)})'
                )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_layers={self.num_layers}, '
            f"gcn_norm={self.gcn_norm}, self_loops='{self.self_loops}', "
            f'edge_attr={self.edge_attr})'
        )


def check_dataset(dataset: Any, name: str) -> None:
    """Refuses single graphs and empty data sets."""
    if isinstance(dataset, BaseData) or not hasattr(dataset, '__len__'):
        raise TypeError(
            f"'dataset' of '{name}' needs to be a data set of graphs, not one "
            f'of them: it is no transform of a data set (got {type(dataset)})'
        )
    if len(dataset) == 0:
        raise ValueError(f"'dataset' of '{name}' needs at least one graph")


def _share(
    chunks: Iterable[Collated],
    settings: Settings,
) -> List[SharedTrees]:
    """The trees of all parts, merged in pairs of similar size, so that memory
    stays in proportion to the result and each row is merged O(log) times.
    """
    stack: List[SharedTrees] = []
    for chunk in chunks:
        part = share_graphs(chunk, settings)
        if part.num_nodes >= LARGE_PART:  # Enough to tell early.
            check_labels(part, settings)
        stack.append(part)
        while len(stack) > 1 and _size(stack[-2]) < 2 * _size(stack[-1]):
            stack[-2:] = [merge_shared_trees(stack[-2:])]
    return stack


def _size(part: SharedTrees) -> int:
    return sum(part.num_trees) + part.tree.numel() + len(part)
