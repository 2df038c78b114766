"""Build the kernels. `pyproject.toml` declares everything else.

The build needs torch and a C++ compiler
(`pip install --no-build-isolation .`). Without them, or if the build fails,
the package is installed without kernels. `WITH_EXT=1` raises an error instead,
and `WITH_EXT=0` skips the build. `SANITIZE=1` adds the sanitizers of memory
and of undefined behavior, see `make sanitize`.
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


def find(pattern: str) -> list:
    return sorted(str(path) for path in CSRC.glob(pattern))


def get_kernels() -> dict:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class BuildKernels(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as e:
                if WITH_EXT == '1':
                    raise
                print(f'Install without kernels, as their build failed: {e}')
                self.extensions = []

        # `torch_geometric_ext/typing.py` loads the kernels of its version.
        def get_ext_filename(self, name: str) -> str:
            path = Path(super().get_ext_filename(name))
            version = '.'.join(torch.__version__.split('.')[:2])
            return str(path.with_suffix(f'.torch{version}{path.suffix}'))

    flags = ['-O3', '-g0', '-fvisibility=hidden', '-fopenmp']
    flags += ['-fno-math-errno', '-fno-trapping-math']  # As in PyTorch.
    flags += ['-Wno-maybe-uninitialized']  # A false alarm in unrolled loops.
    link_flags = ['-fopenmp', '-s']
    if os.getenv('SANITIZE') == '1':
        sanitizers = ['-fsanitize=address,undefined', '-fno-sanitize-recover']
        flags += [*sanitizers, '-g1', '-O1', '-fno-omit-frame-pointer']
        link_flags = ['-fopenmp', *sanitizers]
    # Units include all other files. The slowest to compile come first.
    loops = find('cpu/*_avx*.cpp') + find('cpu/*_default.cpp')
    extension = CppExtension(
        'torch_geometric_ext._C',
        sources=find('units/*.cpp') + loops,
        depends=find('**/*.h') + find('**/*.cpp'),
        extra_compile_args={'cxx': flags},
        extra_link_args=link_flags,
    )
    build = BuildKernels.with_options(no_python_abi_suffix=True)
    return dict(ext_modules=[extension], cmdclass={'build_ext': build})


setup(**(get_kernels() if kernels_wanted() else {}))
