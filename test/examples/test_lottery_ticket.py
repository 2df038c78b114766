import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

from torch_geometric_ext.utils import Ticket

PATH = Path(__file__).parents[2] / 'examples' / 'lottery_ticket.py'


@withPackage('sklearn', 'tqdm')
@pytest.mark.filterwarnings('ignore:.*no weights will move')
def test_lottery_ticket(tmp_path, monkeypatch, capsys):
    argv = [str(PATH), f'--root={tmp_path}', f'--path={tmp_path / "t.pt"}']
    argv += [f'--{x}_epochs=4' for x in ['pretrain', 'search', 'retrain']]
    monkeypatch.setattr(sys, 'argv', [*argv, '--hidden_channels=40'])
    runpy.run_path(str(PATH), run_name='__main__')
    out = capsys.readouterr().out.splitlines()
    ticket = Ticket.load(tmp_path / 't.pt')
    assert out[:-5] == repr(ticket).splitlines()
    title, *rows = out[-4:]
    assert len({len(row) for row in [title, *rows]}) == 1  # Aligned.
    names = ['dense', 'ticket', 'narrow dense']
    assert [row[:14].strip() for row in rows] == names
    columns = [row[14:].replace(',', '').split() for row in rows]
    accuracy, parameters, edges, macs, seconds = zip(*columns)
    assert all(0 < float(x) < 100 for x in accuracy)
    # Weights of both layers, and biases (of the 16 channels that are left):
    assert parameters == ('3010', '174', '160')
    assert edges == ('12618', '10094', '12618')
    assert float(macs[1]) == round(ticket.macs[1] / 1e6, 2)
    assert float(macs[2]) < float(macs[1]) < 0.2 * float(macs[0])
