"""Optional dependencies: each is tried once, here, and sets a flag.

Read the flags late (``torch_geometric_ext.typing.WITH_EXT``), so that tests
can switch them off.
"""

import warnings
from pathlib import Path

import torch

__all__ = ['WITH_EXT']


def _load_kernels() -> bool:
    """Loads the compiled operators that lie beside this file, if any."""
    for path in Path(__file__).parent.glob('_C.*'):
        try:
            torch.ops.load_library(path)
            return True
        except OSError as e:
            warnings.warn(
                f"The kernels of 'torch_geometric_ext' do not load and its "
                f'slower reference operators are used instead. Re-install it '
                f"after a change of the PyTorch version ('{path}': {e})",
                stacklevel=2,
            )
    return False


WITH_EXT: bool = _load_kernels()
"""Whether the compiled operators are available."""
