"""Fill the page of condensed data sets."""

from functools import cache
from typing import Any, Dict, List

from figures import page
from figures.page import BLUE, GRAY, ORANGE, PURPLE, plt
from figures.records import (
    RESULTS,
    Row,
    read_blocks,
    read_rows,
    select,
    values,
)

BUDGETS = [0.001, 0.01, 0.05, 0.1]
PANELS = ['NCI1', 'BACE', 'BBBP', 'PROTEINS', 'IMDB-BINARY', 'IMDB-MULTI']
METHODS = {
    'mirage-shared': ('herded, shared trees', BLUE, 'o-'),
    'random-shared': ('random, shared trees', BLUE, 'o:'),
    'mirage': ('herded, plain bytes', ORANGE, 'o-'),
    'random': ('random graphs', ORANGE, 'o:'),
    'patterns': ('frequent patterns', PURPLE, 'o-'),
}
# The best of them counts nodes or edges on all data sets:
WITHOUT_GRAPHS = ['untrained', 'node count', 'edge count']


def unique(rows: List[Row]) -> List[Row]:
    """Keep the first row of each setting: some were run twice."""
    found: Dict[Any, Row] = {}
    for row in rows:
        keys = ['data_set', 'model', 'pooling', 'method', 'bytes']
        found.setdefault(tuple(row[x] for x in keys), row)
    return list(found.values())


def without_graphs(rows: List[Row]) -> Row:
    """Return the best of the three methods that see no graphs."""
    rivals = [x for x in rows if x['method'] in WITHOUT_GRAPHS]
    return max(rivals, key=lambda x: x['test'])


def draw(rows: List[Row]) -> Any:
    figure, axes = plt.subplots(2, 3, figsize=(page.WIDTH, 4.9), sharex=True)
    for ax, name in zip(axes.flat, PANELS):
        part = select(rows, data_set=name, model='GIN', pooling='sum')
        (full,) = select(part, method='full')
        ax.axhline(
            full['test'], color='black', linewidth=1, label='all graphs'
        )
        ax.axhline(
            without_graphs(part)['test'],
            color=GRAY,
            linestyle='--',
            linewidth=1.2,
            label='no graphs',
        )
        for method, (label, color, style) in METHODS.items():
            found = {
                x['bytes']: x['test'] for x in select(part, method=method)
            }
            shown = [i for i, x in enumerate(BUDGETS) if x in found]
            ax.plot(
                shown,
                [found[BUDGETS[i]] for i in shown],
                style,
                color=color,
                label=label,
            )
        ax.set_title(name)
        ax.set_xticks(range(4), [f'{100 * x:g} %' for x in BUDGETS])
    figure.supxlabel('bytes kept', fontsize=10.5)
    figure.supylabel('test score [%]', fontsize=10.5)
    page.legend(figure, axes.flat[0], columns=3)
    return figure


def converged() -> Dict[str, Row]:
    """Return the results of HIV with five times as many steps."""
    (rows,) = [
        block.rows
        for block in read_blocks(RESULTS / 'mirage.jsonl')
        if 'HIV --models GIN' in block.meta['command']
        and '--num_steps 2000' in block.meta['command']
    ]
    return {x['method']: x for x in rows}


def score_table(rows: List[Row]) -> str:
    methods = ['random', 'mirage', 'random-shared', 'mirage-shared']
    cells = []
    longer = converged()['full']['test']
    for name in values(rows, 'data_set'):
        part = select(rows, data_set=name, model='GIN', pooling='sum')
        (full,) = select(part, method='full')
        line = [
            name,
            f'{full["test"]:.1f}'
            + (f' ({longer:.1f})' if name == 'HIV' else ''),
            f'{without_graphs(part)["test"]:.1f}',
        ]
        for method in methods:
            found = select(part, method=method, bytes=0.01)
            line.append(
                f'{found[0]["test"]:.1f} ± {found[0]["error"]:.1f}'
                if found
                else ''
            )
        cells.append(line)
    header = ['Data set', 'All graphs', 'No graphs', 'Random', 'Herded']
    return page.table([*header, 'Random, shared', 'Herded, shared'], cells)


def herding() -> Dict[str, str]:
    """Compare the default herding with exact herding on the largest class."""
    rows = read_rows('herding.jsonl')
    size = max(x['graphs'] for x in rows)
    (exact,) = select(rows, graphs=size, method='exact')
    (fast,) = select(rows, graphs=size, method='default')
    gaps = [
        fast['distances'][key] / value - 1
        for key, value in exact['distances'].items()
    ]
    return {
        'graphs': f'{size:,}',
        'speed': page.times(exact['seconds'] / fast['seconds']),
        'gap': f'{100 * max(map(abs, gaps)):.0f} %',
    }


@cache
def content() -> Dict[str, Any]:
    rows = unique(read_rows('mirage.jsonl'))
    gin = select(rows, model='GIN', pooling='sum')

    def gaps(ratio: float, rival: str, budget: float) -> List[float]:
        rivals = select(gin, method=rival, bytes=budget)
        tests = {x['data_set']: x['test'] for x in rivals}
        return [
            x['test'] - tests[x['data_set']]
            for x in select(gin, method='mirage-shared', bytes=ratio)
            if x['data_set'] in tests
        ]

    def drop(*names: str) -> str:
        rows = [x for x in gin if x['data_set'] in names and x['bytes']]
        return f'{max(x["test"] - x["last"] for x in rows):.0f}'

    random = gaps(0.01, 'random', 0.01)
    counts = [
        x['test'] - without_graphs(select(gin, data_set=x['data_set']))['test']
        for x in select(gin, method='mirage-shared', bytes=0.01)
    ]
    splits = [x['runs'] for x in gin if x['bytes'] == 0.01]
    large = {x['name']: x for x in read_rows('scale.jsonl', size=10**6)}
    return {
        'scores': page.show(
            draw(rows),
            'condensing',
            'Test score by bytes kept for six data sets',
        ),
        'score_table': score_table(rows),
        'over_random': f'{min(random):.0f} to {max(random):.0f}',
        'over_counts': ' to '.join(page.signed(f(counts)) for f in [min, max]),
        'splits': f'{min(splits)} to {max(splits)}',
        'loss_1': f'{-min(gaps(0.01, "full", 1.0)):.0f}',
        'loss_10': f'{-min(gaps(0.1, "full", 1.0)):.0f}',
        'longer': converged(),
        'drop': drop,
        'herding': herding(),
        'large': large['condense 10 %'],
        'source': page.source,
    }
