from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple
from weakref import WeakKeyDictionary

from torch.compiler import is_compiling
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_pre_hook
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.nn.current_batch import Block, thread
from torch_geometric_ext.nn.hooks import SharedHooks
from torch_geometric_ext.nn.level_product import level_forward, own_hooks
from torch_geometric_ext.nn.levelwise import Levelwise

# Convolutions that have run within `shared_batch`. They get hooks on entry,
# since a hook that is added during a call does not see its inputs.
_seen: 'WeakKeyDictionary[Module, SharedHooks]' = WeakKeyDictionary()


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

    Args:
        batch (SharedTreeBatch): A mini-batch of
            :class:`~torch_geometric_ext.loader.SharedTreeLoader`, or of plain
            graphs, for which layers run as they are.
        levelwise (bool, optional): If set to :obj:`False`, each layer updates
            the trees of all levels. (default: :obj:`True`)

    Raises:
        ValueError: If fewer or more convolutions run than trees are deep.

    .. rubric:: Details

    A convolution falls back to all levels, is listed with the reason, and
    logged, if it

    * does not pass an equivalence check, which runs once for each convolution
      and tells whether it reads one hop,
    * reads other edges than :obj:`batch.edge_index`, features of nodes other
      than :obj:`x`, or outputs that a fallback or edges went into, or returns
      more than embeddings,
    * is called for the first time, and directly instead of by a module that
      is called within the block.

    Convolutions compiled by :func:`torch.compile` run on all levels, without
    a report, unless they are wrapped in
    :class:`~torch_geometric_ext.nn.LevelwiseConv`.

    .. note::
        Set :obj:`levelwise=False` for models that trim layers, have fewer
        layers than trees are deep, use several blocks for one mini-batch, or
        use activation checkpointing (call :obj:`backward()` in the block).
    """
    outer = thread.block
    with ExitStack() as stack:
        try:
            thread.block = block = _enter(batch, levelwise, outer, stack)
            context = block.context
            yield [] if context is None else context.fallbacks
        finally:
            thread.block = outer
    if context is not None:
        context.check_depth()


def _enter(
    batch: Any, levelwise: bool, outer: Optional[Block], stack: ExitStack
) -> Block:
    """Pause the outer block, and track the rows of this one."""
    if outer is not None and outer.context is not None:
        stack.enter_context(outer.context.tracker.pause())
    context = Levelwise(batch) if 'root_ptr' in batch else None
    hooks = None
    if context is not None:
        stack.enter_context(context.tracker)
        # Compiled models call no hooks that are added in a block.
        if levelwise and not is_compiling():
            hooks = stack.enter_context(_Hooks(context))
    return Block(context, hooks)


def current_context() -> Optional[Levelwise]:
    """Return the innermost mini-batch of shared trees, if any."""
    block = thread.block
    return None if block is None else block.context


class _Hooks(ExitStack):
    """Forward hooks on the convolutions that run within a block."""

    def __init__(self, context: Levelwise) -> None:
        super().__init__()
        self.context = context

    def __enter__(self) -> '_Hooks':
        self.modules: Set[Module] = set()
        self.enter_context(_global_hook)
        for conv in list(_seen):
            self._attach(conv)
        return self

    def find(self, module: Module) -> None:
        """Attach hooks to the convolutions in a module that is called."""
        for child in module.modules():
            if isinstance(child, MessagePassing):
                self._attach(child)
        self.modules.add(module)

    def _attach(self, conv: Module) -> None:
        if conv in self.modules:
            return
        if conv not in _seen:
            _seen[conv] = SharedHooks(
                conv.register_forward_pre_hook(_before, with_kwargs=True),
                conv.register_forward_hook(_after, always_call=True),
            )
        self.modules.add(conv)
        self.enter_context(_seen[conv])
        self.enter_context(level_forward(conv))


def _idle_hooks() -> Optional[_Hooks]:
    """Return the hooks of the innermost block, unless a convolution runs."""
    if is_compiling():  # Compiled convolutions run on all levels.
        return None
    block = thread.block
    hooks: Optional[_Hooks] = None if block is None else block.hooks
    return None if hooks is None or hooks.context.call is not None else hooks


def _find(module: Module, args: Tuple) -> Any:
    hooks = _idle_hooks()
    if hooks is None or module in hooks.modules:
        return None
    hooks.find(module)
    if isinstance(module, MessagePassing):
        return hooks.context.begin_first(module, args)
    return None


def _before(conv: Module, args: Tuple, kwargs: Dict[str, Any]) -> Any:
    hooks = _idle_hooks()
    if hooks is None:
        return None
    return hooks.context.begin(conv, args, kwargs, hooked=True)


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
_global_hook = SharedHooks(register_module_forward_pre_hook(_find))
