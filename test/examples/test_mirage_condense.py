import runpy
import sys
from pathlib import Path

from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'mirage_condense.py'


@withPackage('datamol')
def test_mirage_condense(tmp_path, monkeypatch, capsys):
    argv = [str(PATH), '--seeds=2', '--num_steps=5', '--batch_size=32']
    monkeypatch.setattr(sys, 'argv', [*argv, f'--root={tmp_path}'])
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith('MirageCondense(num_layers=2, ratio=0.05')
    assert sum(line.startswith('bytes: ') for line in out) == 2
    *_, title, full, shared, plain, random, untrained, majority = out
    names = ['all molecules', 'mirage, shared', 'mirage, plain']
    names += ['random molecules', 'untrained network', 'majority class']
    rows = [full, shared, plain, random, untrained, majority]
    assert [row[:20].strip() for row in rows] == names
    assert len({len(row) for row in [title, *rows]}) == 1  # Aligned.
    columns = [row[20:].replace(',', '').split() for row in rows]
    graphs, total, seconds, accuracy = list(zip(*columns))[:4]
    # Budgets are kept, and shared trees fit more graphs into them:
    budget = 0.05 * int(total[0])
    assert all(0.9 * budget < int(n) <= budget + 1 for n in total[1:4])
    assert int(graphs[0]) == 820
    assert int(graphs[1]) > 2 * int(graphs[2]) > 2 * int(graphs[3])
    assert all(float(t) > 0 for t in seconds[:4])
    assert all(0 < float(value) < 100 for value in accuracy)
    assert majority.split()[-3:] == ['39.7', '±', '0.0']
