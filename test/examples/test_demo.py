import json
import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

ROOT = Path(__file__).parents[2]
DOORS = [
    'fewer graphs',
    'shared trees',
    'condensed data',
    'sparse layers',
    'full batches',
    'tickets',
]


@withPackage('chemicals', 'rdkit', 'tqdm')
@pytest.mark.filterwarnings('ignore:.*no weights will move')
def test_demo(tmp_path, monkeypatch, capsys):
    output = tmp_path / 'demo.jsonl'
    argv = ['demo', '--epochs=2', '--node_epochs=4']
    argv += [f'--root={tmp_path}', f'--output={output}']
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(sys, 'path', [str(ROOT), *sys.path])
    runpy.run_module('examples.demo', run_name='__main__')

    metadata, *rows = map(json.loads, output.read_text().splitlines())
    assert metadata['seeds'] == [0] and metadata['threads'] >= 1
    assert [row['door'] for row in rows] == DOORS
    out = capsys.readouterr().out
    assert '9,105 training and 2,276 test molecules' in out
    lines = [
        line for line in out.splitlines() if ' %' in line and 'x ' in line
    ]
    for row, line in zip(rows, lines, strict=True):
        assert line.startswith(row['door'])
        for name in ['plain_metric', 'by_hand_metric', 'metric']:
            assert 0 < row[name] < 100 and f'{row[name]:.1f} %' in line
        speedup = row['plain_seconds'] / row['seconds']
        assert f' {speedup:.1f}x ' in line

    # Gradients are equal, so that results differ by rounding only:
    for door in ['shared trees', 'full batches']:
        row = rows[DOORS.index(door)]
        assert abs(row['metric'] - row['plain_metric']) < 2
