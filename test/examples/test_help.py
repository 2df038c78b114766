"""Each option of each example has a description and a default."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

EXAMPLES = Path(__file__).parents[2] / 'examples'
# `test_quickstart.py` tests the demo.
NAMES = sorted({path.stem for path in EXAMPLES.glob('*.py')} - {'quickstart'})


@withPackage('datamol', 'gensim', 'sklearn', 'tqdm')
@pytest.mark.parametrize('name', NAMES)
def test_help(name, monkeypatch, capsys):
    parsers = []
    parse_args = argparse.ArgumentParser.parse_args

    def record(self, *args):
        parsers.append(self)
        return parse_args(self, *args)

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', record)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', '--help'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / f'{name}.py'), run_name='__main__')
    (parser,) = parsers
    out = ' '.join(capsys.readouterr().out.split())
    options = [x for x in parser._actions if x.dest != 'help']
    assert len(options) >= 4
    for option in options:
        assert option.help and option.default is not None, option.dest
        assert f'{option.help} (default: {option.default})' in out


def test_examples_are_found():
    assert 'fewer_graphs' in NAMES and len(NAMES) >= 7
