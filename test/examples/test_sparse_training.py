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
    title, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert len({len(row) for row in [title, *rows]}) == 1  # Aligned.
    dense, *sparse = [row.replace(',', '').split() for row in rows]
    assert dense[:2] == ['0%', '6858'] and dense[-2] == '1.0x'
    assert [row[0] for row in sparse] == ['90%', '95%']
    # Only sparse models explore connections:
    assert len(dense) == 6 and all(row[2].endswith('%') for row in sparse)
    assert all(int(row[1]) < 0.2 * 6858 for row in sparse)
    assert all(float(row[3]) < 0.5 * float(dense[2]) for row in sparse)
