"""Read results files.

A file of JSON lines holds blocks: a line of metadata, which has a command, and
one line for each row. See `benchmark/record.py`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

REPOSITORY = Path(__file__).parents[3]
RESULTS = REPOSITORY / 'benchmark' / 'results'

Row = Dict[str, Any]


class Block(NamedTuple):
    """The rows of a command."""

    meta: Row
    rows: List[Row]


@cache
def read_blocks(path: Path) -> List[Block]:
    """Return the blocks of a results file."""
    blocks: List[Block] = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if 'command' in row:
            blocks.append(Block(row, []))
        else:
            blocks[-1].rows.append(row)
    return blocks


def read_rows(name: str, /, **settings: Any) -> List[Row]:
    """Return the rows of a results file that have some settings."""
    rows = [x for block in read_blocks(RESULTS / name) for x in block.rows]
    return select(rows, **settings)


def select(rows: List[Row], **settings: Any) -> List[Row]:
    """Return the rows that have some settings."""
    return [
        row
        for row in rows
        if all(row.get(key) == value for key, value in settings.items())
    ]


def values(rows: List[Row], key: str) -> List[Any]:
    """Return the distinct values of a column in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows if key in row))
