import subprocess
import sys

import pytest

import torch_geometric_ext.typing

LEAN = """
import sys, torch
torch.cuda.init = None  # Importing the package must not call it.
import torch_geometric_ext
for name in ['datamol', 'rdkit', 'sklearn']:
    assert name not in sys.modules, name
"""


def test_lean_import():
    out = subprocess.run(
        [sys.executable, '-c', LEAN], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout == out.stderr == ''


def test_broken_kernels_warn(tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch_geometric_ext.typing, '__file__', str(tmp_path / 'typing.py')
    )
    assert not torch_geometric_ext.typing.load_kernels()
    (tmp_path / '_C.so').write_bytes(b'no library')
    with pytest.warns(UserWarning, match='do not load'):
        assert not torch_geometric_ext.typing.load_kernels()
