import runpy
import sys
from pathlib import Path

from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'sparse_training.py'


@withPackage('sklearn')
def test_sparse_training(tmp_path, monkeypatch, capsys):
    argv = [str(PATH), '--epochs=8', '--hidden_channels=32']
    monkeypatch.setattr(sys, 'argv', [*argv, f'--root={tmp_path}'])
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    epochs = [line for line in out if line.startswith('Epoch: 008, Loss: ')]
    assert len(epochs) == 3
    dense, *sparse = [line for line in out if line.startswith('Sparsity')]
    assert dense.startswith('Sparsity 0%: 6,858 parameters, ')
    assert 'explored' not in dense
    assert [line.split()[1] for line in sparse] == ['90%:', '95%:']
    assert all('% of all explored), 0.0' in line for line in sparse)
