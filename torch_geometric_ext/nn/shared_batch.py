from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    Literal,
    Optional,
    Set,
    Tuple,
    Union,
)
from weakref import WeakSet

from torch.compiler import is_compiling
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.nn.level_product import (
    LevelProduct,
    level_forward,
    own_hooks,
)
from torch_geometric_ext.nn.levelwise import Levelwise

# The innermost mini-batch of shared trees, False for one of plain graphs, None
# outside of `shared_batch`.
_current: ContextVar[Union[Levelwise, Literal[False], None]] = ContextVar(
    'shared_batch', default=None
)

# Convolutions that have run within `shared_batch`. They get hooks on entry,
# since a hook that is added during a call does not see its inputs.
_seen: 'WeakSet[Module]' = WeakSet()


@contextmanager
def shared_batch(batch: Any, levelwise: bool = True) -> Iterator[List[str]]:
    r"""Run the layers of a block on shared computation trees, level by level.

    Layer :math:`l` of a model updates the trees of depth :math:`l` only. The
    output holds the trees of the highest level, for
    :class:`~torch_geometric_ext.nn.RootAggregation`. Losses and gradients are
    those of layers on all levels. Residual connections, jumping knowledge and
    other row-wise operations are exact: rows of a lower level are repeated for
    the trees of a higher one.
    :class:`~torch_geometric_ext.nn.TreeBatchNorm` counts repeated trees.

    .. code-block:: python

        with shared_batch(batch) as fallbacks:
            h = gnn(batch.x, batch.edge_index)
        out = aggr(h, batch)
        print(fallbacks)  # Empty if all layers ran level by level.

    A convolution falls back to all levels, is listed with the reason, and
    logged, if it

    * does not pass an equivalence check, which runs once for each convolution
      and tells whether it reads one hop,
    * reads other edges than :obj:`batch.edge_index`, features of nodes other
      than :obj:`x`, or outputs that a fallback or edges went into, or returns
      more than embeddings,
    * is called for the first time, and directly instead of by a module that
      is called within the block, or was compiled by :func:`torch.compile`.

    .. note::
        Set :obj:`levelwise=False` for models that trim layers, have fewer
        layers than trees are deep, use several blocks for one mini-batch, or
        use activation checkpointing (call :obj:`backward()` in the block).

    Args:
        batch (SharedTreeBatch): A mini-batch of
            :class:`~torch_geometric_ext.loader.SharedTreeLoader`, or of plain
            graphs, for which layers run as they are.
        levelwise (bool, optional): If set to :obj:`False`, each layer updates
            the trees of all levels. (default: :obj:`True`)

    Raises:
        ValueError: If fewer or more convolutions run than trees are deep.
    """
    context = Levelwise(batch) if 'root_ptr' in batch else None
    outer = current_context()
    token = _current.set(context or False)
    try:
        with ExitStack() as stack:
            if outer is not None:
                stack.enter_context(outer.tracker.pause())
            if context is not None:
                stack.enter_context(context.tracker)
                if levelwise:
                    stack.enter_context(_Hooks())
            yield [] if context is None else context.fallbacks
    finally:
        _current.reset(token)
    if context is not None:
        context.check_depth()


def current_context() -> Optional[Levelwise]:
    """Return the innermost mini-batch of shared trees, if any."""
    return _current.get() or None


def current_product() -> Optional[LevelProduct]:
    """Return the product that runs in place of a convolution, if any."""
    if is_compiling():
        return None
    context = current_context()
    return context.call.product if context and context.call else None


def is_inside() -> bool:
    """Return whether a block of `shared_batch` is open."""
    return _current.get() is not None


class _Hooks(ExitStack):
    """Forward hooks on the convolutions that run within a block."""

    def __enter__(self) -> '_Hooks':
        self.modules: Set[Module] = set()
        handle = register_module_forward_pre_hook(self._find)
        self.callback(handle.remove)
        for conv in list(_seen):
            self._attach(conv)
        return self

    def _find(self, module: Module, args: Tuple) -> Any:
        """Attach hooks to the convolutions in a module that is called."""
        context = _idle_context()
        if context is None:
            return None
        if module in self.modules:
            return None
        if isinstance(module, MessagePassing):
            self._attach(module)
            return context.begin_first(module, args)
        self.modules.add(module)
        for child in module.modules():
            if isinstance(child, MessagePassing):
                self._attach(child)
        return None

    def _attach(self, conv: Module) -> None:
        if conv in self.modules:
            return
        _seen.add(conv)
        self.modules.add(conv)
        before = conv.register_forward_pre_hook(_before, with_kwargs=True)
        after = conv.register_forward_hook(_after, always_call=True)
        self.callback(before.remove)
        self.callback(after.remove)
        self.enter_context(level_forward(conv, current_product))


def _idle_context() -> Optional[Levelwise]:
    """Return the current mini-batch, unless a convolution is running."""
    if is_compiling():  # A compiled graph has no level of its own.
        return None
    context = current_context()
    return None if context is None or context.call is not None else context


def _before(conv: Module, args: Tuple, kwargs: Dict[str, Any]) -> Any:
    context = _idle_context()
    if context is None:
        return None
    return context.begin(conv, args, kwargs, hooked=True)


def _after(conv: Module, args: Tuple, out: Any) -> Any:
    if is_compiling():
        return None
    context = current_context()
    if context is None or context.call is None:
        return None
    if context.call.conv is conv and context.call.hooked:
        return context.end(out)
    return None


own_hooks.update([_before, _after])
