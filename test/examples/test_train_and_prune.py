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
    title, *rows = capsys.readouterr().out.splitlines()[-7:]
    assert len({len(row) for row in [title, *rows]}) == 1  # Aligned.
    names = ['dense', 'magnitude', 'ADMM', 'SLR', 'RigL', 'RigL 3x']
    assert [row[:12].strip() for row in rows] == names
    columns = [row[12:].replace(',', '').split() for row in rows]
    _, weights, macs, _ = (map(float, column) for column in zip(*columns))
    weights, macs = list(weights), list(macs)
    assert macs[0] < macs[1] < macs[2] == macs[3] and macs[4] < macs[0]
    assert weights[1] == weights[2] == weights[3] < weights[0]
