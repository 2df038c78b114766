"""Draw cost against accuracy of each door: plain, by hand, and with this
package.

Reads the results of the demo, and writes the figure of the home page and of
the README: `cd docs/source && python -m figures.doors`.
"""

import json
from pathlib import Path
from typing import Any, List

from figures import page
from figures.page import BLUE, GRAY, plt
from figures.records import RESULTS, Row

SOURCE = RESULTS / 'demo.jsonl'
TARGET = Path(__file__).parent / 'doors.svg'


def read(path: Path) -> List[Row]:
    """Return one row for each door."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if 'door' in row]


def draw(rows: List[Row]) -> Any:
    """Draw seconds and scores of each door as a line from plain to ours."""
    height = 1.1 + 0.55 * len(rows)
    figure, axes = plt.subplots(
        1, 2, figsize=(page.WIDTH, height), sharey=True
    )
    for ax, key, title in [
        (axes[0], 'seconds', 'time [s], log scale'),
        (axes[1], 'metric', 'test score [%]'),
    ]:
        for i, row in enumerate(rows):
            plain, hand, ours = (
                row[name] for name in [f'plain_{key}', f'by_hand_{key}', key]
            )
            ax.plot([plain, ours], [i, i], color=BLUE, linewidth=2.5)
            ax.plot(plain, i, 'o', color=GRAY, label=legend('plain', i), ms=8)
            ax.plot(
                hand, i, '|', color=GRAY, label=legend('by hand', i), ms=14
            )
            ax.plot(ours, i, 'o', color=BLUE, label=legend('ours', i))
            ax.annotate(
                describe(row, key),
                (max(plain, hand, ours), i),
                (8, 0),
                textcoords='offset points',
                verticalalignment='center',
                fontsize=9,
            )
        ax.set_title(title)
        ax.grid(axis='y', visible=False)
    axes[0].set_xscale('log')
    axes[0].margins(x=0.3)
    low, high = axes[1].get_xlim()
    axes[1].set_xlim(low, high + 0.7 * (high - low))  # For labels.
    axes[0].xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axes[0].set_yticks(
        range(len(rows)), [f'{row["door"]}\n{row["task"]}' for row in rows]
    )
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    page.legend(figure, axes[0], columns=3)
    return figure


def legend(label: str, i: int) -> str:
    """Name the points of the first row only."""
    return label if i == 0 else f'_{label}'


def describe(row: Row, key: str) -> str:
    """Return the values of a line."""
    if key == 'seconds':
        return page.times(row['plain_seconds'] / row['seconds'])
    pair = [f'{row[x]:.1f}' for x in ['plain_metric', 'metric']]
    return f'{row["metric_name"]} {" → ".join(pair)}'


def main() -> None:
    with plt.rc_context(page.STYLE):
        page.save(draw(read(SOURCE)), TARGET)


if __name__ == '__main__':
    main()
