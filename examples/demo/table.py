"""The table of the demo: three trainings in each row."""

import json
from typing import Any, Callable, Dict, List, NamedTuple

from tqdm import tqdm

Results = Dict[str, Dict[str, 'Run']]

HEADER = (
    f'{"":<16}{"plain":>16}{"by hand":>17}{"ours":>17}{"speed-up":>10}   saved'
)


class Run(NamedTuple):
    metric: float  # In percent.
    seconds: float
    saved: str = ''


class Door(NamedTuple):
    name: str
    task: str
    metric_name: str
    plain: Callable[[], Run]
    by_hand: Callable[[], Run]
    ours: Callable[[], Run]


def run_doors(doors: List[Door]) -> Results:
    """Run all trainings, and print the row of each door when it is done."""
    results: Results = {}
    with tqdm(total=3 * len(doors), leave=False, disable=None) as bar:
        for door in doors:
            runs = results[door.name] = {}
            for name in ['plain', 'by_hand', 'ours']:
                bar.set_description(f'{door.name}, {name.replace("_", " ")}')
                runs[name] = getattr(door, name)()
                bar.update()
            bar.write(format_row(door, runs))
    return results


def format_row(door: Door, runs: Dict[str, Run]) -> str:
    cells = ''.join(
        f'{f"{run.metric:.1f} % {run.seconds:6.2f} s":>17}'
        for run in runs.values()
    )
    speedup = runs['plain'].seconds / runs['ours'].seconds
    return f'{door.name:<15}{cells}{speedup:>9.1f}x   {runs["ours"].saved}'


def summarize(results: Results) -> str:
    """Return the sentences that the table shows."""
    rows = results.values()
    speedup = [x['plain'].seconds / x['ours'].seconds for x in rows]
    change = [x['ours'].metric - x['plain'].metric for x in rows]
    cheaper = sum(x['by_hand'].seconds < x['ours'].seconds for x in rows)
    better = sum(x['by_hand'].metric > x['ours'].metric for x in rows)
    return (
        f'Ours trains {min(speedup):.1f} to {max(speedup):.1f} times as fast '
        f'as a plain loop, and changes test results by\n{min(change):+.1f} to '
        f'{max(change):+.1f} points. By hand is faster in {cheaper} rows, and '
        f'more accurate in {better}.'
    )


def to_json_lines(doors: List[Door], results: Results, **metadata: Any) -> str:
    """Return metadata and rows as the figure of the README reads them."""
    records = [metadata]
    for door, runs in zip(doors, results.values()):
        plain, ours = runs['plain'], runs['ours']
        records.append(
            dict(
                door=door.name,
                task=door.task,
                metric_name=door.metric_name,
                plain_seconds=round(plain.seconds, 3),
                plain_metric=round(plain.metric, 3),
                by_hand_seconds=round(runs['by_hand'].seconds, 3),
                by_hand_metric=round(runs['by_hand'].metric, 3),
                seconds=round(ours.seconds, 3),
                metric=round(ours.metric, 3),
                saved=ours.saved,
            )
        )
    return ''.join(json.dumps(record) + '\n' for record in records)
