import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ['sparse_linear', 'block_sparse_linear', 'csr_sparse_linear']
TESTS = ['matches_dense', 'is_deterministic', 'strides', 'many_rows']


@pytest.mark.parametrize('capability', ['avx2', 'default'])
def test_sparse_products_on_other_machines(kernels, capability):
    paths = [Path(__file__).with_name(f'test_{name}.py') for name in FILES]
    subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', *paths]
        + ['-k', f'({" or ".join(TESTS)}) and not reference'],
        env={**os.environ, 'ATEN_CPU_CAPABILITY': capability},
        check=True,
    )
