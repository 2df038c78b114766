"""The README is short, and each line of code and number in it is real."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
ROWS = [
    [cell.strip() for cell in line.split(' | ')]
    for line in README.splitlines()
    if line.startswith('| **')
]


def test_length():
    assert len(README.split()) <= 900
    assert len(re.findall(r'^\| ---', README, re.MULTILINE)) <= 2


def test_links():
    links = re.findall(r'\]\((?!https?:)([^)#]+)', README)
    assert len(links) > 10
    assert [x for x in links if not (REPOSITORY / x).exists()] == []


def test_code():
    """`test_docs.py` runs the code of the table of the home page."""
    page = (REPOSITORY / 'docs/source/index.rst').read_text(encoding='utf-8')
    for row in ROWS:
        lines = re.findall(r'`([^`]+)`', row[3])
        assert len(lines) == 3
        for line in lines:
            assert line in page.replace('`optimizer', 'optimizer').replace(
                'step()`', 'step()'
            )


@pytest.mark.parametrize(
    'page,gain',
    [
        ('fewer_graphs', '{imbalanced} points of F1'),
        ('shared_trees', '{large} an epoch'),
        ('condensing', '{over_random} points'),
        ('sparse_layers', '{ninety} a step'),
        ('full_batch', '{few_hand} an epoch'),
        ('lottery', '{gcn} points'),
    ],
)
def test_gain(page, gain, monkeypatch):
    """The benchmark pages compute the same numbers from results files."""
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(
        sys, 'path', [*sys.path, str(REPOSITORY / 'docs/source')]
    )
    content = import_module(f'figures.{page}').content()
    [row] = [row for row in ROWS if f'benchmarks/{page}.rst' in row[2]]
    assert gain.format(**content) in row[2]
