from pathlib import Path
from typing import Any, Dict, Iterable, Tuple, Union

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.atomic_save import (
    FileKind,
    atomic_save,
    load_saved,
)
from torch_geometric_ext.data.digest import digest
from torch_geometric_ext.data.storage import from_tensors
from torch_geometric_ext.transforms.collated import Collated, read_chunks
from torch_geometric_ext.transforms.mirage.condense_trees import (
    Condensed,
    condensed_dict,
)
from torch_geometric_ext.transforms.mirage.report import (
    ClassReport,
    CondenseReport,
)

FILE = FileKind('Condensed', 1)


def cache_path(root: Union[str, Path], dataset: Any, settings: Any) -> Path:
    """Return the file in which the condensed data set is cached. To compute
    its name, all graphs are read once.
    """
    return Path(root) / f'mirage_{fingerprint(dataset, settings)}.pt'


def fingerprint(dataset: Any, *settings: Any) -> str:
    """Return a hash of the graphs of a data set, and of settings."""
    chunks: Iterable[Collated] = []
    if isinstance(dataset, SharedTrees):
        settings = (dataset.to_dict(), *settings)
    else:
        chunks = read_chunks(dataset)
    parts = ([{**x.attrs, **x.texts}, x.ptrs, x.node_ptr] for x in chunks)
    return digest(settings, parts)[:16]


def save_condensed(out: Condensed, report: CondenseReport, path: Path) -> None:
    """Save a condensed data set and its report to a file, which is replaced at
    once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_save(to_state(out, report), path, FILE)


def load_condensed(path: Path) -> Tuple[Condensed, CondenseReport]:
    """Load a file written by :func:`save_condensed`.

    Raises:
        ValueError: If the file is damaged, or of another kind.
    """
    return load_saved(path, FILE, from_state)


def to_state(out: Condensed, report: CondenseReport) -> Dict[str, Any]:
    """Return a condensed data set and its report as a dictionary."""
    state = report._asdict()
    state['classes'] = [tuple(row) for row in report.classes]
    return {'tensors': condensed_dict(out), 'report': state}


def from_state(state: Dict[str, Any]) -> Tuple[Condensed, CondenseReport]:
    """Return what :func:`to_state` was called with."""
    report, tensors = state['report'], state['tensors']
    report['classes'] = [ClassReport(*row) for row in report['classes']]
    if 'slices' in tensors:
        return from_tensors(**tensors), CondenseReport(**report)
    return SharedTrees.from_dict(tensors), CondenseReport(**report)
