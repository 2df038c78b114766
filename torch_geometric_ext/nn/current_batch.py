"""Hold the mini-batch of shared trees that the layers of a thread run on."""

import threading
from typing import Any, NamedTuple, Optional

from torch.compiler import is_compiling


class Block(NamedTuple):
    """A block of `shared_batch`.

    Args:
        context (Levelwise, optional): The mini-batch of shared trees, or
            :obj:`None` for one of plain graphs.
        hooks (Hooks, optional): The hooks that run convolutions level by
            level, or :obj:`None` if there are none.
    """

    context: Any
    hooks: Any


class _Thread(threading.local):
    # `torch.compile` traces thread-local attributes, not context variables.
    block: Optional[Block] = None  # The innermost one that is open.


thread = _Thread()


def current_product() -> Any:
    """Return the product that runs in place of a convolution, if any."""
    block = None if is_compiling() else thread.block
    call = block and block.context and block.context.call
    return call.product if call else None
