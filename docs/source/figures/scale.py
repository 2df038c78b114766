"""Fill the page about growth with the size of the data."""

from functools import cache
from typing import Any, Dict

from figures import page
from figures.page import BLUE, GREEN, ORANGE, PURPLE, plt
from figures.records import read_rows, select, values

NAMES = {
    'trees': ('share computation trees', 'graphs', BLUE),
    'condense 1 %': ('condense to 1 % of the bytes', 'graphs', ORANGE),
    'condense 10 %': ('condense to 10 % of the bytes', 'graphs', GREEN),
    'lottery': ('search a lottery ticket', 'nodes', PURPLE),
}


def draw() -> Any:
    rows = read_rows('scale.jsonl')
    figure, axes = plt.subplots(1, 2, figsize=(page.WIDTH, 3.1), sharex=True)
    titles = {'seconds': 'CPU seconds of one thread'}
    titles['gigabytes'] = 'peak memory [GB]'
    for ax, (key, title) in zip(axes, titles.items()):
        for name, (label, _, color) in NAMES.items():
            part = select(rows, name=name)
            ax.plot(
                [x['size'] for x in part],
                [x[key] for x in part],
                'o-',
                color=color,
                label=label,
            )
        ax.set_title(title)
        ax.set_xscale('log')
        ax.set_yscale('log')
        ax.yaxis.set_major_formatter(lambda x, _: f'{x:g}')
        ax.set_xlabel('graphs, or nodes of a graph')
    page.legend(figure, axes[0], columns=2)
    return figure


def size_table() -> str:
    lines = []
    for name in values(read_rows('scale.jsonl'), 'name'):
        label, unit, _ = NAMES.get(name, ('update RigL', 'channels', ''))
        for row in read_rows('scale.jsonl', name=name):
            memory = row['gigabytes']
            lines.append(
                [
                    label,
                    f'{row["size"]:,} {unit}',
                    f'{row["seconds"]:.2f}',
                    f'{row["growth"]:.1f}x' if row['growth'] else '',
                    f'{memory:.2f}' if memory else '',
                    row['detail'],
                ]
            )
    header = ['', 'Size', 'CPU seconds', 'Growth', 'Memory [GB]', 'Detail']
    return page.table(header, lines)


@cache
def content() -> Dict[str, Any]:
    large = {x['name']: x for x in read_rows('scale.jsonl', size=10**6)}
    return {
        'growth': page.show(
            draw(), 'scale', 'CPU seconds and memory by size of the data'
        ),
        'size_table': size_table(),
        'large': large,
        'most': page.times(max(x['growth'] for x in large.values())),
        'longest': f'{max(x["seconds"] for x in large.values()):.0f}',
        'memory': f'{max(x["gigabytes"] for x in large.values()):.1f}',
        'plans': {
            x['graphs']: x for x in read_rows('planning.jsonl', method='GDeR')
        },
        'searches': read_rows('lottery_scale.jsonl'),
        'sampling': page.times(
            *(
                x['ratio']
                for x in read_rows('neighbor_sampler.jsonl', method='by hand')
            )
        ),
        'source': page.source,
    }
