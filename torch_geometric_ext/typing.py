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

    The name of the file tells the version of PyTorch that they were built
    for. Kernels of another version may load, too, and crash.

    Returns:
        bool: Whether compiled operators were found and loaded.
    """
    folder = Path(__file__).parent
    version = '.'.join(torch.__version__.split('.')[:2])
    error = f'they were built for another version than PyTorch {version}'
    for path in folder.glob(f'_C.torch{version}.*'):
        try:
            torch.ops.load_library(path)
            return True
        except OSError as e:
            error = str(e)
    found = sorted(path.name for path in folder.glob('_C.*'))
    if found:
        warnings.warn(
            f"The kernels of 'torch_geometric_ext' do not load, hence "
            f'operators fall back to slower references. Re-install the '
            f'package after a change of the PyTorch version ({found} in '
            f"'{folder}': {error})",
            stacklevel=2,
        )
    return False


WITH_EXT: bool = load_kernels()
"""Whether operators call their compiled kernels."""
