"""Seconds and memory of `MirageCondense`.

Each row runs in a process of its own. Times are those of the first call. Peak
memory excludes the loaded data set. The program of the paper takes 86 seconds
on NCI1, 60 on IMDB-BINARY and 2 on BACE for two layers (a separate measurement
on CPU).
"""

import argparse
import resource
import subprocess
import sys
import time
from typing import Any, Dict

import torch
from torch_geometric.data import InMemoryDataset
from torch_geometric.datasets import MoleculeNet, TUDataset

from torch_geometric_ext.transforms import MirageCondense

SETTINGS: Dict[str, Dict[str, Any]] = {
    'graphs, 1 %': {'ratio': 0.01},
    'graphs, 10 %': {'ratio': 0.1},
    'shared, 1 %': {'ratio': 0.01, 'share': True},
    'shared, 10 %': {'ratio': 0.1, 'share': True},
    'patterns, 1 %': {'ratio': 0.01, 'selection': 'patterns'},
    'closed, 1 %': {'ratio': 0.01, 'selection': 'patterns', 'closed': True},
}


def load(root: str, name: str) -> InMemoryDataset:
    if name in ['BACE', 'HIV']:
        return MoleculeNet(f'{root}/MoleculeNet', name)
    return TUDataset(f'{root}/TUDataset', name)


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB


def measure(root: str, name: str, num_layers: int, setting: str) -> None:
    dataset = load(root, name)
    condense = MirageCondense(
        num_layers, degree_labels=True, **SETTINGS[setting]
    )
    base, start = peak_memory(), time.perf_counter()
    small = condense(dataset)
    seconds = time.perf_counter() - start
    stages = condense.report().seconds
    print(
        f'{name:<13}{num_layers:>3}  {setting:<15}{len(dataset):>8,}'
        f'{len(small):>9,}{condense.report().num_condensed_bytes:>12,}'
        f'{stages["trees"]:>8.2f}{stages["selection"]:>11.2f}'
        f'{seconds:>8.2f}{peak_memory() - base:>9.2f}',
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument(
        '--datasets', nargs='+', default=['NCI1', 'IMDB-BINARY', 'BACE', 'HIV']
    )
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        measure(args.root, args.row[0], int(args.row[1]), args.row[2])
        return
    print(f'PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)')
    print(
        f'{"":<13}{"L":>3}  {"":<15}{"graphs":>8}{"kept":>9}{"bytes":>12}'
        f'{"trees":>8}{"selection":>11}{"all [s]":>8}{"peak GB":>9}',
        flush=True,
    )
    for name in args.datasets:
        for num_layers in [2, 3]:
            for setting in SETTINGS:
                row = ['--row', name, str(num_layers), setting]
                command = [sys.executable, __file__, '--root', args.root, *row]
                subprocess.run(command, check=True)


if __name__ == '__main__':
    main()
