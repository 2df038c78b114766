import time
import warnings
from pathlib import Path
from typing import Any, Dict, Optional, Union

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.transforms.collated import CHUNK_SIZE, check_dataset
from torch_geometric_ext.transforms.discretize import Discretize
from torch_geometric_ext.transforms.mirage.budget import CondenseBudget
from torch_geometric_ext.transforms.mirage.cache import (
    cache_path,
    from_state,
    load_condensed,
    save_condensed,
    to_state,
)
from torch_geometric_ext.transforms.mirage.condense_trees import (
    Condensed,
    CondenseSettings,
    condense_trees,
)
from torch_geometric_ext.transforms.mirage.frequent_patterns import (
    MiningSettings,
    Support,
)
from torch_geometric_ext.transforms.mirage.ranks import (
    check_initialized,
    check_same_on_ranks,
    from_first_rank,
    outline,
)
from torch_geometric_ext.transforms.mirage.report import CondenseReport
from torch_geometric_ext.transforms.share_graphs import share_graphs
from torch_geometric_ext.transforms.tree_settings import (
    check_same_settings,
    tree_settings,
)
from torch_geometric_ext.version import __version__


class MirageCondense:
    r"""Distill a data set of graphs to a few graphs whose computation trees
    represent each class, without training a model.

    :math:`L` layers of message passing embed a graph by the multiset of its
    computation trees of depth :math:`L` (see
    :class:`~torch_geometric_ext.transforms.ShareComputationTrees`). A
    condensed graph stores each of its distinct trees once, as a root node with
    a count.

    .. code-block:: python

        condense = MirageCondense(num_layers=2, ratio=0.05)
        small = condense(train_dataset)
        print(condense.report())
        loader = DataLoader(small, batch_size=128, shuffle=True)
        aggr = RootAggregation('sum')

        for batch in loader:
            h = gnn(batch.x, batch.edge_index)  # Two layers.
            loss = F.cross_entropy(head(aggr(h, batch)), batch.y)

    A message-passing model of up to :math:`L` layers embeds a root as it
    embeds that node of the original graph. Models with
    :class:`~torch_geometric_ext.nn.RootAggregation` train on condensed graphs
    and predict plain graphs.

    Args:
        num_layers (int): The number of message-passing layers :math:`L`.
        min_support (float, int or dict, optional): The lowest support of
            patterns to keep, as a fraction (float) or a number (int) of the
            graphs of a class, for all classes or for each. Needs
            :obj:`selection="patterns"`. Set either this argument or one of the
            three budgets. (default: :obj:`None`)
        num_bytes (int, optional): The largest number of bytes of the tensors
            of the result. (default: :obj:`None`)
        num_graphs (int, optional): The largest number of condensed graphs.
            (default: :obj:`None`)
        ratio (float, optional): The largest ratio of the bytes of the tensors
            of the result to those of the data set, with all its attributes.
            (default: :obj:`None`)
        gcn_norm (bool, optional): See
            :class:`~torch_geometric_ext.transforms.ShareComputationTrees`.
            Condensed graphs have self-loops and :obj:`edge_weight`.
            (default: :obj:`False`)
        selection (str, optional): :obj:`"herding"`, :obj:`"random"` or
            :obj:`"patterns"`. (default: :obj:`"herding"`)
        closed (bool, optional): If set to :obj:`True`, drops patterns that are
            part of a larger pattern of the same support.
            (default: :obj:`False`)
        exclusive (bool, optional): If set to :obj:`True`, drops patterns that
            several classes have. (default: :obj:`False`)
        max_patterns (int, optional): The largest number of patterns to mine
            for each class. (default: :obj:`10000`)
        share (bool, optional): If set to :obj:`True`, returns
            :class:`~torch_geometric_ext.data.SharedTrees`, which store equal
            trees of several graphs once: more graphs fit into the same bytes,
            and :class:`~torch_geometric_ext.loader.SharedTreeLoader` trains
            on them faster. (default: :obj:`False`)
        self_loops (str, optional): See
            :class:`~torch_geometric_ext.transforms.ShareComputationTrees`.
            With :obj:`"keep"`, condensed graphs have a self-loop wherever a
            node and its neighbor have the same tree. With :obj:`"remove"`,
            they have copies of such nodes instead, as convolutions need that
            replace self-loops by their own. (default: :obj:`"keep"`)
        edge_attr (bool, optional): See
            :class:`~torch_geometric_ext.transforms.ShareComputationTrees`.
            (default: :obj:`not gcn_norm`)
        degree_labels (bool, optional): See
            :class:`~torch_geometric_ext.transforms.ShareComputationTrees`.
            (default: :obj:`False`)
        discretizer (Discretize, optional): See
            :class:`~torch_geometric_ext.transforms.ShareComputationTrees`.
            (default: :obj:`None`)
        seed (int, optional): The seed of the random selection.
            (default: :obj:`0`)
        log (bool, optional): Whether to show a progress bar.
            (default: :obj:`False`)
        distributed (bool, optional): If set to :obj:`True`, each rank of
            :mod:`torch.distributed` finds the trees of a part of the graphs,
            the first rank selects, and all ranks return the result of a single
            process. All ranks need the same graphs. (default: :obj:`False`)

    Raises:
        ValueError: If an argument is out of its range, not exactly one of
            support and budgets is set, or :obj:`distributed` is set without a
            process group.

    .. code-block:: python

        >>> import torch
        >>> from torch_geometric.data import Data
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> graph = Data(x=torch.ones(3, 1), edge_index=path, y=0)
        >>> small = MirageCondense(num_layers=2, num_graphs=1)(10 * [graph])
        >>> small[0].root_count  # The two ends have equal trees.
        tensor([2, 1])

    .. rubric:: Details

    :obj:`selection` decides which graphs are kept:

    * :obj:`"herding"`: graphs of each class whose mean logarithmic counts of
      trees, of all depths up to :math:`L`, approximate those of the class.
    * :obj:`"random"`: random graphs of each class, as a baseline.
    * :obj:`"patterns"`: frequent sets of trees of each class. Each set becomes
      a graph with the label :obj:`y` and no other attribute, as in the
      `"Mirage: Model-Agnostic Graph Distillation for Graph Classification"
      <https://arxiv.org/abs/2310.09486>`_ paper.

    Each condensed graph has a :obj:`weight`, in proportion to the support of
    its pattern (equal for real graphs). The weights of a class sum to the
    fraction of its graphs in the data set. To sample graphs by weight, use
    :obj:`WeightedRandomSampler(small.weight, num_samples)`, with
    :obj:`small.graph_attrs["weight"]` if :obj:`share` is set. To weight the
    loss instead, multiply the loss of each graph by
    :obj:`batch.weight * len(small)`.

    A budget keeps the longest prefix of an order of graphs in which classes
    take turns. The result never exceeds the budget, and a larger budget adds
    graphs to those of a smaller one. Pass
    :class:`~torch_geometric_ext.data.SharedTrees` as the data set to find
    trees once for several budgets or ranks. Finding trees and, for
    :obj:`"herding"`, comparing some hundred graphs for each one kept take most
    of the time. Memory is linear.

    .. note::
        Deviations from the paper: its patterns are sets, which lose the counts
        of trees and the sizes of graphs. In the benchmarks, an untrained model
        separates classes better than a model trained on patterns. The default
        therefore keeps multisets of trees of real graphs. Patterns that are
        frequent in several classes are kept unless :obj:`exclusive` is set.
        The trees of a pattern share equal subtrees.

    .. note::
        Batch normalization counts each node of a condensed graph once,
        whatever its count. With :obj:`share`, use
        :class:`~torch_geometric_ext.nn.TreeBatchNorm`, which is exact, and
        check the model with :func:`~torch_geometric_ext.nn.check_exact`.
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
        distributed: bool = False,
    ) -> None:
        self._tree_settings = tree_settings(
            self.__class__.__name__,
            num_layers,
            gcn_norm,
            self_loops,
            edge_attr,
            degree_labels,
            discretizer,
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
        self.distributed = distributed
        self._report: Optional[CondenseReport] = None
        self._seconds = 0.0  # To find trees.
        if distributed:
            check_initialized(self.__class__.__name__)
        self._settings().check(self.__class__.__name__)

    def __call__(
        self,
        dataset: Any,
        root: Optional[Union[str, Path]] = None,
        force_reload: bool = False,
    ) -> Condensed:
        r"""Return the condensed data set.

        Args:
            dataset (Dataset, Sequence or SharedTrees): The training graphs,
                with one class each as :obj:`y`. They are not changed.
            root (str or Path, optional): A folder to cache the result in. The
                next call loads it if the data set, the settings and the
                version of this package are the same. To check this, all
                graphs are read once. If the file is damaged, warns and
                condenses again. (default: :obj:`None`)
            force_reload (bool, optional): Whether to condense again and
                replace the cached result. (default: :obj:`False`)

        Raises:
            TypeError: If :obj:`dataset` does not hold homogeneous graphs.
            ValueError: If labels are not classes, features are missing or
                continuous, keys of graphs differ, a class has no frequent
                pattern, the budget is too small for one graph of each class,
                or the data set or a setting differs between ranks.
        """
        check_dataset(dataset, self.__class__.__name__)
        if self.distributed:
            return self._condense_with_ranks(dataset, root, force_reload)
        if root is None:
            return self._condense(self._share(dataset))
        path = cache_path(root, dataset, self._cache_key(dataset))
        out = None if force_reload else self._load(path)
        if out is None:
            out = self._condense(self._share(dataset))
            save_condensed(out, self.report(), path)
        return out

    def report(self) -> CondenseReport:
        r"""Return a report of the last call: the numbers of graphs, trees and
        patterns of each class, bytes, and seconds.

        Raises:
            RuntimeError: If there was no call yet.
        """
        if self._report is None:
            raise RuntimeError(
                f"'{self.__class__.__name__}' has nothing to report yet (call "
                f'it with a data set first)'
            )
        return self._report

    def _condense_with_ranks(
        self,
        dataset: Any,
        root: Optional[Union[str, Path]],
        force_reload: bool,
    ) -> Condensed:
        """Find trees on all ranks, and select and cache on the first one."""
        key = self._cache_key(dataset)
        values = {**outline(dataset), **key, 'force_reload': force_reload}
        check_same_on_ranks(values, self.__class__.__name__)

        def load() -> Optional[Dict[str, Any]]:
            if root is None or force_reload:
                return None
            out = self._load(cache_path(root, dataset, key))
            return None if out is None else to_state(out, self.report())

        def condense() -> Dict[str, Any]:
            out = self._condense(shared)
            if root is not None:
                path = cache_path(root, dataset, key)
                save_condensed(out, self.report(), path)
            return to_state(out, self.report())

        state = from_first_rank(load)
        if state is None:
            shared = self._share(dataset)
            state = from_first_rank(condense)
        out, self._report = from_state(state)
        return out

    def _load(self, path: Path) -> Optional[Condensed]:
        """Return a cached result, or `None` if it is missing or broken."""
        if not path.exists():
            return None
        try:
            out, self._report = load_condensed(path)
        except ValueError as error:
            warnings.warn(
                f"The cached file '{path}' is broken and is written again "
                f'({error})',
                stacklevel=3,
            )
            return None
        return out

    def _share(self, dataset: Any) -> SharedTrees:
        start = time.perf_counter()
        if isinstance(dataset, SharedTrees):
            self._check_shared(dataset)
        else:
            ranks, settings = self.distributed, self._tree_settings
            options = (None, CHUNK_SIZE, ranks, self.log)
            dataset = share_graphs(dataset, settings, *options)
        self._seconds = time.perf_counter() - start
        return dataset

    def _condense(self, shared: SharedTrees) -> Condensed:
        self_loops = self._tree_settings.self_loops == 'keep'
        out, report = condense_trees(shared, self._settings(), self_loops)
        self._report = report._replace(
            seconds={'trees': self._seconds, **report.seconds}
        )
        return out

    def _settings(self) -> CondenseSettings:
        return CondenseSettings(
            self.budget, self.selection, self.mining, self.share, self.seed
        )

    def _cache_key(self, dataset: Any) -> Dict[str, Any]:
        """Return the version of the package, and all settings on which the
        result depends, among them those of the fitted discretizer.
        """
        trees, budget, mining = self._tree_settings, self.budget, self.mining
        discretizer = None
        if self.discretizer is not None:
            if not (self.discretizer.fitted or type(dataset) is SharedTrees):
                self.discretizer.fit(dataset)
            state = self.discretizer.state_dict()
            discretizer = [repr(self.discretizer), state]
        return {
            'version': __version__,
            'num_layers': trees.num_layers,
            'gcn_norm': trees.gcn_norm,
            'self_loops': trees.self_loops,
            'edge_attr': trees.edge_attr,
            'degree_labels': trees.degree_labels,
            'discretizer': discretizer,
            'min_support': budget.min_support,
            'num_bytes': budget.num_bytes,
            'num_graphs': budget.num_graphs,
            'ratio': budget.ratio,
            'selection': self.selection,
            'closed': mining.closed,
            'exclusive': mining.exclusive,
            'max_patterns': mining.max_patterns,
            'share': self.share,
            'seed': self.seed,
        }

    def _check_shared(self, shared: SharedTrees) -> None:
        name = f"'dataset' of '{self.__class__.__name__}'"
        check_same_settings(shared, self._tree_settings, name)
        for key, value, found in [
            ('self_loops', 'remove', shared.has_self_loops),
            ('edge_attr', False, len(shared.edge_attrs) > 0),
        ]:
            if found and getattr(self._tree_settings, key) == value:
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
