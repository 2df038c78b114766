"""Find hooks that need a module, or a step of message passing, to run."""

from typing import Tuple

from torch.nn import Module

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
