import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.fuzz_files import (
    KINDS,
    append,
    damage,
    flip,
    swap,
)

pytestmark = pytest.mark.filterwarnings('ignore:Trees of depth')


@pytest.mark.parametrize('name', KINDS)
def test_damaged_files_are_refused(name, tmp_path):
    kind, path = KINDS[name], tmp_path / 'file.pt'
    kind.write(path)
    content, rng = path.read_bytes(), random.Random(0)
    damaged = [flip(content, rng) for _ in range(100)]
    damaged += [content[: i * len(content) // 20] for i in range(20)]
    damaged += [append(content, rng) for _ in range(5)]
    damaged += [x for x in [swap(content, rng)] if x != content]
    counts = damage(kind, path, iter(damaged))
    assert counts['SILENTLY WRONG'] == counts['other exception'] == 0
    # Archives of version 0.1 hold bytes without meaning:
    assert counts['refused'] == len(damaged) or '0.1' in name


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='Needs processes')
def test_killed_writers():
    # The writers are forks, which cannot use threads of this process.
    command = [sys.executable, '-m', 'fuzz.fuzz_files', '--cases', '0']
    out = subprocess.run(
        [*command, '--kills', '15'],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    counts = re.search(
        '15 kills, ([0-9]+) killed in a save, 0 broken, 0 leftovers', out
    )
    assert counts is not None and int(counts[1]) > 0
