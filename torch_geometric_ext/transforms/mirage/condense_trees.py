import time
from typing import Any, Dict, Iterable, NamedTuple, Tuple, Union

import torch
from torch_geometric.data import InMemoryDataset

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.atomic_save import file_bytes, tensor_bytes
from torch_geometric_ext.data.storage import to_tensors
from torch_geometric_ext.data.trees_to_graphs import trees_to_graphs
from torch_geometric_ext.transforms.mirage.budget import CondenseBudget
from torch_geometric_ext.transforms.mirage.class_labels import (
    ClassLabels,
    class_labels,
)
from torch_geometric_ext.transforms.mirage.frequent_patterns import (
    MiningSettings,
    frequent_patterns,
    resolve_support,
)
from torch_geometric_ext.transforms.mirage.report import (
    CondenseReport,
    report_classes,
)
from torch_geometric_ext.transforms.mirage.select_graphs import (
    herded_graphs,
    normalize_weights,
    random_order,
    reorder,
)

RESERVED_KEYS = ['root_mask', 'weight']  # Attributes of condensed graphs.

Condensed = Union[InMemoryDataset, SharedTrees]


class CondenseSettings(NamedTuple):
    """Settings that decide which trees are kept, and how they are stored."""

    budget: CondenseBudget
    selection: str
    mining: MiningSettings
    share: bool
    seed: int

    def check(self, name: str) -> None:
        """Raise an error if a value is out of its range."""
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


def condense_trees(
    shared: SharedTrees,
    settings: CondenseSettings,
    self_loops: bool,
) -> Tuple[Condensed, CondenseReport]:
    """Return a condensed data set and its report.

    Args:
        shared (SharedTrees): The data set.
        settings (CondenseSettings): The settings.
        self_loops (bool): Whether plain graphs can have self-loops.

    Raises:
        ValueError: If labels are not classes, graphs have attributes that are
            reserved for condensed graphs, a class has no frequent pattern, or
            the budget is too small.
    """

    def to_graphs(trees: SharedTrees) -> InMemoryDataset:
        return trees_to_graphs(trees, self_loops or trees.gcn_norm)

    start = time.perf_counter()
    for key in RESERVED_KEYS:
        if key in shared.graph_attrs:
            raise ValueError(
                f"'dataset' needs graphs without an attribute '{key}', a name "
                f"that 'MirageCondense' uses"
            )
    classes = class_labels(shared.graph_attrs.get('y'))
    for candidates in _candidates(shared, classes, settings):
        num_kept = settings.budget.num_kept(
            candidates,
            classes.value.numel(),
            shared.num_bytes,
            None if settings.share else to_graphs,
        )
        if num_kept < len(candidates):
            break
    selected = time.perf_counter()
    kept = candidates.index_select(torch.arange(num_kept))
    kept = normalize_weights(kept, classes)
    out = kept if settings.share else to_graphs(kept)
    seconds = {
        'selection': selected - start,
        'graphs': time.perf_counter() - selected,
    }
    state = condensed_dict(out)
    has_support = settings.selection == 'patterns'
    return out, CondenseReport(
        classes=report_classes(
            shared, candidates, num_kept, classes, has_support
        ),
        num_bytes=shared.num_bytes,
        num_condensed_bytes=tensor_bytes(state.get('attrs', state)),
        num_file_bytes=file_bytes(state),
        seconds=seconds,
    )


def condensed_dict(out: Condensed) -> Dict[str, Any]:
    """Return a condensed data set as a dictionary of tensors."""
    return out.to_dict() if isinstance(out, SharedTrees) else to_tensors(out)


def _candidates(
    shared: SharedTrees,
    classes: ClassLabels,
    settings: CondenseSettings,
) -> Iterable[SharedTrees]:
    """Return graphs in the order in which to keep them, first a short prefix
    if the order takes long to compute.
    """
    if settings.selection == 'patterns':
        support = resolve_support(settings.budget.min_support, classes)
        return [frequent_patterns(shared, classes, support, settings.mining)]
    generator = torch.Generator().manual_seed(settings.seed)
    candidates = reorder(shared, random_order(classes.group.cpu(), generator))
    if settings.selection == 'random':
        return [candidates]
    num_graphs = settings.budget.num_expected(
        candidates, shared.num_bytes, settings.share
    )
    return herded_graphs(shared, classes, num_graphs)
