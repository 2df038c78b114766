"""Print the tables of `train_and_prune.py` and draw its two figures.

`±` is the standard error over seeds. Differences are paired by seeds. The best
train-and-prune method of a sparsity is the one of the highest mean accuracy on
the test set, which favors train-and-prune.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

Row = Dict[str, Any]
PRUNERS = ['magnitude', 'ADMM', 'SLR']
METHODS = ['narrow', *PRUNERS, 'SET', 'RigL', 'RigL 3x']


class Results:
    """The rows of a results file."""

    def __init__(self, path: Path) -> None:
        lines = [json.loads(x) for x in path.read_text().splitlines()]
        self.headers = [x for x in lines if 'command' in x]
        self.rows: List[Row] = [x for x in lines if 'command' not in x]

    def values(self, name: str) -> List[Any]:
        return list(dict.fromkeys(row[name] for row in self.rows))

    def select(self, **settings: Any) -> List[Row]:
        """Return rows in the order of their seeds."""
        rows = [
            row
            for row in self.rows
            if all(row[key] == value for key, value in settings.items())
        ]
        return sorted(rows, key=lambda row: row['seed'])

    def mean(self, key: str, **settings: Any) -> float:
        rows = self.select(**settings)
        return sum(row[key] for row in rows) / max(len(rows), 1)

    def sparsities(self, dataset: str) -> List[float]:
        rows = self.select(dataset=dataset)
        return sorted({row['sparsity'] for row in rows} - {0.0})

    def best_pruner(self, dataset: str, sparsity: float) -> str:
        settings = dict(dataset=dataset, sparsity=sparsity)
        return max(
            PRUNERS,
            key=lambda x: self.mean('accuracy', method=x, **settings),
        )


def mean_and_error(values: Sequence[float], sign: str = '') -> str:
    if not values:
        return ''
    x = torch.tensor(values, dtype=torch.double)
    error = float(x.std()) / len(x) ** 0.5 if len(x) > 1 else 0.0
    return f'{float(x.mean()):{sign}.1f} ± {error:.1f}'


def print_accuracy(results: Results, dataset: str) -> None:
    dense = results.select(dataset=dataset, method='dense')
    accuracy = mean_and_error([row['accuracy'] for row in dense])
    print(f'\n{dataset}: test accuracy [%], {len(dense)} seeds')
    print(f'dense: {accuracy}')
    print(f'{"sparsity":>8}' + ''.join(f'{x:>13}' for x in METHODS))
    for sparsity in results.sparsities(dataset):
        print(f'{sparsity:8g}', end='')
        for method in METHODS:
            rows = results.select(
                dataset=dataset, sparsity=sparsity, method=method
            )
            cell = mean_and_error([row['accuracy'] for row in rows])
            print(f'{cell:>13}', end='')
        print()


def print_costs(results: Results, dataset: str, key: str, title: str) -> None:
    """Print means of a cost, relative to dense training."""
    dense = results.mean(key, dataset=dataset, method='dense')
    print(f'\n{dataset}: {title}, relative to dense training', end='')
    print(f' ({dense:.3g})' if dense < 1e3 else f' ({dense:,.0f})')
    print(f'{"sparsity":>8}' + ''.join(f'{x:>13}' for x in METHODS))
    for sparsity in results.sparsities(dataset):
        print(f'{sparsity:8g}', end='')
        for method in METHODS:
            settings = dict(dataset=dataset, sparsity=sparsity, method=method)
            print(f'{results.mean(key, **settings) / dense:13.3f}', end='')
        print()


def print_differences(results: Results) -> None:
    """Compare RigL with the best train-and-prune method."""
    print(
        '\nRigL against the best train-and-prune method: difference of', end=''
    )
    print(' accuracy, MACs and seconds')
    print(
        f'{"data set":10}{"sparsity":>9}{"best":>11}{"RigL":>13}{"3x":>13}'
        f'{"MACs":>8}{"3x":>7}{"seconds":>9}{"3x":>7}'
    )
    for dataset in results.values('dataset'):
        for sparsity in results.sparsities(dataset):
            settings = dict(dataset=dataset, sparsity=sparsity)
            best = results.best_pruner(dataset, sparsity)
            rows = results.select(method=best, **settings)
            print(f'{dataset:10}{sparsity:9g}{best:>11}', end='')
            for method in ['RigL', 'RigL 3x']:
                pairs = zip(results.select(method=method, **settings), rows)
                values = [a['accuracy'] - b['accuracy'] for a, b in pairs]
                print(f'{mean_and_error(values, "+"):>13}', end='')
            for key, width in [('macs', 8), ('seconds', 9)]:
                own = results.mean(key, method='SLR', **settings)
                for method in ['RigL', 'RigL 3x']:
                    cost = results.mean(key, method=method, **settings)
                    cell = f'1/{own / cost:.1f}' if cost > 0 else ''
                    print(f'{cell:>{width}}', end='')
                    width = 7
            print()


def draw_figures(results: Results, folder: Path) -> None:
    """Draw accuracy over sparsity and over training MACs."""
    import matplotlib

    matplotlib.use('svg')
    import matplotlib.pyplot as plt

    # The same file for the same data:
    plt.rcParams['svg.hashsalt'] = 'train_and_prune'
    datasets = results.values('dataset')
    for name, key in [('sparsity', 'sparsity'), ('macs', 'macs')]:
        figure, axes = plt.subplots(1, len(datasets), figsize=(14, 3.6))
        for ax, dataset in zip(axes, datasets):
            sparsities = results.sparsities(dataset)
            dense = results.mean('accuracy', dataset=dataset, method='dense')
            ax.axhline(dense, color='black', linewidth=0.8, label='dense')
            for method in METHODS:
                points = []
                for x in sparsities:
                    settings = dict(dataset=dataset, sparsity=x, method=method)
                    if results.select(**settings):
                        accuracy = results.mean('accuracy', **settings)
                        points.append(
                            (results.mean(key, **settings), accuracy)
                        )
                if key == 'sparsity':
                    points = [(1 - x, y) for x, y in points]
                style = '--' if method in PRUNERS else '-'
                ax.plot(*zip(*points), style, marker='o', label=method, ms=3)
            ax.set_xscale('log')
            ax.set_ylim(bottom=dense - 12, top=dense + 3)
            ax.set_title(dataset)
            if key == 'sparsity':
                ax.invert_xaxis()
                ax.set_xlabel('density')
            else:
                ax.set_xlabel('MACs of the training')
        axes[0].set_ylabel('test accuracy [%]')
        axes[-1].legend(fontsize='small')
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f'train_and_prune_{name}.svg'
        figure.savefig(path, metadata={'Date': None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', type=Path, help='of train_and_prune.py')
    parser.add_argument('--figures', type=Path, help='folder of the figures')
    args = parser.parse_args()

    results = Results(args.results)
    for header in results.headers:
        print(', '.join(f'{key}: {value}' for key, value in header.items()))
    print_differences(results)
    for dataset in results.values('dataset'):
        print_accuracy(results, dataset)
        print_costs(results, dataset, 'macs', 'MACs of all training steps')
        print_costs(results, dataset, 'seconds', 'seconds of all steps')
        print_costs(results, dataset, 'num_bytes', 'bytes at the peak')
    if args.figures is not None:
        draw_figures(results, args.figures)


if __name__ == '__main__':
    main()
