from pathlib import Path
from typing import Any, Dict, Tuple, Union

import torch
from torch_geometric.data import InMemoryDataset

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.atomic_save import atomic_save
from torch_geometric_ext.data.trees_to_graphs import as_dataset
from torch_geometric_ext.transforms.mirage.fingerprint import fingerprint
from torch_geometric_ext.transforms.mirage.report import (
    ClassReport,
    CondenseReport,
)

Condensed = Union[InMemoryDataset, SharedTrees]


def cache_path(root: Union[str, Path], dataset: Any, settings: Any) -> Path:
    """Where what becomes of a data set is kept."""
    if isinstance(dataset, SharedTrees):
        key = fingerprint([], dataset._state(), settings)
    else:
        key = fingerprint(dataset, settings)
    return Path(root) / f'mirage_{key}.pt'


def save_condensed(out: Condensed, report: CondenseReport, path: Path) -> None:
    """Writes everything to a file, which is complete or not there."""
    state = report._asdict()
    state['classes'] = [tuple(row) for row in report.classes]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_save({'tensors': tensors_of(out), 'report': state}, path)


def load_condensed(path: Path) -> Tuple[Condensed, CondenseReport]:
    """Reads what :func:`save_condensed` has written."""
    state = torch.load(path, weights_only=True)
    report, tensors = state['report'], state['tensors']
    report['classes'] = [ClassReport(*row) for row in report['classes']]
    if 'slices' in tensors:
        return as_dataset(**tensors), CondenseReport(**report)
    return SharedTrees._from_state(tensors), CondenseReport(**report)


def tensors_of(out: Condensed) -> Dict[str, Any]:
    """What a condensed data set consists of."""
    if isinstance(out, SharedTrees):
        return out._state()
    return {'attrs': out._data.to_dict(), 'slices': out.slices}
