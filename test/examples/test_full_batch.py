import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'full_batch.py'


@withPackage('sklearn')
@pytest.mark.parametrize('model', ['GCN', 'SAGE', 'GIN', 'GAT'])
def test_full_batch(model, tmp_path, monkeypatch, capsys):
    argv = [str(PATH), f'--root={tmp_path}', f'--model={model}']
    monkeypatch.setattr(sys, 'argv', [*argv, '--epochs=3'])
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    assert 'whole graph' not in ''.join(out)
    title, *rows = out[-3:]
    assert len({len(row) for row in [title, *rows]}) == 1  # Aligned.
    assert [row[:12].strip() for row in rows] == ['plain', 'accelerated']
    assert all(0 < float(row.split()[1]) < 100 for row in rows)
