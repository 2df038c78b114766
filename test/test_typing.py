import subprocess
import sys

import pytest
import torch

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
    version = '.'.join(torch.__version__.split('.')[:2])
    path = tmp_path / f'_C.torch{version}.so'
    path.write_bytes(b'no library')
    with pytest.warns(UserWarning, match=f"do not load.*'{path.name}'"):
        assert not torch_geometric_ext.typing.load_kernels()


@pytest.mark.parametrize('name', ['_C.torch2.1.so', '_C.so'])
def test_kernels_of_another_version_are_not_loaded(
    tmp_path, monkeypatch, name
):
    monkeypatch.setattr(
        torch_geometric_ext.typing, '__file__', str(tmp_path / 'typing.py')
    )
    monkeypatch.setattr(torch.ops, 'load_library', pytest.fail)
    monkeypatch.setattr(torch, '__version__', '2.13.1+cu130')
    (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=f'{name}.*than PyTorch 2.13'):
        assert not torch_geometric_ext.typing.load_kernels()


@pytest.mark.parametrize('version', ['2.13.0', '2.13.1+cu130', '2.13'])
def test_kernels_of_this_version_are_loaded(tmp_path, monkeypatch, version):
    monkeypatch.setattr(
        torch_geometric_ext.typing, '__file__', str(tmp_path / 'typing.py')
    )
    loaded = []
    monkeypatch.setattr(torch.ops, 'load_library', loaded.append)
    monkeypatch.setattr(torch, '__version__', version)
    for name in ['_C.torch2.13.so', '_C.torch2.1.so', '_C.so']:
        (tmp_path / name).touch()
    assert torch_geometric_ext.typing.load_kernels()
    assert loaded == [tmp_path / '_C.torch2.13.so']
