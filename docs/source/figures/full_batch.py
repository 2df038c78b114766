"""Fill the page of accelerated full-batch training."""

from functools import cache
from typing import Any, Dict, List

from figures import page
from figures.page import BLUE, ORANGE, plt
from figures.records import (
    RESULTS,
    Row,
    read_blocks,
    read_rows,
    select,
    values,
)

MODELS = ['GCN', 'SAGE', 'GIN', 'GAT']
LABELS = {'few': '20 labels a class', 'dense': 'labels on 60 % of the nodes'}
SHORT = {'few': '20 a class', 'dense': '60 %'}  # In the table.
RIVALS = {
    'x plain': ('against the plain loop', ORANGE, -0.16),
    'x hand': ('against a loop optimized by hand', BLUE, 0.16),
}


def cells() -> List[Row]:
    """Return the first measurement of each cell on one thread."""
    found: Dict[Any, Row] = {}
    for block in read_blocks(RESULTS / 'full_batch_epochs.jsonl'):
        if block.meta['threads'] == 1:
            for row in block.rows:
                keys = ['data_set', 'labels', 'model', 'hidden']
                found.setdefault(tuple(row[x] for x in keys), row)
    return list(found.values())


def draw(rows: List[Row]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(page.WIDTH, 5.2), sharey=True)
    pairs = [(x, y) for x in values(rows, 'data_set') for y in MODELS]
    pairs = [x for x in pairs if select(rows, data_set=x[0], model=x[1])]
    for ax, (labels, title) in zip(axes, LABELS.items()):
        ax.axvline(1, color='black', linewidth=1)
        for i, (name, model) in enumerate(pairs):
            part = select(rows, data_set=name, model=model, labels=labels)
            for key, (label, color, shift) in RIVALS.items():
                ax.plot(
                    [x[key] for x in part],
                    [i + shift] * len(part),
                    'o-',
                    color=color,
                    label=label if i == 0 else None,
                )
        ax.set_title(title)
        ax.set_xscale('log')
        ax.set_xticks([1, 2, 5, 10, 20, 50, 100])
        ax.xaxis.set_major_formatter(lambda x, _: f'{x:g}x')
        ax.minorticks_off()
        ax.set_yticks(range(len(pairs)), [' '.join(x) for x in pairs])
        ax.set_ylim(len(pairs) - 0.5, -0.5)
    figure.supxlabel(
        'speed-up of an epoch (64 and 512 channels)', fontsize=10.5
    )
    page.legend(figure, axes[0], columns=2)
    return figure


def speed_table(rows: List[Row]) -> str:
    lines = []
    for name in values(rows, 'data_set'):
        for labels, title in SHORT.items():
            part = select(rows, data_set=name, labels=labels)
            (gcn,) = select(part, model='GCN', hidden=512)
            lines.append(
                [
                    name,
                    title,
                    *(f'{gcn[x]:,.0f} ms' for x in ['plain', 'hand', 'fast']),
                    page.times(*(x['x plain'] for x in part)),
                    page.times(*(x['x hand'] for x in part)),
                ]
            )
    header = ['Data set', 'Labels', 'Plain', 'By hand']
    header += ['Accelerated', 'To plain']
    return page.table([*header, 'To hand'], lines)


def cached_runs() -> List[Row]:
    """Return the middle of the runs of each cell by speed-up."""
    found: Dict[Any, List[Row]] = {}
    for row in read_rows('full_batch_cached.jsonl'):
        cell = tuple(row[x] for x in ['data_set', 'labels', 'hidden'])
        found.setdefault(cell, []).append(row)
    order = [sorted(x, key=lambda y: y['x cached']) for x in found.values()]
    return [runs[(len(runs) - 1) // 2] for runs in order]


def cached_table() -> str:
    lines = [
        [
            row['data_set'],
            SHORT[row['labels']],
            row['hidden'],
            *(f'{row[x]:,.1f} ms' for x in ['hand', 'cached', 'fast']),
            page.times(row['x cached']),
        ]
        for row in cached_runs()
    ]
    header = ['Data set', 'Labels', 'Channels', 'By hand']
    header += ['Cached by hand', 'Accelerated', 'To cached']
    return page.table(header, lines)


def to_cached(**settings: Any) -> str:
    """Return the speed-up to a loop that caches the first aggregation."""
    rows = select(cached_runs(), **settings)
    return page.times(*(x['x cached'] for x in rows))


@cache
def content() -> Dict[str, Any]:
    rows = cells()
    every = read_rows('full_batch_epochs.jsonl')
    layers = read_rows('propagation.jsonl', part='layers')
    slowest = min(rows, key=lambda x: x['x hand'])
    cached = [x['gcn_conv'] / x['dense'] for x in select(layers, cached=True)]
    uncached = [
        x['gcn_conv'] / x[key]
        for x in select(layers, cached=False, outputs=8)
        for key in ['dense', 'sparse']
    ]
    single = [x for x in every if x.get('plain err')]
    few, dense = (select(rows, labels=x) for x in LABELS)
    by_hand = read_rows('full_batch_cached.jsonl')
    runs = cached_runs()
    short = select(runs, labels='few', hidden=64)
    extra = [x['fast'] - x['cached'] for x in short]
    return {
        'speed': page.show(
            draw(rows),
            'full_batch',
            'Speed-up of an epoch for each data set and model',
        ),
        'speed_table': speed_table(rows),
        'cached_table': cached_table(),
        'cached': to_cached(),
        'cached_64': to_cached(hidden=64),
        'cached_512': to_cached(hidden=512),
        'few_hand': page.times(*(x['x hand'] for x in few)),
        'dense_hand': page.times(*(x['x hand'] for x in dense)),
        'few_plain': page.times(*(x['x plain'] for x in few)),
        'dense_plain': page.times(*(x['x plain'] for x in dense)),
        'slowest': slowest,
        'slowest_hand': page.times(slowest['x hand']),
        'double': f'{max(x["double"] for x in every if x.get("double")):.0e}',
        'num_runs': len(by_hand) // len(runs),
        'cached_runs': page.times(*(x['x cached'] for x in by_hand)),
        'overhead': f'{min(extra):.1f} to {max(extra):.1f}',
        'cached_double': f'{max(x["cached double"] for x in by_hand):.0e}',
        'plain_error': f'{single[0]["plain err"]:.1e}',
        'fast_error': f'{single[0]["fast err"]:.1e}',
        'setup': f'{max(x["setup s"] for x in rows):.0f}',
        'largest': max(rows, key=lambda x: x['MiB cache']),
        'cached_conv': page.times(*cached),
        'uncached_conv': page.times(*uncached),
        'source': page.source,
    }
