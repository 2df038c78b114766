"""Fill the page of samplers that train on fewer graphs."""

from functools import cache
from typing import Any, Dict, List, Tuple

from figures import page
from figures.page import BLUE, GRAY, GREEN, ORANGE, plt
from figures.records import Row, read_rows, select, values

SCENARIOS = {
    'imbalanced': 'imbalanced classes',
    'both': 'imbalanced and corrupted',
    'features 10 %': '10 % of features corrupted',
    'features 30 %': '30 % of features corrupted',
    'labels 20 %': '20 % of labels wrong',
    'normal': 'clean and balanced',
}
NAMES = {'normal': 'clean'}  # In tables.
METHODS = {
    'GDeR': ('GDeRSampler', BLUE),
    'balanced': ('BalancedSampler', ORANGE),
    'InfoBatch': ('InfoBatchSampler', GREEN),
    'GDeR, paper': ('GDeRSampler, draw of the paper', GRAY),
}
CORRUPTED = ['features 10 %', 'features 30 %', 'both']
WITHOUT_SAMPLER = ['full', 'full, class weights', 'half the epochs']


class Study:
    """Paired differences between methods: same data set, seed and fraction."""

    def __init__(self) -> None:
        self.rows = read_rows('pruning.jsonl')
        self.index = {
            self.key(x, x['method'], x['keep_ratio']): x for x in self.rows
        }

    @staticmethod
    def key(row: Row, method: str, keep: float) -> Tuple:
        return row['scenario'], row['dataset'], row['seed'], method, keep

    def gains(
        self,
        scenario: str,
        method: str,
        rival: str,
        keep: float,
        metric: str = 'f1',
    ) -> List[float]:
        """Return the differences of a score to a rival sampler."""
        own = 1.0 if method in WITHOUT_SAMPLER else keep
        out = []
        for row in select(
            self.rows, scenario=scenario, method=method, keep_ratio=own
        ):
            other = self.index.get(self.key(row, rival, keep))
            if other is not None:
                out.append(row[metric] - other[metric])
        return out


def draw_scores(study: Study) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(page.WIDTH, 3.7), sharey=True)
    for ax, keep in zip(axes, [0.5, 0.3]):
        ax.axvline(0, color='black', linewidth=1)
        for i, (method, (label, color)) in enumerate(METHODS.items()):
            gains = [
                study.gains(x, method, 'soft random', keep) for x in SCENARIOS
            ]
            ax.errorbar(
                [page.mean(x) for x in gains],
                [j + 0.17 * (i - 1.5) for j in range(len(SCENARIOS))],
                xerr=[page.error(x) for x in gains],
                fmt='o',
                color=color,
                label=label,
            )
        ax.set_title(f'{100 * keep:.0f} % of the graphs')
        ax.set_xlabel('macro F1 against a random subset')
        ax.set_yticks(range(len(SCENARIOS)), list(SCENARIOS.values()))
        ax.set_ylim(len(SCENARIOS) - 0.5, -0.5)
    page.legend(figure, axes[0], columns=2)
    return figure


def score_table(study: Study) -> str:
    header = ['Training set', 'Graphs', 'GDeRSampler', 'BalancedSampler']
    header += ['Full data', 'Full data, weighted']
    methods = ['GDeR', 'balanced', 'full', 'full, class weights']
    rows = [
        [NAMES.get(scenario, scenario), f'{100 * keep:.0f} %']
        + [
            page.plus_minus(study.gains(scenario, x, 'soft random', keep))
            for x in methods
        ]
        for scenario in SCENARIOS
        for keep in [0.5, 0.3]
    ]
    return page.table(header, rows)


def suspects(study: Study, dataset: str) -> Dict[str, str]:
    """Return means over scenarios with corrupted features, in percent."""
    rows = select(study.rows, method='GDeR', dataset=dataset)
    corrupted = [x for x in rows if x['scenario'] in CORRUPTED]
    clean = select(rows, scenario='normal')
    return {
        key: f'{100 * page.mean([x[key] for x in part]):.0f} %'
        for key, part in [
            ('recall', corrupted),
            ('precision', corrupted),
            ('distrusted_clean', clean),
        ]
    }


def cost_table() -> str:
    rows = read_rows('overhead.jsonl')
    cells = []
    for threads in values(rows, 'threads'):
        for size in values(rows, 'batch_size'):
            part = {
                x['method']: x
                for x in select(rows, threads=threads, batch_size=size)
            }
            cells.append(
                [
                    f'{size} graphs, {threads} thread' + 's' * (threads > 1),
                    f'{part["full data, indexed"]["milliseconds"]:,} ms',
                    f'+{part["GDeR 1.0"]["value"]:.1f} %',
                    f'{part["GDeR 0.3"]["value"]:.2f}x',
                    f'{part["soft random 0.3"]["value"]:.2f}x',
                ]
            )
    header = ['Mini-batch', 'Full data', 'GDeRSampler, all graphs']
    header += ['GDeRSampler, 30 %', 'Random subset, 30 %']
    return page.table(header, cells)


def count_seeds(rows: List[Row]) -> str:
    """Return the number of seeds of each cell, or their range."""
    found: Dict[Tuple, set] = {}
    keys = ['scenario', 'dataset', 'method', 'keep_ratio']
    for row in rows:
        cell = tuple(row[key] for key in keys)
        found.setdefault(cell, set()).add(row['seed'])
    sizes = [len(x) for x in found.values()]
    return ' to '.join(dict.fromkeys(map(str, [min(sizes), max(sizes)])))


@cache
def content() -> Dict[str, Any]:
    study = Study()
    overhead = read_rows('overhead.jsonl')
    extra = [x['value'] for x in select(overhead, method='GDeR 1.0')]
    faster = [x['value'] for x in select(overhead, method='GDeR 0.3')]
    (plan,) = read_rows('planning.jsonl', method='GDeR', graphs=10**7)
    gains = study.gains
    settings = 'imbalanced', 'GDeR', 'soft random', 0.5

    def against(scenario: str, *args: Any) -> str:
        return page.plus_minus(gains(scenario, 'GDeR', *args))

    found = {x: suspects(study, x) for x in values(study.rows, 'dataset')}
    return {
        'scores': page.show(
            draw_scores(study),
            'fewer_graphs',
            'Gain of macro F1 over a random subset for each scenario',
        ),
        'score_table': score_table(study),
        'cost_table': cost_table(),
        'against': against,
        'suspects': found,
        'seeds': count_seeds(study.rows),
        'imbalanced': f'{page.mean(gains(*settings)):.0f}',
        'imbalanced_auc': f'{page.mean(gains(*settings, "auc")):.1f}',
        'faster': page.times(*faster),
        'bound': f'{1 / 0.3:.2f}x',
        'extra': f'{min(extra):.0f} to {max(extra):.0f} %',
        'plan': plan,
        'source': page.source,
    }
