"""Fill the page of training on distinct computation trees."""

import statistics
from functools import cache
from typing import Any, Dict, List, Optional

from figures import page
from figures.page import BLUE, ORANGE, plt
from figures.records import Row, read_rows, select, values

SIZES = [32, 128, 512, None]
COLORS = {2: BLUE, 3: ORANGE}


def steps() -> List[Row]:
    """Return the rows of training steps, without random threads."""
    rows = read_rows('shared_trees.jsonl', part='steps')
    return [x for x in rows if x['data_set'] != 'threads']


def speedups(
    rows: List[Row], size: Optional[int], **settings: Any
) -> List[float]:
    """Return the speed-ups of all models for a size of mini-batches."""
    key = 'kept' if size is None else 'fresh'
    return [x[key] for x in select(rows, batch_size=size, **settings)]


def median(rows: List[Row], size: Optional[int], layers: int) -> str:
    """Return the median speed-up of a number of layers."""
    return f'{statistics.median(speedups(rows, size, layers=layers)):.1f}x'


def draw(rows: List[Row]) -> Any:
    names = values(rows, 'data_set')
    figure, axes = plt.subplots(
        1, len(names), figsize=(page.WIDTH, 3.1), sharey=True
    )
    for ax, name in zip(axes, names):
        ax.axhline(1, color='black', linewidth=1)
        for layers, color in COLORS.items():
            settings = dict(data_set=name, layers=layers)
            groups = [speedups(rows, x, **settings) for x in SIZES]
            position = [i for i, x in enumerate(groups) if x]
            groups = [x for x in groups if x]
            ax.plot(
                position,
                [statistics.median(x) for x in groups],
                'o-',
                color=color,
                label=f'{layers} layers',
            )
            ends = [min(x) for x in groups], [max(x) for x in groups]
            ax.fill_between(position, *ends, color=color, alpha=0.2)
        ax.set_title(name)
        ax.set_yscale('log', base=2)
        ax.set_yticks([0.5, 1, 2, 4, 8, 16, 32, 64])
        ax.yaxis.set_major_formatter(lambda x, _: f'{x:g}x')
        ax.set_ylim(0.6, 80)
        ax.set_xlim(-0.3, 3.3)
        ax.set_xticks(range(len(SIZES)), [x or 'full' for x in SIZES])
    figure.supxlabel('graphs in a mini-batch', fontsize=10.5)
    axes[0].set_ylabel('speed-up of an epoch')
    page.legend(figure, axes[0], columns=2)
    return figure


def speed_table(rows: List[Row]) -> str:
    memory = {
        x['data_set']: x
        for x in read_rows('shared_trees.jsonl', part='memory')
    }
    cells = []
    for name in values(rows, 'data_set'):
        for layers in values(rows, 'layers'):
            settings = dict(data_set=name, layers=layers)
            groups = [speedups(rows, x, **settings) for x in SIZES]
            ranges = [page.times(*x) if x else '' for x in groups]
            peak = memory.get(name) if layers == 2 else None
            note = f'{peak["plain"]} → {peak["shared"]} MB' if peak else ''
            cells.append([name, layers, *ranges, note])
    header = ['Data set', 'Layers', '32 graphs', '128 graphs', '512 graphs']
    return page.table([*header, 'Full batch', 'Memory, full batch'], cells)


def kept_table(rows: List[Row]) -> str:
    """Compare with a careful user, who collates plain mini-batches once."""
    cells = []
    for size in SIZES[:-1]:
        for layers in COLORS:
            group = select(rows, batch_size=size, layers=layers)
            ratios = [
                [x[key] for x in group]
                for key in ['fresh', 'fresh_to_kept', 'kept']
            ]
            medians = [f'{statistics.median(x):.1f}x' for x in ratios]
            lowest = [f'{min(x):.2f}x' for x in ratios]
            both = [f'{a} (from {b})' for a, b in zip(medians, lowest)]
            cells.append([size, layers, *both])
    header = ['Graphs', 'Layers', 'Both fresh', 'Plain kept', 'Both kept']
    return page.table(header, cells)


@cache
def content() -> Dict[str, Any]:
    rows = steps()
    everything = read_rows('shared_trees.jsonl', part='steps')
    slowest = min(select(rows, batch_size=32), key=lambda x: x['fresh'])
    calm = [x for x in rows if not x['warned']]
    warned = [x for x in rows if x['warned'] and x['fresh']]
    calm_kept = [x for x in rows if not x['warned_kept']]
    levels = [x['all_levels'] / x['cached'] for x in everything]
    products = read_rows('tree_products.jsonl', part='steps')
    threads = select(everything, data_set='threads')
    return {
        'speed': page.show(
            draw(rows),
            'shared_trees',
            'Speed-up of an epoch by mini-batch size for four data sets',
        ),
        'speed_table': speed_table(rows),
        'kept_table': kept_table(rows),
        'large': {x: median(rows, 512, x) for x in COLORS},
        'full': {x: median(rows, None, x) for x in COLORS},
        'slowest': slowest,
        'slowest_fresh': page.times(slowest['fresh']),
        'slowest_kept': page.times(slowest['kept']),
        'calm_fresh': f'{min(x["fresh"] for x in calm if x["fresh"]):.2f}x',
        'calm_kept': f'{min(x["kept"] for x in calm_kept):.2f}x',
        'warned': len(warned),
        'warned_faster': sum(x['fresh'] > 1 for x in warned),
        'levels': f'{sum(x > 1 for x in levels)} of {len(levels)}',
        'level_slowest': f'{min(levels):.2f}x',
        'products': page.times(*(x['fresh'] for x in products if x['fresh'])),
        'threads_2': page.times(
            *(x['fresh'] for x in select(threads, layers=2))
        ),
        'threads_3': page.times(
            *(x['fresh'] for x in select(threads, layers=3))
        ),
        'source': page.source,
    }
