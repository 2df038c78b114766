"""Find hooks that need a module, or a step of message passing, to run."""

from threading import Lock
from typing import Any, Tuple

from torch.nn import Module
from torch.utils.hooks import RemovableHandle

HOOKS = [
    '_forward_hooks',
    '_forward_pre_hooks',
    '_backward_hooks',
    '_backward_pre_hooks',
]

STEPS = ('_propagate', '_message', '_aggregate', '_edge_update')


def is_hooked(module: Module, steps: Tuple[str, ...] = ()) -> bool:
    """Return whether a module has hooks, or hooks of some steps of message
    passing.
    """
    names = [name for name in vars(module) if name.endswith('hooks')]
    if steps:
        names = [name for name in names if name.startswith(steps)]
    else:
        names = [name for name in names if name in HOOKS]
    return any(getattr(module, name) for name in names)


class SharedHooks:
    """Hooks that are active while at least one block is open.

    They keep their keys, which compiled models guard. Threads share them.

    Args:
        *handles (torch.utils.hooks.RemovableHandle): The registered hooks.
    """

    _lock = Lock()

    def __init__(self, *handles: RemovableHandle) -> None:
        self.handles = handles
        self.entries = []
        for handle in handles:
            for ref in (handle.hooks_dict_ref, *handle.extra_dict_ref):
                if handle.id in ref():
                    self.entries.append((ref, handle.id, ref()[handle.id]))
            handle.remove()
        self.num_blocks = 0

    def __enter__(self) -> None:
        with self._lock:
            self.num_blocks += 1
            if self.num_blocks == 1:
                for ref, key, hook in self.entries:
                    ref()[key] = hook

    def __exit__(self, *args: Any) -> None:
        with self._lock:
            self.num_blocks -= 1
            if self.num_blocks == 0:
                for handle in self.handles:
                    handle.remove()
