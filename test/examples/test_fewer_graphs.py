import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'fewer_graphs.py'


@withPackage('datamol', 'sklearn')
@pytest.mark.parametrize('task', ['classes', 'regression'])
def test_fewer_graphs(task, tmp_path, monkeypatch, capsys):
    argv = [str(PATH), '--epochs=2', '--seeds=1', f'--task={task}']
    monkeypatch.setattr(sys, 'argv', [*argv, f'--root={tmp_path}'])
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    names = ['method', 'all graphs', 'soft random', 'GDeR']
    assert [line[:14].strip() for line in out[-4:]] == names
    graphs = [int(line.split()[-3].replace(',', '')) for line in out[-3:]]
    assert graphs[1] == graphs[2] < 0.51 * graphs[0]
