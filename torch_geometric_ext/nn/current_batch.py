"""Hold the mini-batch of shared trees that the layers of a thread run on."""

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from torch.compiler import is_compiling

if TYPE_CHECKING:
    from torch_geometric_ext.nn.level_product import LevelProduct
    from torch_geometric_ext.nn.levelwise import Levelwise


class Block(NamedTuple):
    """A block of `shared_batch`.

    Args:
        context (Levelwise, optional): The mini-batch of shared trees, or
            :obj:`None` for one of plain graphs.
        hooks (Hooks, optional): Runs convolutions level by level, if any does.
    """

    context: Optional['Levelwise']
    hooks: Any


class _Thread(threading.local):
    # `torch.compile` traces thread-local attributes, not context variables.
    block: Optional[Block] = None  # The innermost one that is open.


thread = _Thread()


def current_context() -> Optional['Levelwise']:
    """Return the innermost mini-batch of shared trees, if any."""
    block = thread.block
    return None if block is None else block.context


def current_product() -> Optional['LevelProduct']:
    """Return the product that runs in place of a convolution, if any."""
    if is_compiling():
        return None
    context = current_context()
    return context.call.product if context and context.call else None
