"""Results of benchmarks, and the figures that are drawn from them."""

import argparse
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List

import pytest

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / 'benchmark' / 'results'
SOURCE = REPOSITORY / 'docs' / 'source'
KEYS = {'command', 'date', 'versions', 'processor', 'threads', 'seeds'}
FILES = sorted(RESULTS.rglob('*.jsonl'))


def read(path: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def record() -> ModuleType:
    path = REPOSITORY / 'benchmark' / 'record.py'
    spec = importlib.util.spec_from_file_location('record', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_results_name_their_origin(path: Path) -> None:
    rows = read(path)
    heads = [i for i, row in enumerate(rows) if 'command' in row]
    assert heads[0] == 0
    for i, end in zip(heads, [*heads[1:], len(rows)]):
        assert rows[i].keys() >= KEYS
        assert {'torch', 'torch_geometric'} <= rows[i]['versions'].keys()
        assert rows[i]['processor']
        assert '/tmp' not in rows[i]['command']
        assert end > i + 1, 'a command without rows'


def test_pages_use_files_that_exist() -> None:
    found = set()
    for path in [*SOURCE.glob('figures/*.py'), *SOURCE.rglob('*.rst')]:
        names = re.findall(r"'([\w./-]+\.(?:jsonl|txt))'", path.read_text())
        found |= {*names}
    missing = [name for name in found if not list(RESULTS.rglob(name))]
    assert len(found) > 20
    assert missing == []


def test_readme_links_files_that_exist() -> None:
    readme = REPOSITORY / 'benchmark' / 'README.md'
    links = re.findall(r'\]\((results/[^)]+)\)', readme.read_text())
    assert len(links) > 20
    assert [x for x in links if not (readme.parent / x).exists()] == []


def test_record(record: ModuleType, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    record.add_argument(parser)
    path = tmp_path / 'results' / 'rows.jsonl'
    args = parser.parse_args(['--output', str(path)])
    record.start(args.output, range(2), settings='fast')
    record.write(method='plain', seconds=1.5)
    record.start(args.output)
    record.write(method='ours', seconds=None)
    first, plain, second, ours = read(path)
    assert first.keys() == KEYS | {'settings'}
    assert first['seeds'] == [0, 1]
    assert second['seeds'] is None
    assert plain == {'method': 'plain', 'seconds': 1.5}
    assert ours == {'method': 'ours', 'seconds': None}


def test_record_without_file(record: ModuleType, tmp_path: Path) -> None:
    args = argparse.ArgumentParser()
    record.add_argument(args)
    record.start(args.parse_args([]).output)
    record.write(method='plain')
    assert list(tmp_path.iterdir()) == []


def test_record_drops_local_paths(record: ModuleType) -> None:
    argv = ['/usr/bin/python3', '-m', 'benchmark.scale', '--root', '/tmp/x']
    argv += ['--output', '/tmp/y.jsonl', '--only', 'trees']
    expected = 'python -m benchmark.scale --root DATA --only trees'
    assert record.clean_command(argv) == expected


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip('matplotlib')
    pytest.importorskip('jinja2')
    monkeypatch.syspath_prepend(str(SOURCE))
    return importlib.import_module('figures.doors')


def test_doors(
    doors: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = dict(
        door='shared trees',
        task='GIN on molecules',
        plain_seconds=3.0,
        plain_metric=74.7,
        by_hand_seconds=2.0,
        by_hand_metric=74.0,
        seconds=1.5,
        metric=74.2,
        metric_name='accuracy',
        saved='half of the time',
    )
    path = tmp_path / 'demo.jsonl'
    path.write_text(json.dumps({'command': 'make demo'}) + '\n')
    with path.open('a') as file:
        print(json.dumps(row), file=file)
    assert doors.read(path) == [row]
    assert doors.describe(row, 'seconds') == '2.0x'
    assert doors.describe(row, 'metric') == 'accuracy 74.7 → 74.2'
    monkeypatch.setattr(doors, 'SOURCE', path)
    monkeypatch.setattr(doors, 'TARGET', tmp_path / 'doors.svg')
    doors.main()
    first = doors.TARGET.read_text()
    assert 'GIN on molecules' in first
    doors.main()
    assert doors.TARGET.read_text() == first
