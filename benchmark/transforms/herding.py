"""Quality and time of herding by scores of earlier visits.

The class of the most graphs is herded. `exact` evaluates all 1,024 candidates
of a part in each step, `default` an eighth of 2,048 and those of the lowest
earlier scores. Columns are the distances of the mean features of the first
graphs to those of the class, relative to the root mean square distance of as
many random graphs. Times are CPU seconds of a whole order, methods in turn.
"""

import argparse
import time
import warnings
from typing import Any, Dict, List

import torch
from torch import Tensor
from torch_geometric.datasets import MoleculeNet, TUDataset

from benchmark import record
from torch_geometric_ext.ops import herding
from torch_geometric_ext.ops.ragged import take_rows
from torch_geometric_ext.transforms import ShareComputationTrees
from torch_geometric_ext.transforms.mirage.select_graphs import (
    HerdingRows,
    herding_rows,
)

RATIOS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
METHODS: Dict[str, Dict[str, Any]] = {
    'exact': {'num_candidates': 1024, 'num_finalists': 1024},
    'default': {},
}


def load(root: str, name: str, num_layers: int) -> HerdingRows:
    if name in ['BACE', 'HIV']:
        dataset = MoleculeNet(f'{root}/MoleculeNet', name)
    else:
        dataset = TUDataset(f'{root}/TUDataset', name)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Few graphs share little.
        shared = ShareComputationTrees(num_layers, degree_labels=True)(dataset)
    y = shared.graph_attrs['y'].view(-1)
    group = y.unique(return_inverse=True)[1]
    return herding_rows(shared, group)


def distances(rows: HerdingRows, begin: int, order: Tensor) -> List[float]:
    """Return the distances of prefixes, relative to random graphs."""
    size = order.numel()
    end = begin + size
    entry = slice(int(rows.ptr[begin]), int(rows.ptr[end]))
    value = rows.value.double()
    mean = torch.zeros(int(rows.item.max()) + 1, dtype=torch.double)
    total = torch.zeros_like(mean)
    mean.index_add_(0, rows.item[entry].long(), value[entry]).div_(size)
    variance = value[entry].square().sum() / size - mean.square().sum()
    out, first = [], 0
    for ratio in RATIOS:
        last = max(int(ratio * size), 1)
        _, index = take_rows(rows.ptr, order[first:last])
        total.index_add_(0, rows.item[index].long(), value[index])
        random = variance / last * (size - last) / (size - 1)
        out.append(float((total / last - mean).norm() / random.sqrt()))
        first = last
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument(
        '--datasets',
        nargs='+',
        default=['PROTEINS', 'DD', 'NCI1', 'IMDB-BINARY', 'HIV'],
    )
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record.start(args.output)
    header = ''.join(f'{ratio:>7.1%}' for ratio in RATIOS)
    print(f'{"":<13}{"graphs":>8}{"":>9}{header}{"[s]":>7}')
    for name in args.datasets:
        rows = load(args.root, name, num_layers=2)
        size = rows.group_ptr.diff()
        largest = int(size.argmax())
        begin, end = rows.group_ptr[largest : largest + 2].tolist()
        for method, settings in METHODS.items():
            start = time.process_time()
            order = herding(*rows[1:], **settings)
            seconds = time.process_time() - start
            values = distances(rows, begin, order[begin:end])
            print(
                f'{name:<13}{end - begin:>8,} {method:<8}'
                + ''.join(f'{value:>7.3f}' for value in values)
                + f'{seconds:>7.2f}',
                flush=True,
            )
            record.write(
                data_set=name,
                graphs=end - begin,
                method=method,
                distances=dict(zip(map(str, RATIOS), values)),
                seconds=seconds,
            )


if __name__ == '__main__':
    main()
