"""Write the conclusion and the first table of each benchmark page in Markdown.

Pages of the documentation are templates, which only a build fills. The README
links this summary instead: `cd docs/source && python -m figures.summary`.
"""

import re
from typing import Any, List

from figures import PAGES, STRICT, variables
from figures.records import REPOSITORY

SOURCE = REPOSITORY / 'docs' / 'source'
TARGET = REPOSITORY / 'benchmark' / 'SUMMARY.md'
HEAD = """\
# Summary of the benchmarks

`cd docs/source && python -m figures.summary` computed this page from
[`results/`](results). `make docs` builds the pages with figures, caveats and
losing cases. The tables are explained there.
"""


def write() -> str:
    """Return the summary of all pages."""
    return '\n'.join([HEAD, *(section(page) for page in PAGES)])


def section(page: str) -> str:
    """Return the title, the conclusion and the first table of a page."""
    text = (SOURCE / 'benchmarks' / f'{page}.rst').read_text(encoding='utf-8')
    text = STRICT.from_string(text).render(variables(f'benchmarks/{page}'))
    title, _, rest = text.split('\n', 2)
    conclusion = to_markdown(rest.strip().split('\n\n')[0])
    origin = [
        f'* {to_markdown(line[2:])}'
        for line in text.splitlines()
        if line.startswith('| :download:')
    ]
    table = re.search(r'\.\. list-table::\n(?: +:.*\n)+\n((?: +.*\n)+)', text)
    assert table is not None, f'no table in {page}'
    rows = read_rows(table.group(1))
    rows.insert(1, ['---'] * len(rows[0]))
    lines = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join(
        [f'## {title}\n', f'{conclusion}\n', *lines, '', *origin, '']
    )


def read_rows(table: str) -> List[List[str]]:
    """Return the cells of a list-table."""
    rows: List[List[Any]] = []
    for line in table.splitlines():
        first, cell = re.fullmatch(r' +([* ]) -(.*)', line).groups()  # type: ignore[union-attr]
        if first == '*':
            rows.append([])
        rows[-1].append(to_markdown(cell.strip()).replace('|', r'\|'))
    return rows


def to_markdown(text: str) -> str:
    """Convert the markup that pages use, and unwrap lines."""
    text = re.sub(
        r':download:`([^<`]+) <[^`]*/(results/[^`]+)>`', r'[\1](\2)', text
    )
    text = re.sub(r':doc:`([^<`]+?)(?: <[^`]*>)?`', r'\1', text)
    text = re.sub(r':\w+:`~?(?:[\w.]*\.)?(\w+)`', r'`\1`', text)
    text = text.replace('``', '`').replace('\n', ' ')
    # Bold text ends before code in pages, since markup does not nest there:
    text = re.sub(r'\*\* (`\w+`) \*\*', r' \1 ', text)
    return text


def main() -> None:
    TARGET.write_text(write(), encoding='utf-8')


if __name__ == '__main__':
    main()
