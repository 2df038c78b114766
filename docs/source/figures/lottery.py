"""Fill the page of winning tickets."""

from functools import cache
from typing import Any, Dict, List, Optional, Tuple

from figures import page
from figures.page import BLUE, ORANGE, plt
from figures.records import (
    RESULTS,
    Row,
    read_blocks,
    read_rows,
    select,
)

MODELS = ['GCN', 'GIN', 'GAT']
GRAPHS = ['Cora', 'CiteSeer', 'PubMed']
METHODS = {
    'fast': ('ticket', BLUE, 0.15),
    'imp': ('iterative pruning', ORANGE, -0.15),
}
PANELS = ['weights pruned', 'edges pruned', 'both pruned']

Cell = Tuple[str, str, float, float]


class Study:
    """Tickets and rivals by network, graph, and fractions that are pruned."""

    def __init__(self) -> None:
        blocks = read_blocks(RESULTS / 'lottery.jsonl')
        self.blocks = [x for x in blocks if not x.meta['unseen']]

    def find(self, cell: Cell, method: str) -> List[Row]:
        """Return rows of disjoint seeds, beside iterative pruning first."""
        model, name, weights, edges = cell
        settings = dict(
            model=model, data_set=name, weights=weights, edges=edges
        )
        seen: set = set()
        found = []
        blocks = sorted(
            self.blocks,
            key=lambda x: not select(x.rows, method='imp', **settings),
        )
        for meta, rows in blocks:
            for row in select(rows, method=method, **settings):
                seeds = set(meta['seeds'][: row['runs']])
                if not seeds & seen:
                    seen |= seeds
                    found.append(row)
        return found

    def average(self, cell: Cell, method: str, key: str) -> Optional[float]:
        """Return the mean over all seeds."""
        rows = self.find(cell, method)
        runs = sum(x['runs'] for x in rows)
        return sum(x['runs'] * x[key] for x in rows) / runs if runs else None

    def error(self, cell: Cell, method: str) -> float:
        """Return the standard error of a difference over all seeds."""
        rows = [x for x in self.find(cell, method) if x['runs'] > 1]
        runs = sum(x['runs'] for x in rows)
        squares = sum((x['runs'] * x['error']) ** 2 for x in rows)
        return squares**0.5 / runs if runs else 0.0

    def count_seeds(self, method: str) -> str:
        """Return the fewest and the most seeds of a cell."""
        runs = [
            sum(x['runs'] for x in self.find(cell, method))
            for cell in self.cells()
        ]
        return f'{min(runs)} to {max(runs)}'

    def time_ratio(self, cell: Cell) -> float:
        """Return the time of iterative pruning to that of a ticket."""
        rows = self.find(cell, 'imp')
        runs = sum(x['runs'] for x in rows)
        own = sum(x['runs'] * x['seconds'] / x['ratio'] for x in rows) / runs
        return sum(x['runs'] * x['seconds'] for x in rows) / runs / own

    def cells(self) -> List[Cell]:
        """Return what both tickets and iterative pruning were run on."""
        keys = ['model', 'data_set', 'weights', 'edges']
        rows = [
            x
            for block in self.blocks
            for x in select(block.rows, method='imp')
        ]
        found = set(tuple(row[key] for key in keys) for row in rows)
        return sorted(
            found,
            key=lambda x: (MODELS.index(x[0]), GRAPHS.index(x[1]), *x[2:]),
        )


def panel(cell: Cell) -> str:
    """Return what a cell prunes."""
    return PANELS[2 if cell[2] and cell[3] else 1 if cell[3] else 0]


def pruned(fraction: float) -> str:
    """Return a fraction in percent."""
    return f'{100 * fraction:g} %' if fraction else ''


def draw(study: Study) -> Any:
    figure, axes = plt.subplots(1, 3, figsize=(page.WIDTH, 4.6), sharex=True)
    for ax, title in zip(axes, PANELS):
        ax.axvline(0, color='black', linewidth=1)
        cells = [x for x in study.cells() if panel(x) == title]
        for method, (label, color, shift) in METHODS.items():
            ax.errorbar(
                [study.average(x, method, 'to_dense') for x in cells],
                [i + shift for i in range(len(cells))],
                xerr=[study.error(x, method) for x in cells],
                fmt='o',
                markersize=4,
                color=color,
                label=label,
            )
        names = [
            f'{model} {name} {", ".join(pruned(x) for x in sizes if x)}'
            for model, name, *sizes in cells
        ]
        names = [
            x.replace('CiteSeer', 'Cite')
            .replace('PubMed', 'Pub')
            .replace(' %', '')
            for x in names
        ]
        ax.set_yticks(range(len(cells)), names, fontsize=8.5)
        ax.set_ylim(len(cells) - 0.5, -0.5)
        ax.set_title(title)
    figure.supxlabel(
        'test accuracy against the dense network [points]', fontsize=10.5
    )
    page.legend(figure, axes[0], columns=2)
    return figure


def sparsest(cells: List[Cell], title: str) -> List[Cell]:
    """Return the sparsest cell of each network and graph."""
    found = {x[:2]: x for x in cells if panel(x) == title}
    return list(found.values())


def accuracy_table(study: Study) -> str:
    lines = []
    for cell in sparsest(study.cells(), PANELS[0]):
        gaps = [
            f'{page.signed(gap)} ± {study.error(cell, method):.1f}'
            for method in ['fast', 'narrow+', 'imp']
            if (gap := study.average(cell, method, 'to_dense')) is not None
        ]
        lines.append(
            [
                ' '.join(cell[:2]),
                pruned(cell[2]),
                *gaps,
                f'{study.time_ratio(cell):.0f}x',
            ]
        )
    header = ['Network and graph', 'Weights pruned', 'Ticket']
    header += ['Narrow, distilled', 'Iterative pruning', 'Time ratio']
    return page.table(header, lines)


def unseen_table() -> str:
    blocks = read_blocks(RESULTS / 'lottery.jsonl')
    names = {
        'fast': 'ticket',
        'narrow+': 'narrow, distilled',
        'random': 'random pruning',
        'random+': 'random pruning, distilled',
    }
    lines = [
        [
            names[x['method']],
            pruned(x['weights']),
            pruned(x['edges']),
            f'{page.signed(x["to_dense"])} ± {x["error"]:.1f}',
        ]
        for block in blocks
        if block.meta['unseen']
        for x in block.rows
        if x.get('method') in names and x['to_dense'] > -40
    ]
    return page.table(
        ['Method', 'Weights pruned', 'Edges pruned', 'Against dense'], lines
    )


def epoch_table() -> str:
    lines = [
        [
            x['model'],
            x['data_set'],
            f'{x["plain"]:,.0f} ms',
            f'{x["highest"] * x["plain"]:,.0f} ms',
            f'{x["fast"]:,.0f} s',
            f'{x["imp"]:,.0f} s',
            f'{x["ratio"]:,.0f}x',
        ]
        for x in read_rows('lottery_epochs.jsonl', part='epochs')
    ]
    header = ['Network', 'Graph', 'Plain epoch', 'Slowest epoch of a search']
    header += ['Search', 'Iterative pruning, plain loops', 'Ratio']
    return page.table(header, lines)


@cache
def content() -> Dict[str, Any]:
    study = Study()
    cells = study.cells()
    gaps = {x: study.average(x, 'fast', 'to_dense') for x in cells}
    rivals = {x: study.average(x, 'imp', 'to_dense') for x in cells}
    gcn = [x for x in sparsest(cells, PANELS[0]) if x[0] == 'GCN']
    epochs = read_rows('lottery_epochs.jsonl', part='epochs')
    loops = [x for x in read_rows('csr_loop.jsonl') if 'loop' in x]
    batches = read_rows('lottery_minibatch.jsonl')
    return {
        'accuracy': page.show(
            draw(study), 'lottery', 'Accuracy of tickets and iterative pruning'
        ),
        'accuracy_table': accuracy_table(study),
        'unseen_table': unseen_table(),
        'epoch_table': epoch_table(),
        'gcn': ' to '.join(
            page.signed(f(gaps[x] for x in gcn))[1:] for f in [min, max]
        ),
        'gcn_weights': pruned(min(1 - round(x[2], 3) for x in gcn)),
        'ticket_seeds': study.count_seeds('fast'),
        'imp_seeds': study.count_seeds('imp'),
        'num_cells': len(cells),
        'better': sum(gaps[x] > rivals[x] for x in cells),
        'worst': page.signed(min(gaps.values()))[1:],
        'gcn_times': ' to '.join(
            f'1/{f(map(study.time_ratio, gcn)):.0f}' for f in [max, min]
        ),
        'epoch_ratios': page.times(*(1 / x['highest'] for x in epochs)),
        'search_ratios': page.times(*(x['ratio'] for x in epochs)),
        'loop': page.times(*(x['ratio'] for x in loops)),
        'batches': page.times(
            *(1 / x['ratio'] for x in select(batches, method='search'))
        ),
        'batch_loss': {
            x['epochs']: page.signed(y['test'] - x['test'])[1:]
            for x in select(batches, method='plain')
            for y in select(batches, method='search', epochs=x['epochs'])
        },
        'source': page.source,
    }
