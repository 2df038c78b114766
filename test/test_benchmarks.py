"""Assert that the scripts in `benchmark/` accept the documented commands."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from torch_geometric.testing import withPackage

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'benchmark' / 'README.md').read_text().replace('\n', ' ')
COMMANDS = re.findall(r'python (?:-W ignore )?-m (benchmark[^`]*)`', TEXT)


class ParsedError(Exception):
    """Ends a script once its arguments are read."""


@withPackage('sklearn')
@pytest.mark.parametrize('command', COMMANDS)
def test_command(command, monkeypatch):
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self, *args):
        parse_args(self, *args)
        raise ParsedError

    name, *arguments = shlex.split(command)
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    monkeypatch.setattr(sys, 'argv', [name, *arguments])
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ParsedError):
        runpy.run_module(name, run_name='__main__')


def test_commands_are_found():
    assert len(COMMANDS) >= 30
