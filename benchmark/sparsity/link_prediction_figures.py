"""Draw the figures of `link_prediction.py`: AUC over density and over MACs."""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Tuple

METHODS = ['narrow, budget', 'magnitude', 'ADMM', 'SLR', 'RigL']
METHODS += ['RigL, budget']
PRUNERS = ['magnitude', 'ADMM', 'SLR']
LINES = ['boosted trees', 'best heuristic']  # Without a head.

Key = Tuple[str, str, str]
Means = Dict[Key, Dict[float, Dict[str, float]]]


def read(path: Path, negatives: str) -> Means:
    """Return means over seeds by data set, head and method, and sparsity."""
    rows: Dict[Any, List[Dict[str, Any]]] = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row['negatives'] == negatives:
            key = row['dataset'], row['head'], row['method']
            rows[key, row.get('sparsity', 0.0)].append(row)
    out: Means = defaultdict(dict)
    for (key, sparsity), group in rows.items():
        out[key][sparsity] = {
            name: sum(row.get(name, 0.0) for row in group) / len(group)
            for name in ['auc', 'macs']
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', type=Path, help='of link_prediction.py')
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--negatives', default='random')
    args = parser.parse_args()

    import matplotlib

    matplotlib.use('svg')
    import matplotlib.pyplot as plt

    # The same file for the same data:
    plt.rcParams['svg.hashsalt'] = 'link_prediction'
    means = read(args.results, args.negatives)
    datasets = list(dict.fromkeys(dataset for dataset, _, _ in means))
    for name in ['sparsity', 'macs']:
        figure, axes = plt.subplots(1, len(datasets), figsize=(12, 3.6))
        for ax, dataset in zip(axes, datasets):
            for i, line in enumerate(LINES):
                value = means[dataset, 'none', line][0.0]['auc']
                style = [':', '-.'][i]
                ax.axhline(value, ls=style, color='gray', label=line)
            dense = means[dataset, 'product', 'dense'][0.0]['auc']
            ax.axhline(dense, color='black', linewidth=0.8, label='dense')
            for method in METHODS:
                points = sorted(means[dataset, 'product', method].items())
                x = [
                    1 - sparsity if name == 'sparsity' else mean['macs']
                    for sparsity, mean in points
                ]
                y = [mean['auc'] for _, mean in points]
                style = '--' if method in PRUNERS else '-'
                ax.plot(x, y, style, marker='o', ms=3, label=method)
            ax.set_xscale('log')
            ax.set_title(dataset)
            if name == 'sparsity':
                ax.invert_xaxis()
                ax.set_xlabel('density')
            else:
                ax.set_xlabel('MACs of the training')
        axes[0].set_ylabel('test AUC [%]')
        axes[-1].legend(fontsize='x-small')
        figure.tight_layout()
        args.folder.mkdir(parents=True, exist_ok=True)
        path = args.folder / f'link_prediction_{name}.svg'
        figure.savefig(path, metadata={'Date': None})


if __name__ == '__main__':
    main()
