"""The README is short, and each line of code and number in it is real."""

import re
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


GAINS = {
    'fewer_graphs': ['{imbalanced} points of F1 (AUC: {imbalanced_auc})'],
    'shared_trees': ['{large[2]} an epoch', '{large[3]} with three'],
    'condensing': ['{over_counts} points', 'at most {loss_1} behind'],
    'sparse_layers': ["{ninety} a layer's training step"],
    'full_batch': [
        '{few_plain} an epoch',
        '{dense_plain} with many',
        '{cached} of a GCN loop that caches A·X',
    ],
    'lottery': ['{gcn_weights} of its', 'Worst of all models: −{worst}'],
}


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / 'docs/source'))
    return import_module('figures')


@pytest.mark.parametrize('page,row', [*zip(GAINS, ROWS, strict=True)])
def test_gains(figures, page, row):
    """The benchmark pages compute the same numbers from results files."""
    values = figures.variables(f'benchmarks/{page}')
    for gain in GAINS[page]:
        assert gain.format(**values) in row[2]


def test_summary(figures):
    summary = import_module('figures.summary')
    assert summary.TARGET.read_text(encoding='utf-8') == summary.write()
