"""Fill the page of sparse layers."""

from functools import cache
from typing import Any, Dict, List, Tuple

from figures import page
from figures.page import BLUE, GREEN, ORANGE, PURPLE, plt
from figures.records import RESULTS, Row, read_blocks, read_rows, select

SPARSITIES = [0.8, 0.9, 0.95, 0.98]
SHAPES = [[2708, 1433, 512], [16384, 256, 256], [65536, 128, 128]]
FOLDER = 'sparse_linear'
CURRENT = f'{FOLDER}/amd-epyc-cpu-family-25-model-17.jsonl'
OTHERS = [
    f'{FOLDER}/amd-epyc-zen-5-version-0.1.jsonl',
    f'{FOLDER}/other-processors-version-0.1.jsonl',
]
COLORS = [BLUE, ORANGE, GREEN, PURPLE]
TITLES = {'AMD EPYC, cpu family 25, model 17, stepping 1': 'AMD EPYC (Zen 4)'}


def speedup(row: Row, rival: str = 'ours') -> float:
    """Return the speed-up to a dense layer of one thread."""
    if 'speedup' in row:
        return row['speedup']
    times = row['quartiles_ms']
    return times['dense'][1] / times[rival][1]


def curves() -> List[Tuple[str, List[Row]]]:
    """Return the rows of each processor and version, by title."""
    found: Dict[str, List[Row]] = {}
    for name in [CURRENT, *OTHERS]:
        for meta, rows in read_blocks(RESULTS / name):
            processor = TITLES.get(meta['processor'], meta['processor'])
            version = 'version 0.1' if name in OTHERS else 'this version'
            found.setdefault(f'{processor}, {version}', []).extend(rows)
    return [*found.items()]


def steps(rows: List[Row], shape: List[int]) -> Dict[float, Row]:
    """Return training steps on one thread by sparsity.

    Of several runs, take the one whose speed-up is in the middle.
    """
    found: Dict[float, List[Row]] = {}
    for row in select(rows, shape=shape, training=True, num_threads=1):
        found.setdefault(row['sparsity'], []).append(row)
    return {
        key: sorted(runs, key=speedup)[(len(runs) - 1) // 2]
        for key, runs in found.items()
    }


def title(shape: List[int]) -> str:
    return ' × '.join(f'{x:,}' for x in shape)


def draw() -> Any:
    figure, axes = plt.subplots(
        1, len(SHAPES), figsize=(page.WIDTH, 3.3), sharey=True
    )
    for ax, shape in zip(axes, SHAPES):
        ax.axhline(1, color='black', linewidth=1)
        for (label, rows), color in zip(curves(), COLORS):
            found = steps(rows, shape)
            ax.plot(
                range(len(SPARSITIES)),
                [speedup(found[x]) for x in SPARSITIES],
                'o-' if 'this' in label else 'o:',
                color=color,
                label=label,
            )
        ax.set_title(title(shape))
        ax.set_yscale('log', base=2)
        ax.set_yticks([1, 2, 4, 8, 16])
        ax.yaxis.set_major_formatter(lambda x, _: f'{x:g}x')
        ax.set_xticks(
            range(len(SPARSITIES)), [f'{100 * x:.0f} %' for x in SPARSITIES]
        )
    axes[0].set_ylabel('speed-up to torch.nn.Linear')
    figure.supxlabel('sparsity', fontsize=10.5)
    page.legend(figure, axes[0], columns=2)
    return figure


def step_table() -> str:
    rows = read_rows(CURRENT)
    lines = []
    for shape in SHAPES:
        found = steps(rows, shape)
        for sparsity in SPARSITIES:
            row = found[sparsity]
            times = {x: y[1] for x, y in row['quartiles_ms'].items()}
            half = times['bf16'] / times['ours bf16']
            lines.append(
                [
                    title(shape),
                    f'{100 * sparsity:.0f} %',
                    f'{times["dense"]:.0f} ms',
                    f'{times["ours"]:.1f} ms',
                    page.times(speedup(row)),
                    page.times(half),
                    page.times(speedup(row, 'CSR')),
                ]
            )
    header = ['Shape', 'Sparsity', 'Dense', 'SparseLinear', 'Speed-up']
    return page.table([*header, 'In bfloat16', 'CSR'], lines)


def block_table(sizes: List[int]) -> str:
    rows = read_rows('block_accuracy.jsonl', method='RigL')
    speed = read_rows('block_sparse.jsonl')
    lines = []
    for sparsity in [0.9, 0.95]:
        for size in sizes:
            name = 'single' if size == 1 else f'blocks of {size}'
            ratios = [
                x['milliseconds']['dense'] / x['milliseconds'][name]
                for x in select(speed, sparsity=sparsity)
            ]
            tests = [
                f'{x["test"]:.1f} ± {x["deviation"]:.1f}'
                for data_set in ['Cora', 'PubMed']
                for x in select(
                    rows, data_set=data_set, sparsity=sparsity, block_size=size
                )
            ]
            label = 'single weights' if size == 1 else name
            share = f'{100 * sparsity:.0f} %'
            lines.append([label, share, page.times(*ratios), *tests])
    header = ['Weights', 'Sparsity', 'Speed-up to dense', 'Cora', 'PubMed']
    return page.table(header, lines)


@cache
def content() -> Dict[str, Any]:
    rows = [
        x for x in read_rows(CURRENT, training=True) if 'quartiles_ms' in x
    ]
    ninety = [speedup(steps(rows, x)[0.9]) for x in SHAPES]
    repeated = select(
        rows, shape=SHAPES[-1], sparsity=0.9, training=True, num_threads=1
    )
    other = [
        speedup(steps(x, shape)[0.9])
        for label, x in curves()[1:]
        for shape in SHAPES
    ]
    many = [x for x in rows if x['shape'][0] >= 512 and x['sparsity'] < 0.7]
    few = min((x for x in rows if x['shape'][0] < 512), key=speedup)
    blocks = [
        x['milliseconds']['single'] / x['milliseconds']['blocks of 16']
        for x in read_rows('block_sparse.jsonl')
    ]
    return {
        'speed': page.show(
            draw(), 'sparse_layers', 'Speed-up of a sparse layer by sparsity'
        ),
        'step_table': step_table(),
        'block_table': block_table([1, 8, 16, 32]),
        'ninety': page.times(*ninety),
        'other_ninety': page.times(*other),
        'num_runs': len(repeated),
        'repeated': page.times(*map(speedup, repeated)),
        'masked': page.times(
            *(
                speedup(x, 'masked')
                for x in rows
                if 'masked' in x['quartiles_ms']
            )
        ),
        'slowest': page.times(min(map(speedup, many))),
        'few': few,
        'few_speed': page.times(speedup(few)),
        'blocks': page.times(*blocks),
        'files': [CURRENT, *OTHERS],
        'source': page.source,
    }
