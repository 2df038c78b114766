"""Write tables, figures and sources of a page as reStructuredText."""

import re
import statistics
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, Iterable, List, Sequence

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402

from figures.records import REPOSITORY, RESULTS, read_blocks  # noqa: E402

FOLDER = REPOSITORY / 'docs' / 'build' / 'figures'
WIDTH = 7.3  # Inches, which are 700 pixels.

# Colors that differ for color-blind readers, too (Okabe and Ito):
BLUE, ORANGE, GREEN = '#0072B2', '#D98200', '#009E73'
RED, PURPLE, GRAY = '#C44E00', '#B0589A', '#666666'

STYLE = {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 10.5,
    'axes.titleweight': 'bold',
    'figure.constrained_layout.use': True,
    'font.size': 10.5,
    'grid.color': '#DDDDDD',
    'grid.linewidth': 0.7,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'lines.markersize': 5,
    'svg.hashsalt': 'figures',  # The same file for the same data.
}


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={'Date': None}, facecolor='white')
    plt.close(figure)


def show(figure: Any, name: str, alt: str) -> str:
    """Write a figure, and return the directive that shows it."""
    save(figure, FOLDER / f'{name}.svg')
    lines = [f'.. image:: /../build/figures/{name}.svg', f':alt: {alt}']
    return '\n   '.join([*lines, ':width: 700px']) + '\n'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table, where a row group names its first column once."""
    lines = ['.. list-table::', '   :header-rows: 1', '   :align: left', '']
    group = None
    for row in [header, *rows]:
        cells = [keep_together(str(x)) for x in row]
        if cells[0] == group:
            cells[0] = ''
        else:
            group = cells[0]
        for i, cell in enumerate(cells):
            lines.append(f'   {"*" if i == 0 else " "} - {cell}')
    return '\n'.join(lines) + '\n'


def keep_together(cell: str) -> str:
    """Do not wrap a number and its unit."""
    if not re.match(r'[+−]?\d', cell) or len(cell) > 18:
        return cell
    return cell.replace(' to ', '–\u2060').replace(' ', '\u00a0')


def legend(figure: Any, axes: Any, columns: int) -> None:
    """Write the legend of one axes object above the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=columns)


def source(*names: str) -> str:
    """Return the script, machine and date of results, with their files."""
    return ''.join(f'| {describe(name)}\n' for name in names)


def describe(name: str) -> str:
    """Return the script, machine and date of a results file."""
    link = f':download:`{Path(name).name} </../../benchmark/results/{name}>`'
    if not name.endswith('.jsonl'):
        return f'{link}: a text table.'
    metas = [block.meta for block in read_blocks(RESULTS / name)]
    scripts = join(
        word
        for x in metas
        for word in x['command'].split()
        if '.py' in word or word.startswith('benchmark.')
    )
    machines = join(x['processor'] for x in metas)
    versions = join(x['versions']['torch'] for x in metas)
    threads = sorted({t for x in metas for t in as_list(x['threads'])})
    dates = sorted({x['date'] for x in metas if x['date']})
    parts = [
        f'``{scripts}`` on {machines}',
        ' and '.join(map(str, threads))
        + (' threads' if threads != [1] else ' thread'),
        f'PyTorch {versions}' if versions else '',
        ' to '.join(dates[:: max(len(dates) - 1, 1)]),
    ]
    notes = join(x.get('note') for x in metas)
    return f'{link}: {", ".join(x for x in parts if x)}. {notes}'.rstrip()


def as_list(value: Any) -> List[Any]:
    """Return a value as a list."""
    return value if isinstance(value, list) else [value]


def join(words: Iterable[Any]) -> str:
    """Return distinct words as an enumeration."""
    return ', '.join(dict.fromkeys(x for x in words if x))


def mean(numbers: Sequence[float]) -> float:
    """Return the mean."""
    return statistics.fmean(numbers)


def error(numbers: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    if len(numbers) < 2:
        return 0.0
    return statistics.stdev(numbers) / len(numbers) ** 0.5


def signed(number: float) -> str:
    """Return a difference, rounded half away from zero."""
    tenth = Decimal('0.1')
    exact = Decimal(f'{number:.6f}').quantize(tenth, ROUND_HALF_UP)
    return f'{exact:+}'.replace('-', '−')


def plus_minus(numbers: Sequence[float]) -> str:
    """Return the mean difference and its standard error."""
    return f'{signed(mean(numbers))} ± {error(numbers):.1f}'


def ratio(number: float) -> str:
    """Return a ratio with two or three digits that matter."""
    digits = 2 if number < 2 else 1 if number < 10 else 0
    return f'{number:.{digits}f}'


def times(*numbers: float) -> str:
    """Return a speed-up, or the range of several."""
    ends = [ratio(min(numbers)), ratio(max(numbers))]
    return ' to '.join(dict.fromkeys(ends)) + 'x'
