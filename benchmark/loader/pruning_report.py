"""Print the tables of `pruning.py` and draw its two figures.

Differences are paired: the same data set, scenario, seed and (for samplers)
fraction of graphs. `±` is the standard error over seeds. Pooled rows average
the differences of all data sets and seeds.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

Row = Dict[str, Any]
RIVALS = ['soft random', 'balanced']
FIGURE_METHODS = ['balanced', 'InfoBatch', 'GDeR, paper', 'GDeR']
METHOD_NAMES = {
    'full': 'full data',
    'full, class weights': 'class weights',
    'half the epochs': 'half the epochs',
    'balanced': 'balanced',
    'InfoBatch': 'InfoBatch',
    'GDeR, paper': "GDeR (paper's draw)",
    'GDeR': 'GDeR',
}
FIGURE_SCENARIOS = [
    ('imbalanced', 'f1'),
    ('both', 'f1'),
    ('features 10 %', 'f1'),
    ('features 30 %', 'f1'),
    ('labels 20 %', 'f1'),
    ('normal', 'f1'),
]


class Results:
    """The rows of a results file, by their settings."""

    def __init__(self, path: Path) -> None:
        lines = [json.loads(x) for x in path.read_text().splitlines()]
        self.headers = [x for x in lines if 'method' not in x]
        self.rows: List[Row] = [x for x in lines if 'method' in x]
        self.index = {self.key(row): row for row in self.rows}

    @staticmethod
    def key(row: Row) -> Tuple:
        names = ['dataset', 'scenario', 'method', 'keep_ratio', 'seed']
        return tuple(row[name] for name in names)

    def values(self, name: str) -> List[Any]:
        return list(dict.fromkeys(row[name] for row in self.rows))

    def select(self, **settings: Any) -> List[Row]:
        return [
            row
            for row in self.rows
            if all(row[key] == value for key, value in settings.items())
        ]

    def find(self, row: Row, method: str, keep_ratio: float) -> Optional[Row]:
        settings = dict(method=method, keep_ratio=keep_ratio)
        return self.index.get(self.key({**row, **settings}))

    def differences(
        self, rows: Sequence[Row], rival: str, metric: str
    ) -> List[float]:
        out = []
        for row in rows:
            other = self.index.get(self.key({**row, 'method': rival}))
            if other is not None:
                out.append(row[metric] - other[metric])
        return out


def mean_and_error(values: Sequence[float], sign: str = '') -> str:
    if not values:
        return ''
    x = torch.tensor(values, dtype=torch.double)
    error = float(x.std()) / len(x) ** 0.5 if len(x) > 1 else 0.0
    return f'{float(x.mean()):{sign}.1f} ± {error:.1f}'


def lower_limit(values: Sequence[float]) -> float:
    """Return the lower 95 % limit of the mean (normal approximation)."""
    x = torch.tensor(values, dtype=torch.double)
    return float(x.mean() - 1.96 * x.std() / len(x) ** 0.5)


def print_scores(results: Results, scenario: str) -> None:
    """Print the scores of all methods in a scenario."""
    metrics = ['f1', 'balanced_accuracy', 'auc', 'f1_imbalanced']
    print(f'\n{scenario}: scores')
    titles = ['F1', 'balanced acc.', 'AUC', 'F1 at 1:9']
    print(f'{"data set":13}{"keep":>5}  {"method":22}', end='')
    print(''.join(f'{title:>15}' for title in titles))
    for dataset in results.values('dataset'):
        for method in results.values('method'):
            for keep in sorted(results.values('keep_ratio')):
                rows = results.select(
                    dataset=dataset,
                    scenario=scenario,
                    method=method,
                    keep_ratio=keep,
                )
                if rows:
                    print(f'{dataset:13}{keep:5.1f}  {method:22}', end='')
                    for metric in metrics:
                        values = [row[metric] for row in rows]
                        print(f'{mean_and_error(values):>15}', end='')
                    print()


def print_differences(
    results: Results, rival: str, method: str = 'GDeR'
) -> None:
    """Print the paired differences of a method to a rival."""
    print(f'\n{method} against {rival}: difference of F1, per seed')
    print(
        f'{"scenario":15}{"data set":13}{"keep":>5}{"F1":>14}{"limit":>7}'
        f'{"worst":>7}{"AUC":>14}{"F1 at 1:9":>14}{"seeds":>7}'
    )
    datasets: List[Optional[str]] = [*results.values('dataset'), None]
    for scenario in results.values('scenario'):
        for dataset in datasets:
            for keep in sorted(set(results.values('keep_ratio')) - {1.0}):
                rows = results.select(
                    scenario=scenario, method=method, keep_ratio=keep
                )
                if dataset is not None:
                    rows = [x for x in rows if x['dataset'] == dataset]
                f1 = results.differences(rows, rival, 'f1')
                auc = results.differences(rows, rival, 'auc')
                natural = results.differences(rows, rival, 'f1_imbalanced')
                if len(f1) > 1:
                    print(
                        f'{scenario:15}{dataset or "pooled":13}{keep:5.1f}'
                        f'{mean_and_error(f1, "+"):>14}'
                        f'{lower_limit(f1):7.1f}{min(f1):7.1f}'
                        f'{mean_and_error(auc, "+"):>14}'
                        f'{mean_and_error(natural, "+"):>14}{len(f1):>7}'
                    )


def print_suspects(results: Results) -> None:
    """Print how well the sampler recognizes corrupted graphs."""
    print('\nsuspects() of GDeR: means over seeds, in percent')
    print(
        f'{"scenario":15}{"data set":13}{"keep":>5}{"precision":>11}'
        f'{"recall":>8}{"clean distrusted":>18}{"corrupted draws":>17}'
    )
    for scenario in results.values('scenario'):
        for dataset in results.values('dataset'):
            for keep in sorted(set(results.values('keep_ratio')) - {1.0}):
                rows = results.select(
                    scenario=scenario,
                    dataset=dataset,
                    method='GDeR',
                    keep_ratio=keep,
                )
                if rows:
                    mean = average(rows)
                    corrupted = mean('corrupted_draws')
                    known = 'normal' not in scenario and corrupted > 0
                    precision = f'{mean("precision"):.0f}' if known else ''
                    recall = f'{mean("recall"):.0f}' if known else ''
                    print(
                        f'{scenario:15}{dataset:13}{keep:5.1f}'
                        f'{precision:>11}{recall:>8}'
                        f'{mean("distrusted_clean"):18.1f}{corrupted:17.1f}'
                    )


def average(rows: Sequence[Row]) -> Callable[[str], float]:
    return lambda key: 100 * sum(row[key] for row in rows) / len(rows)


def draw_figures(results: Results, folder: Path) -> None:
    """Draw differences to soft random, and precision and recall."""
    import matplotlib

    matplotlib.use('svg')
    import matplotlib.pyplot as plt

    plt.rcParams['svg.hashsalt'] = (
        'pruning'  # The same file for the same data.
    )
    figure, ax = plt.subplots(figsize=(9, 3.5))
    width = 0.8 / len(FIGURE_METHODS)
    for i, method in enumerate(FIGURE_METHODS):
        means, errors = [], []
        for scenario, metric in FIGURE_SCENARIOS:
            rows = results.select(scenario=scenario, method=method)
            values = results.differences(rows, 'soft random', metric)
            x = torch.tensor(values or [0.0], dtype=torch.double)
            means.append(float(x.mean()))
            errors.append(float(x.std(correction=0)) / len(x) ** 0.5)
        position = [j + (i - 1.5) * width for j in range(len(means))]
        ax.bar(position, means, width, yerr=errors, label=method)
    ax.axhline(0, color='black', linewidth=0.8)
    ax.set_xticks(range(len(FIGURE_SCENARIOS)))
    ax.set_xticklabels([scenario for scenario, _ in FIGURE_SCENARIOS])
    ax.set_ylabel('F1 against soft random')
    ax.legend()
    save(figure, folder / 'pruning_f1.svg')

    figure, ax = plt.subplots(figsize=(5, 4))
    points = defaultdict(list)
    for row in results.select(method='GDeR'):
        if row['scenario'] in ['features 10 %', 'features 30 %', 'both']:
            key = row['scenario'], row['dataset']
            points[key].append((row['recall'], row['precision']))
    markers = dict(zip(results.values('dataset'), 'osD^vP*X'))
    colors = {'features 10 %': 'C0', 'features 30 %': 'C1', 'both': 'C2'}
    for (scenario, dataset), pairs in points.items():
        recall, precision = (sum(x) / len(x) for x in zip(*pairs))
        ax.scatter(
            recall, precision, color=colors[scenario], marker=markers[dataset]
        )
    for scenario, color in colors.items():
        ax.scatter([], [], color=color, label=scenario)
    for dataset, marker in markers.items():
        ax.scatter([], [], color='gray', marker=marker, label=dataset)
    ax.set(xlabel='recall of suspects()', ylabel='precision')
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    ax.legend(fontsize='small')
    save(figure, folder / 'pruning_suspects.svg')


def write_summary(results: Results, path: Path) -> None:
    """Write the pooled differences of F1 of all methods to soft random."""
    methods = ['full', 'full, class weights', 'half the epochs']
    methods = [*methods, *FIGURE_METHODS]
    keep_ratios = sorted(set(results.values('keep_ratio')) - {1.0})
    with path.open('w') as file:
        print(
            f'scenario,keep,{",".join(METHOD_NAMES[x] for x in methods)}',
            file=file,
        )
        for scenario, _ in FIGURE_SCENARIOS:
            for keep in keep_ratios:
                cells = [scenario, f'{keep:.1f}']
                for method in methods:
                    rows = results.select(scenario=scenario, method=method)
                    values = [
                        row['f1'] - other['f1']
                        for row in rows
                        if row['keep_ratio'] in [keep, 1.0]
                        for other in [results.find(row, 'soft random', keep)]
                        if other is not None
                    ]
                    cells.append(mean_and_error(values, '+'))
                print(','.join(cells), file=file)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', type=Path, help='output of pruning.py')
    parser.add_argument('--figures', type=Path, help='folder of the figures')
    parser.add_argument('--summary', type=Path, help='a CSV file to write')
    args = parser.parse_args()

    results = Results(args.results)
    for header in results.headers:
        print(', '.join(f'{key}: {value}' for key, value in header.items()))
    for rival in RIVALS:
        print_differences(results, rival)
    print_suspects(results)
    for scenario in results.values('scenario'):
        print_scores(results, scenario)
    if args.summary is not None:
        write_summary(results, args.summary)
    if args.figures is not None:
        draw_figures(results, args.figures)


if __name__ == '__main__':
    main()
