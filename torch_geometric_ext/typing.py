"""Load the compiled operators and set the flag `WITH_EXT`.

Read a flag when it is needed (``torch_geometric_ext.typing.WITH_EXT``) instead
of importing its value, so that tests can switch it off.
"""

import warnings
from pathlib import Path

import torch

__all__ = ['WITH_EXT']


def load_kernels() -> bool:
    """Load the compiled operators beside this file.

    Returns:
        bool: Whether compiled operators were found and loaded.
    """
    for path in Path(__file__).parent.glob('_C.*'):
        try:
            torch.ops.load_library(path)
            return True
        except OSError as e:
            warnings.warn(
                f"The kernels of 'torch_geometric_ext' do not load, hence "
                f'operators fall back to slower references. Re-install the '
                f"package after a change of the PyTorch version ('{path}': "
                f'{e})',
                stacklevel=2,
            )
    return False


WITH_EXT: bool = load_kernels()
"""Whether operators call their compiled kernels."""
