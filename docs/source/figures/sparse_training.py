"""Fill the page that compares sparse training with pruning."""

from functools import cache
from typing import Any, Dict, List

from figures import page
from figures.page import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, plt
from figures.records import Row, read_rows, select, values

PRUNERS = ['magnitude', 'ADMM', 'SLR']
STYLES = {
    'RigL 3x': ('RigL, equal epochs', BLUE, 'o-'),
    'RigL': ('RigL, a third of the epochs', BLUE, 'o:'),
    'SLR': ('SLR', ORANGE, 'o-'),
    'ADMM': ('ADMM', RED, 'o-'),
    'magnitude': ('magnitude', PURPLE, 'o-'),
    'narrow': ('narrow dense GCN', GREEN, 'o-'),
}
LINK_STYLES = {
    'RigL, budget': ('RigL, equal steps', BLUE, 'o-'),
    'RigL': ('RigL, fewer steps', BLUE, 'o:'),
    'SLR': ('SLR', ORANGE, 'o-'),
    'magnitude': ('magnitude', PURPLE, 'o-'),
    'narrow, budget': ('narrow dense head', GREEN, 'o-'),
}
SHORT = {
    'CollegeMsg': 'CollegeMsg',
    'email-Eu-core-temporal': 'email-Eu',
    'sx-mathoverflow': 'MathOverflow',
}


def average(rows: List[Row], key: str, **settings: Any) -> float:
    return page.mean([x[key] for x in select(rows, **settings)])


def lines(
    ax: Any,
    rows: List[Row],
    key: str,
    styles: Dict[str, Any],
    sparsities: List,
) -> None:
    """Draw a score over the sparsity for each method."""
    for method, (label, color, style) in styles.items():
        ax.plot(
            [
                average(rows, key, method=method, sparsity=x)
                for x in sparsities
            ],
            style,
            color=color,
            label=label,
        )
    ticks = [f'{100 * x:g}' for x in sparsities]
    ax.set_xticks(range(len(sparsities)), ticks)


def draw_gcn(rows: List[Row]) -> Any:
    figure, axes = plt.subplots(2, 2, figsize=(page.WIDTH, 5.2))
    for ax, name in zip(axes.flat, values(rows, 'dataset')):
        part = select(rows, dataset=name)
        dense = average(part, 'accuracy', method='dense')
        ax.axhline(dense, color='black', linewidth=1, label='dense')
        sparsities = sorted(set(values(part, 'sparsity')) - {0.0})
        lines(ax, part, 'accuracy', STYLES, sparsities)
        ax.set_title(name)
        ax.set_ylim(dense - 8, dense + 3)
    figure.supxlabel('sparsity [%]', fontsize=10.5)
    figure.supylabel('test accuracy [%]', fontsize=10.5)
    page.legend(figure, axes.flat[0], columns=3)
    return figure


def draw_links(rows: List[Row]) -> Any:
    figure, axes = plt.subplots(1, 3, figsize=(page.WIDTH, 3.4))
    for ax, (name, title) in zip(axes, SHORT.items()):
        part = select(rows, dataset=name, negatives='random')
        heads = select(part, head='product')
        trees = average(part, 'auc', method='boosted trees')
        dense = average(heads, 'auc', method='dense')
        ax.axhline(trees, color=GRAY, linestyle='--', label='boosted trees')
        ax.axhline(dense, color='black', linewidth=1, label='dense head')
        sparsities = sorted(set(values(heads, 'sparsity')) - {0.0})
        lines(ax, heads, 'auc', LINK_STYLES, sparsities)
        ax.tick_params(axis='x', labelsize=9)
        ax.set_title(title)
    axes[0].set_ylabel('test AUC [%]')
    figure.supxlabel('sparsity [%]', fontsize=10.5)
    page.legend(figure, axes[0], columns=4)
    return figure


def paired(rows: List[Row], method: str, rival: str, key: str) -> List[float]:
    """Return the differences of a score of equal seeds."""
    others = {x['seed']: x[key] for x in select(rows, method=rival)}
    return [x[key] - others[x['seed']] for x in select(rows, method=method)]


def best_pruner(rows: List[Row]) -> str:
    """Return the train-and-prune method of the best test accuracy."""
    return max(PRUNERS, key=lambda x: average(rows, 'accuracy', method=x))


def gcn_rows(rows: List[Row]) -> List[Dict[str, Any]]:
    """Compare RigL with the best train-and-prune method in each cell."""
    found = []
    for name in values(rows, 'dataset'):
        for sparsity in sorted(set(values(rows, 'sparsity')) - {0.0}):
            part = select(rows, dataset=name, sparsity=sparsity)
            if part:
                best = best_pruner(part)
                cost = {x: average(part, 'macs', method=x) for x in STYLES}
                cell = dict(name=name, sparsity=sparsity, best=best)
                for key in ['RigL 3x', 'RigL']:
                    cell[key] = paired(part, key, best, 'accuracy')
                    cell[f'{key} MACs'] = cost['SLR'] / cost[key]
                found.append(cell)
    return found


def gcn_table(cells: List[Dict[str, Any]]) -> str:
    body = [
        [
            x['name'],
            f'{100 * x["sparsity"]:g} %',
            x['best'],
            page.plus_minus(x['RigL 3x']),
            f'1/{x["RigL 3x MACs"]:.1f}',
            page.plus_minus(x['RigL']),
            f'1/{x["RigL MACs"]:.0f}',
        ]
        for x in cells
        if x['sparsity'] in [0.9, 0.98, 0.99]
    ]
    header = ['Data set', 'Sparsity', 'Best pruner', 'RigL, equal epochs']
    header += ['Multiply-adds', 'RigL, a third of epochs', 'Multiply-adds']
    return page.table(header, body)


def link_table(rows: List[Row]) -> str:
    body = []
    for name, title in SHORT.items():
        part = select(rows, dataset=name, negatives='random')
        heads = select(part, head='product')
        line = [title]
        for x in ['best heuristic', 'boosted trees']:
            line.append(f'{average(part, "auc", method=x):.1f}')
        line.append(f'{average(heads, "auc", method="dense"):.1f}')
        for x in ['SLR', 'RigL, budget', 'narrow, budget']:
            scores = select(heads, method=x, sparsity=0.98)
            line.append(f'{page.mean([y["auc"] for y in scores]):.1f}')
        body.append(line)
    header = ['Network', 'Best heuristic', 'Boosted trees', 'Dense head']
    header += ['SLR, 98 %', 'RigL, 98 %', 'Narrow head, 98 %']
    return page.table(header, body)


def gcn_notes(rows: List[Row]) -> Dict[str, str]:
    """Return numbers of narrow GCNs and of memory."""
    narrow: Dict[bool, List[float]] = {True: [], False: []}
    memory: Dict[str, List[float]] = {x: [] for x in ['RigL', 'ADMM', 'SLR']}
    for name in values(rows, 'dataset'):
        part = select(rows, dataset=name)
        dense = average(part, 'accuracy', method='dense')
        size = average(part, 'num_bytes', method='dense')
        for row in select(part, method='narrow'):
            settings = dict(method='narrow', sparsity=row['sparsity'])
            gap = average(part, 'accuracy', **settings) - dense
            narrow[row['sparsity'] > 0.95].append(gap)
        for method, found in memory.items():
            settings = dict(method=method, sparsity=0.95)
            found.append(average(part, 'num_bytes', **settings) / size)
    return {
        'narrow_loss': page.signed(min(narrow[False]))[1:],
        'narrow_beyond': page.signed(min(narrow[True]))[1:],
        **{f'{x}_memory': page.times(*y) for x, y in memory.items()},
    }


def link_notes(rows: List[Row]) -> Dict[str, str]:
    """Return differences of RigL and SLR, and those of boosted trees."""

    def ends(negatives: str, sparsity: float) -> List[float]:
        gaps = []
        for name in SHORT:
            part = select(rows, dataset=name, negatives=negatives)
            part = select(part, head='product', sparsity=sparsity)
            ours = average(part, 'auc', method='RigL, budget')
            gaps.append(ours - average(part, 'auc', method='SLR'))
        return [min(gaps), max(gaps)]

    mail = select(rows, dataset='email-Eu-core-temporal', negatives='random')
    heads = select(mail, head='product', method='dense')
    trees = select(rows, method='boosted trees')
    return {
        'trees_seconds': f'{max(x["seconds"] for x in trees):.0f}',
        'trees_new': page.signed(
            average(mail, 'new', method='boosted trees')
            - average(heads, 'new')
        ),
        'random_80': page.signed(min(ends('random', 0.8))),
        'random_995': page.signed(max(ends('random', 0.995))),
        'matched_90': page.signed(min(ends('matched', 0.9))),
        'matched_995': page.signed(max(ends('matched', 0.995))),
    }


@cache
def content() -> Dict[str, Any]:
    rows = read_rows('train_and_prune.jsonl')
    links = read_rows('link_prediction.jsonl')
    cells = gcn_rows(rows)
    equal = [page.mean(x['RigL 3x']) for x in cells]
    third = [page.mean(x['RigL']) for x in cells]
    sparse = [x for x in cells if x['sparsity'] >= 0.9]
    costs = [
        average(part, 'macs', method='SLR')
        / average(part, 'macs', method='RigL, budget')
        for name in SHORT
        for part in [
            select(
                links,
                dataset=name,
                negatives='random',
                head='product',
                sparsity=0.98,
            )
        ]
    ]
    return {
        'accuracy': page.show(
            draw_gcn(rows), 'sparse_training', 'Test accuracy by sparsity'
        ),
        'auc': page.show(draw_links(links), 'links', 'Test AUC by sparsity'),
        'gcn_table': gcn_table(cells),
        'link_table': link_table(links),
        'behind': f'{-min(equal):.1f}',
        'ahead': f'{max(equal):.1f}',
        'third_behind': f'{-min(third):.1f}',
        'cheaper': ' to '.join(
            f'1/{f(x["RigL 3x MACs"] for x in sparse):.1f}' for f in [min, max]
        ),
        'third_cheaper': ' to '.join(
            f'1/{f(x["RigL MACs"] for x in sparse):.0f}' for f in [min, max]
        ),
        **gcn_notes(rows),
        **link_notes(links),
        'link_cheaper': f'1/{min(costs):.0f}',
        'source': page.source,
    }
