"""Run convolutions on one level of shared computation trees each."""

import functools
import inspect
import itertools
import logging
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.nn.level_product import LevelProduct
from torch_geometric_ext.nn.reads_one_hop import Inputs, reads_one_hop
from torch_geometric_ext.nn.tree_levels import (
    Rows,
    TrackRows,
    TreeLevels,
    mark_rows,
    rows_of,
)

# Whether convolutions have passed the equivalence check.
_checked: 'WeakKeyDictionary[Module, bool]' = WeakKeyDictionary()


class Call(NamedTuple):
    """A call of a convolution.

    Args:
        conv (MessagePassing): The convolution.
        rows (Rows): The rows it computes: one level, or all levels.
        args (Dict[str, Any]): Its arguments by name, as the user gave them.
        inputs (Dict[str, Any]): The arguments it runs on.
        hooked (bool): Whether forward hooks run it.
        product (LevelProduct, optional): What runs in its place, on the rows
            below. (default: :obj:`None`)
    """

    conv: Module
    rows: Rows
    args: Dict[str, Any]
    inputs: Dict[str, Any]
    hooked: bool
    product: Optional[LevelProduct] = None


class Levelwise:
    r"""Run the convolutions of a model on the levels of one mini-batch.

    Layer :math:`l` updates the trees of depth :math:`l` only: it reads the
    same trees truncated to depth :math:`l - 1`, and their children. A
    convolution runs on all levels if it is not known to be exact otherwise.

    Attributes:
        levels (TreeLevels): The rows of each level.
        level (int): The highest level that a convolution has computed alone.
        fallbacks (List[str]): The convolutions that ran on all levels, and
            why.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.levels = TreeLevels(batch)
        self.tracker = TrackRows(self.levels)
        self.level = 0
        self.fallbacks: List[str] = []
        self.call: Optional[Call] = None

    def run(self, conv: Module, args: Tuple, kwargs: Dict[str, Any]) -> Any:
        """Call a convolution that is known to read one hop."""
        args, kwargs = self.begin(conv, args, kwargs, is_known=True)
        out = None
        try:
            out = conv(*args, **kwargs)
        finally:
            out = self.end(out)
        return out

    def begin(
        self,
        conv: Module,
        args: Tuple,
        kwargs: Dict[str, Any],
        *,
        is_known: bool = False,
        hooked: bool = False,
    ) -> Tuple[Tuple, Dict[str, Any]]:
        """Return the arguments of a convolution for its level."""
        names = _argument_names(type(conv).forward)
        if names is None:
            self._log(conv, 'takes any number of arguments')
            return self._begin_on_all_levels(conv, args, kwargs, hooked)
        named = {**dict(zip(names, args)), **kwargs}
        call = Call(conv, self._all_rows(), named, named, hooked)
        self.call, self.tracker.paused = call, True
        try:
            self.call = call = self._plan(call, is_known)
        except BaseException:
            self.call, self.tracker.paused = None, False
            raise
        new = [call.inputs[name] for name in names[: len(args)]]
        return tuple(new), {key: call.inputs[key] for key in kwargs}

    def end(self, out: Any) -> Any:
        """Return the rows of an output that later layers may read."""
        call = self.call
        assert call is not None
        try:
            if out is not None and not call.rows.all_levels:
                size = self.levels.size(call.rows.level)
                below = self.levels.size(call.rows.level - 1)
                num_rows = size if call.product else size + below
                if isinstance(out, Tensor) and out.size(0) == num_rows:
                    self.level = max(self.level, call.rows.level)
                    out = out.narrow(0, 0, size)
                else:
                    call = self._fall_back(call, 'returns other rows')
                    out = call.conv.forward(**call.inputs)
        finally:
            self.call, self.tracker.paused = None, False
        return mark_rows(out, call.rows)

    def begin_first(self, conv: Module, args: Tuple) -> Tuple:
        """Return positional arguments of a convolution for all levels."""
        self._log(conv, 'was called directly for the first time')
        return self._begin_on_all_levels(conv, args, {}, hooked=True)[0]

    def _begin_on_all_levels(
        self, conv: Module, args: Tuple, kwargs: Dict[str, Any], hooked: bool
    ) -> Tuple[Tuple, Dict[str, Any]]:
        self.call = Call(conv, self._all_rows(), {}, {}, hooked)
        self.tracker.paused = True
        args = tuple(self.expand(value) for value in args)
        return args, {key: self.expand(x) for key, x in kwargs.items()}

    def count_of(self, x: Tensor) -> Optional[Tensor]:
        """Return how often the trees in the first rows of a tensor occur."""
        rows = self._rows_of(x) if self.call is None else self.call.rows
        top = self.levels.num_layers
        if rows is not None:
            found = [top if rows.all_levels else rows.level]
        else:
            found = [self.level or top, top]
        for level in found:
            sizes = map(self.levels.size, range(level, -1, -1))
            if x.size(0) in itertools.accumulate(sizes):
                return self.levels.count(level)
        return None

    def expand(self, value: Any) -> Any:
        """Return a tensor of one level as a tensor of all levels."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.expand(item) for item in value)
        rows = self._rows_of(value)
        return value if rows is None else rows.move(value, self._all_rows())

    def check_depth(self) -> None:
        """Raise an error if the last layer did not reach the highest level."""
        depth = self.levels.num_layers
        if not self.fallbacks and 0 < self.level < depth:
            raise ValueError(
                f"'shared_batch' needs as many convolutions as trees are deep "
                f'in one block (got {self.level} for trees of depth {depth}). '
                f"Share trees of depth {self.level}, or set 'levelwise=False'"
            )

    def _plan(self, call: Call, is_known: bool) -> Call:
        conv, args = call.conv, call.args
        if self._is_unrelated(args):
            return call._replace(rows=Rows(self.levels, 0, True))
        reason = self._reason(conv, args)
        if reason is not None:
            return self._fall_back(call, reason)
        x = args['x']
        level = self._level_of(x) + 1
        edge = self._edge_args(conv, args)
        if not is_known and not _is_exact(conv, args, edge):
            return self._fall_back(call, 'did not pass the equivalence check')
        call = call._replace(rows=Rows(self.levels, level, False))
        below = self.levels.cut(x, level - 1) if self._is_full(x) else x
        weight = args.get('edge_weight')
        if weight is None or 'edge_weight' in edge:
            product = LevelProduct.find(
                conv, below, weight, self.levels, level
            )
            if product is not None:
                inputs = {**args, 'x': below}
                return call._replace(inputs=inputs, product=product)
        return call._replace(inputs=self._inputs(below, args, edge, level))

    def _fall_back(self, call: Call, reason: str) -> Call:
        self._log(call.conv, reason)
        inputs = {key: self.expand(value) for key, value in call.args.items()}
        return call._replace(rows=self._all_rows(), inputs=inputs)

    def _log(self, conv: Module, reason: str) -> None:
        text = f"'{conv.__class__.__name__}' {reason}"
        if text not in self.fallbacks:
            self.fallbacks.append(text)
            logging.getLogger(__name__).info(f'Run on all levels: {text}')

    def _is_unrelated(self, args: Dict[str, Any]) -> bool:
        """Return whether a convolution reads another graph than the trees."""
        tensors = [x for x in args.values() if isinstance(x, Tensor)]
        edge_index = args.get('edge_index')
        return (
            isinstance(edge_index, Tensor)
            and edge_index.data_ptr() != self.batch.edge_index.data_ptr()
            and not any(self._rows_of(x) for x in tensors)
            and not any(self._is_full(x) for x in tensors)
        )

    def _reason(self, conv: Module, args: Dict[str, Any]) -> Optional[str]:
        """Return why a convolution cannot run on one level."""
        x = args.get('x')
        if not isinstance(x, Tensor):
            return "needs 'x' to be a tensor"
        if not self._is_own_edge_index(args.get('edge_index')):
            return 'reads other edges than those of the mini-batch'
        if self.tracker.reads_edges:
            return 'follows operations on the edges of the mini-batch'
        if getattr(conv, 'flow', None) != 'source_to_target':
            return "needs 'flow' to be 'source_to_target'"
        if args.get('size') is not None:
            return "reads 'size'"
        rows = self._rows_of(x)
        if rows and rows.all_levels and rows.level == self.levels.num_layers:
            return 'reads the output of a layer that ran on all levels'
        for key, value in args.items():
            if key in ['x', 'edge_index'] or not isinstance(value, Tensor):
                continue
            if self._rows_of(value) or (
                self._is_full(value) and not self._is_edge(key, value)
            ):
                return f"reads nodes by '{key}'"
        return None

    def _level_of(self, x: Tensor) -> int:
        """Return the level of the rows of an input."""
        rows, num_layers = self._rows_of(x), self.levels.num_layers
        if rows is not None:
            level = rows.level
        elif self._is_full(x):
            level = 0
        elif self.level > 0 and x.size(0) == self.levels.size(self.level):
            level = self.level  # Not all operations are PyTorch functions.
        else:
            raise ValueError(
                f"'x' needs one row for each of {self.levels.num_rows} trees "
                f'(got {x.size(0)})'
            )
        if level == num_layers:
            raise ValueError(
                f'Convolutions read further than trees of depth {num_layers} '
                f'(share deeper trees)'
            )
        return level

    def _inputs(
        self, below: Tensor, args: Dict[str, Any], edge: List[str], level: int
    ) -> Dict[str, Any]:
        """Return arguments for the trees of a level, then those they read."""
        levels = self.levels
        out = {
            key: levels.cut_edges(value, level) if key in edge else value
            for key, value in args.items()
        }
        x = torch.cat([below.index_select(0, levels.own(level)), below])
        return {**out, 'x': x, 'edge_index': levels.edge_index(level)}

    def _is_own_edge_index(self, edge_index: Any) -> bool:
        own = self.batch.edge_index
        if edge_index is own:
            return True
        if not isinstance(edge_index, Tensor) or edge_index.numel() == 0:
            return False
        if edge_index.data_ptr() != own.data_ptr():
            return False
        if edge_index.size(1) < own.size(1):
            raise ValueError(
                "Trimmed layers need 'levelwise=False' in 'shared_batch'"
            )
        return edge_index.stride() == own.stride()

    def _edge_args(self, conv: Module, args: Dict[str, Any]) -> List[str]:
        return [
            key
            for key, value in args.items()
            if key not in ['x', 'edge_index'] and self._is_edge(key, value)
        ]

    def _is_edge(self, key: str, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return False
        if value.size(0) != self.batch.edge_index.size(1):
            return False
        return key.startswith('edge_') or not self._is_full(value)

    def _is_full(self, x: Tensor) -> bool:
        return x.dim() > 0 and x.size(0) == self.levels.num_rows

    def _rows_of(self, x: Any) -> Optional[Rows]:
        rows = rows_of(x)
        return None if rows is None or rows.levels != self.levels else rows

    def _all_rows(self) -> Rows:
        return Rows(self.levels, self.levels.num_layers, True)


@torch.compiler.assume_constant_result
def _argument_names(forward: Callable[..., Any]) -> Optional[List[str]]:
    """Return the names of positional arguments, unless they are open-ended."""
    return _find_names(forward)


@functools.cache
def _find_names(forward: Callable[..., Any]) -> Optional[List[str]]:
    params = list(inspect.signature(forward).parameters.values())[1:]
    if any(param.kind is param.VAR_POSITIONAL for param in params):
        return None
    return [param.name for param in params]


def _is_exact(conv: Module, args: Dict[str, Any], edge: List[str]) -> bool:
    """Check once for each convolution whether it reads one hop."""
    if conv not in _checked:
        others = {
            key: value
            for key, value in args.items()
            if key not in ['x', 'edge_index', *edge]
        }
        inputs = Inputs(
            {'x': args['x']}, {key: args[key] for key in edge}, others
        )
        found = reads_one_hop(conv, inputs) is True
        if any(is_lazy(param) for param in conv.parameters()):
            return found
        _checked[conv] = found
    return _checked[conv]
