import warnings
from typing import Any, Optional

import torch.distributed as dist

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.transforms.collated import CHUNK_SIZE, check_dataset
from torch_geometric_ext.transforms.discretize import Discretize
from torch_geometric_ext.transforms.share_graphs import share_graphs
from torch_geometric_ext.transforms.tree_settings import (
    TreeSettings,
    check_same_settings,
    tree_settings,
)

# The nodes for each distinct tree of the data set below which to warn; a
# choice: mini-batches share less, as `SharedTreeLoader` reports.
MIN_RATIO = 1.5


class ShareComputationTrees:
    r"""Find the distinct computation trees of a data set of graphs, so that a
    model computes each of them once.

    :math:`L` layers of message passing embed a node by its computation tree of
    depth :math:`L`. Most trees repeat, within a molecule and across molecules.
    The result stores each distinct tree once, and a graph as the counts of its
    trees. Pooling weights the embeddings of trees by these counts. Losses and
    gradients equal those of training on all nodes, up to rounding.

    .. code-block:: python

        shared = ShareComputationTrees(num_layers=2)(train_dataset)
        loader = SharedTreeLoader(shared, batch_size=512, shuffle=True)
        print(loader.report())
        aggr = RootAggregation('sum')

        for batch in loader:
            with shared_batch(batch):
                h = gnn(batch.x, batch.edge_index)  # Two layers.
            loss = F.cross_entropy(head(aggr(h, batch)), batch.y)

    Args:
        num_layers (int): The number of message-passing layers :math:`L`.
        gcn_norm (bool, optional): If set to :obj:`True`, prepares trees for
            :class:`~torch_geometric.nn.conv.GCNConv`: the labels of nodes
            include their in-degrees, and mini-batches have self-loops and
            :obj:`edge_weight` (of the type of :obj:`x`, if that is floating
            point). Set :obj:`normalize=False` and :obj:`add_self_loops=False`
            in the layer, and call it with :obj:`batch.edge_weight`. Its
            outputs then equal those of the default layer on plain graphs. For
            plain graphs and the same model, use
            :class:`torch_geometric.transforms.GCNNorm`.
            (default: :obj:`False`)
        self_loops (str, optional): If :obj:`"keep"`, self-loops are part of
            trees, as convolutions need that treat them as any other edge. If
            :obj:`"remove"`, they are removed first, as convolutions need that
            replace them by their own
            (:class:`~torch_geometric.nn.conv.GATConv` and others with
            :obj:`add_self_loops=True`). :obj:`gcn_norm` implies
            :obj:`"remove"`. (default: :obj:`"keep"`)
        edge_attr (bool, optional): Whether :obj:`edge_attr`,
            :obj:`edge_weight` and :obj:`edge_type` are part of trees and of
            mini-batches. Set it to :obj:`False` if the model does not read
            them: more trees are equal without.
            (default: :obj:`not gcn_norm`)
        degree_labels (bool, optional): If set to :obj:`True`, graphs without
            :obj:`x` get the in-degree of each node as :obj:`x`
            (:obj:`torch.int64`, of shape :obj:`[num_nodes, 1]`), for an
            embedding. For one-hot features, use
            :class:`torch_geometric.transforms.OneHotDegree` instead.
            (default: :obj:`False`)
        discretizer (Discretize, optional): A transform that discretizes
            continuous features. It is fitted to the data set if it is not
            fitted yet. Sharing is exact for the discretized features.
            (default: :obj:`None`)
        distributed (bool, optional): If set to :obj:`True`, each rank of
            :mod:`torch.distributed` reads a part of the graphs, and all ranks
            return the whole result. (default: :obj:`False`)
        chunk_size (int, optional): The number of graphs to read at a time.
            (default: :obj:`4096`)

    Raises:
        ValueError: If an argument is out of its range.

    .. rubric:: Details

    Sharing is exact for convolutions that read one hop, aggregate a multiset
    of neighbors, and normalize by what the target node reads.
    :func:`~torch_geometric_ext.nn.check_exact` checks a model.

    Attributes of graphs (tensors of one row, numbers and strings) are kept.
    Other attributes of nodes and edges are left out, as trees merge them.

    The data set is read in chunks of :obj:`chunk_size` graphs. The result does
    not depend on the size of chunks, the number of threads or the number of
    ranks. :func:`~torch_geometric_ext.ops.computation_tree_ids` lists the
    cost. The result takes 12 bytes for each distinct tree, 8 bytes for each of
    its children (4 without edge attributes), and 8 bytes for each distinct
    tree of each graph.
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
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        name = self.__class__.__name__
        settings = tree_settings(
            name,
            num_layers,
            gcn_norm,
            self_loops,
            edge_attr,
            degree_labels,
            discretizer,
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
        self.self_loops = settings.self_loops
        self.edge_attr = settings.edge_attr
        self.degree_labels = degree_labels
        self.discretizer = discretizer
        self.distributed = distributed
        self.chunk_size = chunk_size

    def __call__(
        self,
        dataset: Any,
        known: Optional[SharedTrees] = None,
    ) -> SharedTrees:
        r"""Return the shared trees of a data set.

        Args:
            dataset (Dataset or Sequence): A data set of homogeneous graphs: in
                memory, on disk, a :class:`torch.utils.data.Subset` or a list.
                It is not changed. Split it first, or split the result with
                :meth:`~torch_geometric_ext.data.SharedTrees.index_select`.
            known (SharedTrees, optional): Trees that keep their ids. New trees
                get the ids behind them. The result holds the trees of both
                and the graphs of :obj:`dataset`. (default: :obj:`None`)

        Raises:
            TypeError: If :obj:`dataset` does not hold homogeneous graphs, or
                :obj:`known` is not of type
                :class:`~torch_geometric_ext.data.SharedTrees`.
            ValueError: If features are missing, continuous or not dense, keys
                or shapes of graphs differ, an attribute belongs to neither
                graphs, nodes nor edges, or :obj:`known` was made with other
                settings.
        """
        check_dataset(dataset, self.__class__.__name__)
        settings = TreeSettings(
            *(getattr(self, key) for key in TreeSettings._fields)
        )
        if known is not None:
            if not isinstance(known, SharedTrees):
                raise TypeError(
                    f"'known' needs to be 'SharedTrees' (got {type(known)})"
                )
            check_same_settings(known, settings, "'known'")
        out = share_graphs(
            dataset, settings, known, self.chunk_size, self.distributed
        )
        if known is None:
            self._warn_if_few_repeat(out)
        return out

    def _warn_if_few_repeat(self, shared: SharedTrees) -> None:
        ratio = shared.report().node_ratio
        if ratio < MIN_RATIO:
            warnings.warn(
                f'Trees of depth {self.num_layers} may save no time: this '
                f'data set has only {ratio:.1f} nodes for each distinct tree. '
                f"Check 'SharedTreeLoader(...).report()' at your batch size, "
                f'or use fewer layers, which share more',
                stacklevel=3,
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(num_layers={self.num_layers}, '
            f"gcn_norm={self.gcn_norm}, self_loops='{self.self_loops}', "
            f'edge_attr={self.edge_attr})'
        )
