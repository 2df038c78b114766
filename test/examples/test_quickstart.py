import runpy
import sys
from pathlib import Path

from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'quickstart.py'


@withPackage('datamol', 'tqdm')
def test_quickstart(tmp_path, monkeypatch, capsys):
    argv = [str(PATH), '--epochs=1', '--seeds=2', f'--root={tmp_path}']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    assert '1,025 training and 257 test molecules' in out[0]
    assert [line[:20].strip() for line in out[1:]] == [
        'method',
        'full data',
        'half the epochs',
        'soft random 50%',
        'GDeR 50%',
        'soft random 30%',
        'GDeR 30%',
    ]
    assert len({len(line) for line in out[1:]}) == 1  # Aligned.
    # Budgets are exact, also with a warning-free single epoch:
    assert [line.split()[-3] for line in out[2:]] == [
        '1,025', '1,025', '512', '512', '308', '308',
    ]  # fmt: skip
