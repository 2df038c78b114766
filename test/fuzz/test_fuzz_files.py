import os
import random

import pytest

from fuzz.fuzz_files import (
    KINDS,
    append,
    damage,
    flip,
    kill_writers,
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
def test_killed_writers(tmp_path):
    counts = kill_writers(tmp_path, 15, random.Random(0))
    assert counts['killed in a save'] > 0
    assert counts['broken'] == counts['leftovers'] == 0
