"""Builds the kernels; everything else is declared in `pyproject.toml`.

The kernels are built whenever torch is importable at build time and a C++
compiler is found (`pip install --no-build-isolation .`). `WITH_EXT=1` turns a
build that is impossible or fails into an error, `WITH_EXT=0` skips it.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup

WITH_EXT = os.getenv('WITH_EXT', 'auto')
CSRC = Path('torch_geometric_ext', 'csrc')


def kernels_wanted() -> bool:
    if WITH_EXT == '0':
        return False
    if WITH_EXT == '1':
        return True
    compiler = os.getenv('CXX', 'c++')
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError:
        return False
    return shutil.which(compiler.split()[0]) is not None


def get_kernels() -> dict:
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class BuildKernels(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as e:
                if WITH_EXT == '1':
                    raise
                print(f'Going on without kernels, their build failed: {e}')
                self.extensions = []

    flags = ['-O3', '-g0', '-fvisibility=hidden', '-fopenmp']
    flags += ['-fno-math-errno', '-fno-trapping-math']  # As PyTorch itself.
    extension = CppExtension(
        'torch_geometric_ext._C',
        sources=sorted(str(path) for path in CSRC.rglob('*.cpp')),
        depends=sorted(str(path) for path in CSRC.rglob('*.h')),
        extra_compile_args={'cxx': flags},
        extra_link_args=['-fopenmp', '-s'],
    )
    build = BuildKernels.with_options(no_python_abi_suffix=True)
    return dict(ext_modules=[extension], cmdclass={'build_ext': build})


setup(**(get_kernels() if kernels_wanted() else {}))
