import warnings
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from torch_geometric.data import InMemoryDataset

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.atomic_save import file_bytes
from torch_geometric_ext.data.shared_trees import num_bytes
from torch_geometric_ext.data.trees_to_graphs import unshare_graphs
from torch_geometric_ext.transforms.discretize import Discretize
from torch_geometric_ext.transforms.mirage.budget import CondenseBudget
from torch_geometric_ext.transforms.mirage.cache import (
    Condensed,
    cache_path,
    load_condensed,
    save_condensed,
    tensors_of,
)
from torch_geometric_ext.transforms.mirage.class_labels import (
    ClassLabels,
    class_labels,
)
from torch_geometric_ext.transforms.mirage.frequent_patterns import (
    MiningSettings,
    Support,
    frequent_patterns,
    resolve_support,
)
from torch_geometric_ext.transforms.mirage.report import (
    Clock,
    CondenseReport,
    report_classes,
)
from torch_geometric_ext.transforms.mirage.select_graphs import (
    herding_order,
    normalize_weights,
    random_order,
    reorder,
)
from torch_geometric_ext.transforms.share_computation_trees import (
    ShareComputationTrees,
    check_dataset,
)

NUM_SAMPLES = 1024  # Graphs of each class, at first.
RESERVED_KEYS = ['root_mask', 'weight']


class MirageCondense:
    r"""Distils a data set of graphs to a small one, of the computation trees
    that represent each class, without training anything.

    What :math:`L` layers of message passing make of a graph depends on the
    multiset of its computation trees of depth :math:`L` only (see
    :class:`~torch_geometric_ext.transforms.ShareComputationTrees`). A
    condensed graph holds each of its trees once, as a root, and how often it
    counts.

    .. code-block:: python

        condense = MirageCondense(num_layers=2, ratio=0.05)
        small = condense(train_dataset)
        print(condense.report())
        loader = DataLoader(small, batch_size=128, shuffle=True)
        aggr = RootAggregation('sum')

        for batch in loader:
            h = gnn(batch.x, batch.edge_index)  # Two layers.
            loss = F.cross_entropy(head(aggr(h, batch)), batch.y)

    The embedding that any message-passing network of up to :math:`L` layers
    gives a root is the one it gives that node of the original graph. Models
    with :class:`~torch_geometric_ext.nn.RootAggregation` train on condensed
    graphs and predict plain ones.

    What is kept is chosen by :obj:`selection`:

    * :obj:`"herding"`: graphs of each class whose mean numbers of trees (on a
      logarithmic scale, of all depths up to :math:`L`) are those of the whole
      class. Numbers, sizes and labels of trees stay those of real graphs.
    * :obj:`"random"`: graphs of each class at random, to compare.
    * :obj:`"patterns"`: sets of trees that occur together in many graphs of a
      class, each set as one graph with nothing but :obj:`y`, as in the
      `"Mirage: Model-Agnostic Graph Distillation for Graph Classification"
      <https://arxiv.org/abs/2310.09486>`_ paper.

    Each condensed graph has a :obj:`weight`, in proportion to the support of
    its pattern (equal for graphs); weights of a class sum to its share of the
    data set. To draw graphs in proportion to it, use
    :obj:`WeightedRandomSampler(small.weight, num_samples)` (or
    :obj:`small.graph_attrs["weight"]`, if :obj:`share` is set); to weigh the
    loss, multiply that of each graph by :obj:`batch.weight * len(small)`.

    A budget keeps the longest prefix of one order of graphs, in which classes
    take turns as long as they last: a larger budget adds graphs to those of a
    smaller one, and the result never exceeds it. The data set may also be
    given as :class:`~torch_geometric_ext.data.SharedTrees`, so that several
    budgets, or ranks, share the work of finding trees.

    .. note::
        Differs from the paper: sets of trees, as mined there, forget how often
        a tree occurs and how large a graph is, and an untrained network
        separates classes better than one trained on them (see the
        benchmarks). The default therefore keeps multisets of real graphs.
        Patterns that are frequent in several classes are kept unless
        :obj:`exclusive` is set, and trees of a pattern share equal subtrees.

    .. note::
        Plain batch normalization sees each node of a condensed graph once,
        however often it counts. With :obj:`share`,
        :class:`~torch_geometric_ext.nn.TreeBatchNorm` counts.

    Takes the time of finding trees, and :math:`O(Z)` for each thousand graphs
    of :math:`Z` distinct trees in all (:obj:`"herding"`). Memory stays in
    proportion to the shared trees.

    Args:
        num_layers (int): The number of message-passing layers :math:`L`.
        min_support (float, int or dict, optional): Keeps every pattern of at
            least this share (float) or number (int) of graphs of its class,
            for all or for each class. Needs :obj:`selection="patterns"`.
            Exactly one of this and the three budgets is given.
            (default: :obj:`None`)
        num_bytes (int, optional): The largest number of bytes of the tensors
            of the result. (default: :obj:`None`)
        num_graphs (int, optional): The largest number of condensed graphs.
            (default: :obj:`None`)
        ratio (float, optional): The largest share of the bytes of the tensors
            of the data set, all of its attributes included.
            (default: :obj:`None`)
        gcn_norm (bool, optional): If set to :obj:`True`, trees tell the
            degrees of their leaves, and condensed graphs carry self-loops and
            :obj:`edge_weight`, with which
            :class:`~torch_geometric.nn.conv.GCNConv` with
            :obj:`normalize=False` and :obj:`add_self_loops=False` gives what
            it gives by default on plain graphs. (default: :obj:`False`)
        selection (str, optional): :obj:`"herding"`, :obj:`"random"` or
            :obj:`"patterns"`. (default: :obj:`"herding"`)
        closed (bool, optional): If set to :obj:`True`, leaves out patterns
            that a larger one of the same support contains.
            (default: :obj:`False`)
        exclusive (bool, optional): If set to :obj:`True`, leaves out patterns
            that are mined in several classes. (default: :obj:`False`)
        max_patterns (int, optional): The largest number of patterns to mine
            for each class. (default: :obj:`10000`)
        share (bool, optional): If set to :obj:`True`, returns
            :class:`~torch_geometric_ext.data.SharedTrees`, in which graphs
            share their trees: several times more graphs fit into the same
            bytes, and :class:`~torch_geometric_ext.loader.SharedTreeLoader`
            trains on them faster. (default: :obj:`False`)
        self_loops (str, optional): See
            :class:`~torch_geometric_ext.transforms.ShareComputationTrees`.
            With :obj:`"keep"`, condensed graphs have a self-loop wherever a
            node and its neighbor have the same tree. With :obj:`"remove"`,
            they have none (and some more nodes), as convolutions that replace
            self-loops by their own need it. (default: :obj:`"keep"`)
        edge_attr (bool, optional): Likewise.
            (default: whether :obj:`gcn_norm` is not set)
        degree_labels (bool, optional): Likewise. (default: :obj:`False`)
        discretizer (Discretize, optional): Likewise. (default: :obj:`None`)
        seed (int, optional): The seed of the random selection.
            (default: :obj:`0`)
        log (bool, optional): Whether to show a progress bar.
            (default: :obj:`False`)

    Raises:
        ValueError: If an argument is out of its range, or not exactly one of
            support and budgets is given.

    .. code-block:: python

        >>> from torch_geometric.data import Data
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> graph = Data(x=torch.ones(3, 1), edge_index=path, y=0)
        >>> small = MirageCondense(num_layers=2, num_graphs=1)(10 * [graph])
        >>> small[0].root_count  # The ends share a tree.
        tensor([2, 1])
    """

    def __init__(
        self,
        num_layers: int,
        *,
        min_support: Optional[Support] = None,
        num_bytes: Optional[int] = None,
        num_graphs: Optional[int] = None,
        ratio: Optional[float] = None,
        gcn_norm: bool = False,
        selection: str = 'herding',
        closed: bool = False,
        exclusive: bool = False,
        max_patterns: int = 10_000,
        share: bool = False,
        self_loops: str = 'keep',
        edge_attr: Optional[bool] = None,
        degree_labels: bool = False,
        discretizer: Optional[Discretize] = None,
        seed: int = 0,
        log: bool = False,
    ) -> None:
        self._share_trees = ShareComputationTrees(
            num_layers,
            gcn_norm,
            self_loops=self_loops,
            edge_attr=edge_attr,
            degree_labels=degree_labels,
            discretizer=discretizer,
        )
        self.num_layers = num_layers
        self.budget = CondenseBudget(min_support, num_bytes, num_graphs, ratio)
        self.gcn_norm = gcn_norm
        self.selection = selection
        self.mining = MiningSettings(closed, exclusive, max_patterns)
        self.share = share
        self.discretizer = discretizer
        self.seed = seed
        self.log = log
        self._report: Optional[CondenseReport] = None
        self._check()

    def __call__(
        self,
        dataset: Any,
        root: Optional[Union[str, Path]] = None,
        force_reload: bool = False,
    ) -> Condensed:
        r"""Returns the condensed data set.

        Args:
            dataset (Dataset, Sequence or SharedTrees): The graphs to train on,
                with one class each as :obj:`y`. They stay as they are.
            root (str or Path, optional): A folder in which to keep the result.
                It is read from there if data set and settings are the same
                (to tell, all graphs are read once). (default: :obj:`None`)
            force_reload (bool, optional): Whether to condense again in any
                case. (default: :obj:`False`)

        Raises:
            TypeError: If :obj:`dataset` does not hold homogeneous graphs.
            ValueError: If labels are not classes, features are missing or
                continuous, keys of graphs differ, a class has no frequent
                pattern, or the budget is too small for one graph of each
                class.
        """
        check_dataset(dataset, self.__class__.__name__)
        if root is None:
            return self._condense(dataset)
        path = cache_path(root, dataset, self._settings(dataset))
        if path.exists() and not force_reload:
            try:
                out, self._report = load_condensed(path)
                return out
            except Exception as error:  # Whatever an unusable file leads to.
                warnings.warn(
                    f"'{path}' is not usable and is written again ({error})",
                    stacklevel=2,
                )
        out = self._condense(dataset)
        save_condensed(out, self.report(), path)
        return out

    def report(self) -> CondenseReport:
        r"""Returns what the last call has done: numbers of graphs, trees and
        patterns of each class, bytes, and seconds.

        Raises:
            RuntimeError: If nothing has been condensed yet.
        """
        if self._report is None:
            raise RuntimeError(
                f"'{self.__class__.__name__}' has nothing to report yet (call "
                f'it with a data set first)'
            )
        return self._report

    def _condense(self, dataset: Any) -> Condensed:
        clock = Clock()
        shared = dataset
        if isinstance(dataset, SharedTrees):
            self._check_shared(dataset)
        else:
            shared = self._share_trees._find(dataset, log=self.log)
        classes = class_labels(shared.graph_attrs.get('y'))
        _check_keys(shared)
        clock.stop('trees')
        candidates, num_kept = self._select(shared, classes)
        clock.stop('selection')
        chosen = candidates.index_select(torch.arange(num_kept))
        chosen = normalize_weights(chosen, classes)
        out = chosen if self.share else self._unshare(chosen)
        clock.stop('graphs')
        tensors = tensors_of(out)
        has_support = self.selection == 'patterns'
        self._report = CondenseReport(
            report_classes(shared, candidates, num_kept, classes, has_support),
            shared.num_bytes,
            num_bytes(tensors.get('attrs', tensors)),
            file_bytes(tensors),
            clock.seconds,
        )
        return out

    def _select(
        self,
        shared: SharedTrees,
        classes: ClassLabels,
    ) -> Tuple[SharedTrees, int]:
        """What may be kept, in the order in which it is, and how much is."""
        if self.selection == 'patterns':
            support = resolve_support(self.budget.min_support, classes)
            out = frequent_patterns(shared, classes, support, self.mining)
            return out, self._num_kept(out, classes, shared.num_bytes)
        if self.selection == 'random':
            generator = torch.Generator().manual_seed(self.seed)
            order = random_order(classes.group.cpu(), generator)
            out = reorder(shared, order)
            return out, self._num_kept(out, classes, shared.num_bytes)
        # Herding takes its time for each graph, and most budgets are small:
        num_samples = self.budget.num_graphs or NUM_SAMPLES
        while True:
            order = herding_order(shared, classes.group, num_samples)
            out = reorder(shared, order)
            num_kept = self._num_kept(out, classes, shared.num_bytes)
            if (
                num_kept < len(out)
                or self.budget.num_graphs is not None
                or num_samples >= int(classes.size.max())
            ):
                return out, num_kept
            num_samples *= 8

    def _num_kept(
        self,
        candidates: SharedTrees,
        classes: ClassLabels,
        total_bytes: int,
    ) -> int:
        unshare = None if self.share else self._unshare
        num_classes = classes.value.numel()
        return self.budget.num_kept(
            candidates, num_classes, total_bytes, unshare
        )

    def _unshare(self, shared: SharedTrees) -> InMemoryDataset:
        keep = self.gcn_norm or self._share_trees.self_loops == 'keep'
        return unshare_graphs(shared, self_loops=keep)

    def _settings(self, dataset: Any) -> Dict[str, Any]:
        """All that the result depends on, other than the data set."""
        out = {**vars(self._share_trees), **vars(self)}
        for key in ['chunk_size', 'log', '_report', '_share_trees']:
            del out[key]
        if self.discretizer is not None:
            if not (self.discretizer.fitted or type(dataset) is SharedTrees):
                self.discretizer.fit(dataset)
            state = self.discretizer.state_dict()
            out['discretizer'] = [repr(self.discretizer), state]
        return out

    def _check(self) -> None:
        name = self.__class__.__name__
        self.budget.check(name)
        if self.selection not in ['herding', 'random', 'patterns']:
            raise ValueError(
                f"'selection' of '{name}' needs to be 'herding', 'random' or "
                f"'patterns' (got '{self.selection}')"
            )
        self.mining.check(name)
        if self.selection != 'patterns' and (
            self.budget.min_support is not None
            or self.mining.closed
            or self.mining.exclusive
        ):
            raise ValueError(
                f"'min_support', 'closed' and 'exclusive' of '{name}' need "
                f"selection='patterns' (got '{self.selection}')"
            )

    def _check_shared(self, shared: SharedTrees) -> None:
        name = f"'dataset' of '{self.__class__.__name__}'"
        self._share_trees._check_depth(shared, name)
        for key, value, found in [
            ('self_loops', 'remove', shared.has_self_loops),
            ('edge_attr', False, len(shared.edge_attrs) > 0),
        ]:
            if found and getattr(self._share_trees, key) == value:
                raise ValueError(
                    f'{name} needs to be made with {key}={value!r}'
                )

    def __repr__(self) -> str:
        args = [f'num_layers={self.num_layers}']
        args += [
            f'{key}={value}' for key, value in self.budget.given().items()
        ]
        args += [f"selection='{self.selection}'", f'share={self.share}']
        return f'{self.__class__.__name__}({", ".join(args)})'


def _check_keys(shared: SharedTrees) -> None:
    for key in RESERVED_KEYS:
        if key in shared.graph_attrs:
            raise ValueError(
                f"'dataset' needs graphs without an attribute '{key}', which "
                f'condensed graphs have'
            )
