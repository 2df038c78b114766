import runpy
import sys
from pathlib import Path

from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'train_and_prune.py'


@withPackage('sklearn')
def test_train_and_prune(tmp_path, monkeypatch, capsys):
    argv = [str(PATH), '--epochs=20', '--hidden_channels=32']
    monkeypatch.setattr(sys, 'argv', [*argv, f'--root={tmp_path}'])
    runpy.run_path(str(PATH), run_name='__main__')
    rows = [x.split() for x in capsys.readouterr().out.splitlines()]
    names = [' '.join(row[: row.index('%') - 1]) for row in rows]
    assert names == ['dense', 'magnitude', 'ADMM', 'SLR', 'RigL', 'RigL 3x']
    macs = [float(row[row.index('GMACs,') - 1]) for row in rows]
    assert macs[0] < macs[1] < macs[2] == macs[3] and macs[4] < macs[0]
    num_weights = [row[row.index('with') + 1] for row in rows]
    assert num_weights[1] == num_weights[2] == num_weights[3]
