import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'quickstart.py'


@withPackage('datamol', 'sklearn', 'tqdm')
@pytest.mark.filterwarnings('ignore:.*no weights will move')
def test_quickstart(tmp_path, monkeypatch, capsys):
    argv = [str(PATH), '--epochs=1', '--seeds=2', f'--root={tmp_path}']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    assert '1,025 training and 257 test molecules' in out[0]
    names = [line[:24].strip() for line in out]
    assert out[2] == '4 layers, 64 channels, 1 epochs, batches of 32'
    assert names[3:10] == [
        'method',
        'full data',
        'half the epochs',
        'soft random 50%',
        'GDeR 50%',
        'soft random 30%',
        'GDeR 30%',
    ]
    assert out[11] == '2 layers, 64 channels, 1 epochs, full batches'
    assert names[12:16] == [
        'method',
        'plain graphs',
        'shared trees',
        'shared, level-wise',
    ]
    assert out[17] == '2 layers, 256 channels, 1 epochs, batches of 64'
    assert names[18:24] == [
        'method',
        'dense',
        'dense, 1/10 of weights',
        'RigL, 1/10',
        'dense, 1/20 of weights',
        'RigL, 1/20',
    ]
    assert out[25] == '2 layers, 64 channels, 1 epochs, batches of 128'
    assert names[26:32] == [
        'method',
        'full data',
        'random, 5% of bytes',
        'Mirage, 5%',
        'random, shared, 5%',
        'Mirage, shared, 5%',
    ]
    assert out[33] == 'GCN on DigitsKNN: 1,797 nodes, 2 paired seeds'
    assert out[35].startswith('2 layers, 128 channels, 2 epochs ')
    assert names[36:] == [
        'method',
        'dense',
        'dense, 1/20 of weights',
        'ticket, 1/20',
    ]
    tables = [out[3:10], out[12:16], out[18:24], out[26:32], out[36:]]
    for table in tables:
        assert len({len(line) for line in table}) == 1  # Columns are aligned.
    # Budgets are exact:
    assert [line.split()[-4] for line in out[4:10]] == [
        '1,025', '1,025', '512', '512', '308', '308',
    ]  # fmt: skip
    # Training on shared trees gives equal results:
    results = [line[24:62] for line in out[13:16]]
    assert results[0].split()[:3] == results[1].split()[:3]
    assert results[1] == results[2] and '0.0 ± 0.0' in results[1]
    # A tenth of the weights, a tenth of the multiply-adds:
    macs = [float(line.split()[-3]) for line in out[19:24]]
    assert 0.08 < macs[2] / macs[0] < 0.12
    assert 0.04 < macs[4] / macs[0] < 0.06
    # Nearly as many draws from a twentieth of the bytes:
    assert [line.split()[-4] for line in out[27:32]] == [
        '1,025', '1,024', '1,024', '1,024', '1,024',
    ]  # fmt: skip
    # A third of the edges is pruned:
    assert [line.split()[-4] for line in out[37:]] == [
        '12,618', '12,618', '8,202',
    ]  # fmt: skip
