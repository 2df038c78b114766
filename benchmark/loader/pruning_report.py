"""Print the tables of `pruning.py`.

Differences are paired: the same data set, scenario, seed and (for samplers)
fraction of graphs. `±` is the standard error over seeds. Pooled rows average
the differences of all data sets and seeds.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

Row = Dict[str, Any]
RIVALS = ['soft random', 'balanced']


class Results:
    """The rows of a results file, by their settings."""

    def __init__(self, path: Path) -> None:
        lines = [json.loads(x) for x in path.read_text().splitlines()]
        self.headers = [x for x in lines if 'command' in x]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', type=Path, help='output of pruning.py')
    args = parser.parse_args()

    results = Results(args.results)
    for header in results.headers:
        print(', '.join(f'{key}: {value}' for key, value in header.items()))
    for rival in RIVALS:
        print_differences(results, rival)
    print_suspects(results)
    for scenario in results.values('scenario'):
        print_scores(results, scenario)


if __name__ == '__main__':
    main()
