"""Track the level of shared computation trees that rows of tensors hold."""

import itertools
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

MISMATCH = (RuntimeError, IndexError, ValueError)
METADATA = (int, torch.dtype, torch.device, torch.layout, type(None))

# Functions of which one operand may have other rows:
PRODUCTS = {
    F.linear,
    torch.matmul,
    torch.mm,
    torch.addmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
}
# Frequent functions that return no tensors:
SIZES = {Tensor.size, Tensor.dim, Tensor.shape.__get__}  # type: ignore


class TreeLevels:
    r"""The rows of each level in a mini-batch of shared trees.

    Rows of the highest level come first. A tensor holds either the trees of
    one level or, like :obj:`batch.x`, the trees of all levels.

    Args:
        batch (SharedTreeBatch): The mini-batch.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        sizes, num_edges = batch.num_sampled_nodes, batch.num_sampled_edges
        self.num_layers = len(sizes) - 1
        self._sizes = sizes[::-1]
        self._num_edges = num_edges[::-1]
        # Compiled models read the sizes of tensors as symbols, and integers as
        # constants.
        ends = itertools.accumulate(sizes)
        own = zip(batch.own.split(sizes), ends)
        self._own = [x - end for x, end in own][::-1]
        self._edges = batch.edge_index.split(num_edges, dim=1)[::-1]
        self._counts: Dict[int, Tensor] = {}

    @property
    def num_rows(self) -> int:
        """The number of trees of all levels."""
        return self.batch.own.size(0) if is_compiling() else sum(self._sizes)

    def size(self, level: int) -> int:
        """Return the number of trees of a level."""
        if is_compiling():
            return self._own[level].size(0)
        return self._sizes[level]

    def start(self, level: int) -> int:
        """Return the first row of a level in tensors of all levels."""
        return sum(map(self.size, range(level + 1, self.num_layers + 1)))

    def num_edges(self, level: int) -> int:
        """Return the number of edges that end at a level."""
        if is_compiling():
            return self._edges[level - 1].size(1)
        return self._num_edges[level - 1]

    def edges(self, level: int) -> slice:
        """Return the edges that end at a level."""
        start = sum(map(self.num_edges, range(level + 1, self.num_layers + 1)))
        return slice(start, start + self.num_edges(level))

    def edge_index(self, level: int) -> Tensor:
        """Return the edges that end at a level, numbered from its first
        tree.
        """
        return self._edges[level - 1] - self.start(level)

    def cut_edges(self, x: Tensor, level: int) -> Tensor:
        """Return the rows of the edges that end at a level."""
        edges = self.edges(level)
        return x.narrow(0, edges.start, self.num_edges(level))

    def own(self, level: int) -> Tensor:
        """Return the row, in the level below, of each tree truncated by one
        hop.
        """
        return self._own[level]

    def count(self, level: int) -> Tensor:
        """Return how often each tree of a level occurs in the mini-batch."""
        if level not in self._counts:
            self._counts[level] = self._count(level)
        return self._counts[level]

    def _count(self, level: int) -> Tensor:
        batch = self.batch
        if level == self.num_layers:
            out = batch.own.new_zeros(self.size(level))
            return out.index_add_(0, batch.root, batch.root_count)
        out = batch.own.new_zeros(self.size(level))
        return out.index_add_(0, self.own(level + 1), self.count(level + 1))

    def cut(self, x: Tensor, level: int) -> Tensor:
        """Return the rows of a level in a tensor of all levels."""
        return x.narrow(0, self.start(level), self.size(level))

    def lift(self, x: Tensor, level: int, to: int) -> Tensor:
        """Repeat the rows of a level for the trees of a higher level."""
        if level == to:
            return x
        index = self.own(to)
        for between in range(to - 1, level, -1):
            index = self.own(between)[index]
        return x[index]

    def expand(self, x: Tensor, level: int) -> Tensor:
        """Repeat the rows of a level for all higher levels.

        Lower levels are zero: no later layer reads them for a root.
        """
        parts = [x]
        for above in range(level + 1, self.num_layers + 1):
            parts.append(parts[-1][self.own(above)])
        below = self.num_rows - sum(part.size(0) for part in parts)
        return torch.cat([*parts[::-1], x.new_zeros(below, *x.shape[1:])])


class Rows(NamedTuple):
    """The trees that the rows of a tensor stand for.

    Args:
        levels (TreeLevels): The mini-batch.
        level (int): The depth of the trees. In a tensor of all levels, rows
            of lower levels may be wrong.
        all_levels (bool): Whether there is a row for the trees of all levels.
    """

    levels: TreeLevels
    level: int
    all_levels: bool

    def __reduce__(self) -> Any:
        """Leave the mini-batch out of copies and files of tensors."""
        return set, ()  # Of a type that `torch.load` accepts.

    @property
    def size(self) -> int:
        """The number of rows."""
        if self.all_levels:
            return self.levels.num_rows
        return self.levels.size(self.level)

    def move(self, x: Tensor, to: 'Rows') -> Tensor:
        """Return the rows of a tensor that other rows ask for."""
        if self == to:
            return x
        if to.all_levels:
            if self.all_levels:
                return x
            return self.levels.expand(x, self.level)
        if self.all_levels:
            return self.levels.cut(x, to.level)
        return self.levels.lift(x, self.level, to.level)


# The trees that rows of tensors stand for, as far as they are known. Compiled
# models keep them in attributes, since they trace no weak references.
_known_rows = WeakTensorKeyDictionary()


def rows_of(x: Any) -> Optional[Rows]:
    """Return the trees that the rows of a tensor are known to stand for."""
    if not isinstance(x, Tensor):
        return None
    rows = None if is_compiling() else _known_rows.get(x)
    if rows is None:
        rows = getattr(x, 'tree_rows', None)
    return rows if isinstance(rows, Rows) else None


def mark_rows(x: Any, rows: Rows) -> Any:
    """Record the trees that rows stand for, in each tensor of an output."""
    for item in _tensors([x]):
        if item.dim() > 0 and item.size(0) == rows.size:
            if is_compiling():
                item.tree_rows = rows  # type: ignore[attr-defined]
            else:
                _known_rows[item] = rows
    return x


class TrackRows(TorchFunctionMode):
    r"""Compute operations between layers on the rows of one level.

    Outputs of row-wise operations inherit the level of their inputs. If
    inputs differ (as in residual connections and jumping knowledge), lower
    levels are repeated for the trees of the highest one, and tensors of all
    levels are cut.

    Args:
        levels (TreeLevels): The mini-batch.
    """

    def __init__(self, levels: TreeLevels) -> None:
        super().__init__()
        self.levels = levels
        self.paused = False  # Within a layer.
        self.reads_edges = False
        self._edge_index = levels.batch.edge_index

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Run operations without tracking for a while."""
        paused, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = paused

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused or func in SIZES:
            return func(*args, **kwargs)
        found = []
        for x in _tensors([args, kwargs]):
            rows = rows_of(x)
            if rows is not None and rows.levels is self.levels:
                found.append(rows)
            elif x is self._edge_index:
                out = func(*args, **kwargs)
                self.reads_edges |= not _is_metadata(out)
                return out
        if not found:
            return func(*args, **kwargs)
        level = max(rows.level for rows in found)
        rows = Rows(self.levels, level, all(row.all_levels for row in found))
        if _is_inplace(func) and isinstance(args[0], Tensor):
            rows = self._rows_of_base(func, args[0], rows)
        if any(row != rows for row in found):
            args, kwargs = self._move(args, rows), self._move(kwargs, rows)
        return mark_rows(self._call(func, args, kwargs, rows), rows)

    def _call(
        self, func: Any, args: Any, kwargs: Dict[str, Any], rows: Rows
    ) -> Any:
        """Run an operation; cut tensors of all levels if sizes differ."""
        if is_compiling():  # Tracing stops at an exception.
            if not (rows.all_levels or func in PRODUCTS):
                args, kwargs = self._cut(args, rows), self._cut(kwargs, rows)
            return func(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except MISMATCH:
            others = [x for x in _tensors([args, kwargs]) if self._is_full(x)]
            if rows.all_levels or not others:
                raise
            args, kwargs = self._cut(args, rows), self._cut(kwargs, rows)
            return func(*args, **kwargs)

    def _rows_of_base(self, func: Any, base: Tensor, rows: Rows) -> Rows:
        """Return the rows of a tensor that is changed in-place."""
        own = rows_of(base)
        if own is None or own.levels is not self.levels:
            is_full = self._is_full(base)
            return Rows(self.levels, rows.level, True) if is_full else rows
        if own != rows:
            if own.all_levels:
                return Rows(self.levels, rows.level, True)
            raise NotImplementedError(
                f"'{func.__name__}' changes trees of depth {own.level} by "
                f'trees of depth {rows.level} in-place (use the operation '
                f"that returns a new tensor, or set 'levelwise=False')"
            )
        return rows

    def _is_full(self, x: Tensor) -> bool:
        return x.dim() > 0 and x.size(0) == self.levels.num_rows

    def _move(self, value: Any, rows: Rows) -> Any:
        def move(x: Tensor) -> Tensor:
            found = rows_of(x)
            if found is None or found.levels is not self.levels:
                return x
            return found.move(x, rows)

        return _map(value, move)

    def _cut(self, value: Any, rows: Rows) -> Any:
        def cut(x: Tensor) -> Tensor:
            return self.levels.cut(x, rows.level) if self._is_full(x) else x

        return _map(value, cut)


def _is_metadata(out: Any) -> bool:
    if isinstance(out, tuple):
        return all(isinstance(item, int) for item in out)
    return isinstance(out, METADATA)


def _is_inplace(func: Any) -> bool:
    name: str = getattr(func, '__name__', '')
    if name[-2:] == '__':  # Other names in 'i' are `__int__`, `__invert__`, …
        return name == '__setitem__' or (
            name[:3] == '__i' and name[3] not in 'nt'
        )
    return name[-1:] == '_'


def _tensors(values: Any) -> Iterator[Tensor]:
    """Iterate over tensors in nested arguments."""
    stack: List[Any] = [values]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
        elif isinstance(value, dict):
            stack.extend(value.values())


def _map(value: Any, func: Any) -> Any:
    """Apply a function to the tensors in nested arguments."""
    if isinstance(value, Tensor):
        return func(value)
    if isinstance(value, dict):
        return {key: _map(item, func) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(item, func) for item in value)
    return value
