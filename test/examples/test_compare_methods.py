import re
import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'compare_methods.py'


@withPackage('datamol', 'sklearn', 'tqdm')
@pytest.mark.filterwarnings('ignore:.*no weights will move')
@pytest.mark.filterwarnings('error:Mini-batches of')
def test_compare_methods(tmp_path, monkeypatch, capsys):
    argv = [str(PATH), '--epochs=1', '--seeds=2', f'--root={tmp_path}']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    assert '1,025 training and 257 test molecules' in out[0]
    assert re.search('kernels (on|off), .+', out[0])  # The name of the CPU.
    names = [line[:24].strip() for line in out]
    title = '4 layers, 64 channels, 1 epochs, batches of 32'
    assert out[2] == f'{title}, 839 imbalanced molecules'
    assert names[3:8] == [
        'method',
        'full data',
        'soft random 50%',
        'balanced 50%',
        'GDeR 50%',
    ]
    assert out[9] == '2 layers, 64 channels, 1 epochs, full batches'
    assert names[10:13] == ['method', 'plain graphs', 'shared trees']
    assert out[14] == '2 layers, 256 channels, 1 epochs, batches of 64'
    assert names[15:21] == [
        'method',
        'dense',
        'dense, 1/10 of weights',
        'RigL, 1/10',
        'dense, 1/20 of weights',
        'RigL, 1/20',
    ]
    assert out[22] == '2 layers, 64 channels, 1 epochs, batches of 128'
    assert names[23:29] == [
        'method',
        'full data',
        'random, 5% of bytes',
        'Mirage, 5%',
        'random, shared, 5%',
        'Mirage, shared, 5%',
    ]
    assert out[30] == 'GCN on DigitsKNN: 1,797 nodes, 2 paired seeds'
    assert out[32].startswith('2 layers, 128 channels, 2 epochs ')
    assert names[33:] == [
        'method',
        'dense',
        'dense, 1/20 of weights',
        'ticket, 1/20',
    ]
    tables = [out[3:8], out[10:13], out[15:21], out[23:29], out[33:]]
    for table in tables:
        assert len({len(line) for line in table}) == 1  # Columns are aligned.
    # Budgets are exact:
    assert [line.split()[-4] for line in out[4:8]] == [
        '839', '420', '420', '420',
    ]  # fmt: skip
    # Training on shared trees gives equal results:
    plain, shared = (line[24:62].split() for line in out[11:13])
    assert shared[:3] == plain[:3] and shared[3:6] == ['0.0', '±', '0.0']
    # A tenth of the weights, a tenth of the multiply-adds:
    macs = [float(line.split()[-3]) for line in out[16:21]]
    assert 0.08 < macs[2] / macs[0] < 0.12
    assert 0.04 < macs[4] / macs[0] < 0.06
    # Nearly as many draws from a twentieth of the bytes:
    assert [line.split()[-4] for line in out[24:29]] == [
        '1,025', '1,024', '1,024', '1,024', '1,024',
    ]  # fmt: skip
    # A third of the edges is pruned:
    assert [line.split()[-4] for line in out[34:]] == [
        '12,618', '12,618', '8,202',
    ]  # fmt: skip
