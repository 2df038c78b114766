import io
import sys

import pytest
from torch_geometric.nn import GCN

from searches import graph, prune


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize('log', [None, True, False])
@pytest.mark.parametrize('stderr', [Terminal, io.StringIO])
def test_progress_bar(stderr, log, monkeypatch):
    pytest.importorskip('tqdm')
    monkeypatch.setattr(sys, 'stderr', stderr())
    kwargs = {} if log is None else {'log': log}
    prune(GCN(5, 8, 2, 3), graph(), **kwargs)
    text = sys.stderr.getvalue()
    if log or (log is None and stderr is Terminal):
        for stage in ['dense', 'search', 'retrained']:
            assert f'{stage}: 100%' in text
    else:
        assert text == ''


def test_progress_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tqdm.auto', None)
    monkeypatch.setattr(sys, 'stderr', Terminal())
    prune(GCN(5, 8, 2, 3), graph())
    assert sys.stderr.getvalue() == ''
    with pytest.raises(ImportError, match="'log=True' .* requires 'tqdm'"):
        prune(GCN(5, 8, 2, 3), graph(), log=True, callbacks=[pytest.fail])


def test_progress_bar_without_standard_error(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', None)
    prune(GCN(5, 8, 2, 3), graph())
