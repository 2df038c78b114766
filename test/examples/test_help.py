"""Each option of each example has a description and a default."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

EXAMPLES = Path(__file__).parents[2] / 'examples'
NAMES = sorted(path.stem for path in EXAMPLES.glob('*.py')) + ['demo']


@withPackage('chemicals', 'datamol', 'gensim', 'rdkit', 'sklearn', 'tqdm')
@pytest.mark.parametrize('name', NAMES)
def test_help(name, monkeypatch, capsys):
    parsers = []
    parse_args = argparse.ArgumentParser.parse_args

    def record(self, *args):
        parsers.append(self)
        return parse_args(self, *args)

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', record)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', '--help'])
    monkeypatch.syspath_prepend(EXAMPLES.parent)
    with pytest.raises(SystemExit):
        runpy.run_module(f'examples.{name}', run_name='__main__')
    (parser,) = parsers
    out = ' '.join(capsys.readouterr().out.split())
    options = [x for x in parser._actions if x.dest != 'help']
    assert len(options) >= 4
    for option in options:
        assert option.help, option.dest
        # Without an output file, the demo only prints:
        assert option.default is not None or option.dest == 'output'
        assert f'{option.help} (default: {option.default})' in out


def test_examples_are_found():
    assert {'compare_methods', 'fewer_graphs'} < set(NAMES)
