"""Train six models at a lower cost, and print one row for each.

Each row has three trainings from the same initial weights: as in a PyG
tutorial ("plain"), with what saves cost without this package ("by hand"), and
with a component of this package ("ours"). The times are those of training,
with all preparation. Molecules and their melting points are part of the
`chemicals` package: nothing is downloaded. Sizes and sparsities were chosen by
results of seeds 0 and 1; another `--seed` confirms them.
"""

import argparse
import time
from pathlib import Path

import torch
import torch_geometric

import torch_geometric_ext
from torch_geometric_ext.datasets import FingerprintKNN, MeltingPoint
from torch_geometric_ext.ops import calibrate
from torch_geometric_ext.ops.machine import cpu_model
from torch_geometric_ext.typing import WITH_EXT

from .fingerprints import full_batches, sparse_layers
from .molecules import fewer_graphs, trees
from .table import HEADER, run_doors, summarize, to_json_lines

LEGEND = """\
fewer graphs    GIN. Liquids are rare, a fifth of the molecules is corrupted.
                By hand: half of the molecules an epoch, balanced by class.
shared trees    GIN, mini-batches of 1,024. By hand: collated once.
condensed data  The same GIN. By hand: 5 % of the molecules, as many steps.
sparse layers   GCN, 512 channels. By hand: 25 channels.
full batches    GCN, 256 channels. By hand: a CSR matrix, normalized once.
tickets         The same GCN. By hand: 5 channels.

Cells are test results (F1 in the first row, accuracy below) and seconds of
training.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--root', default='.data', help='folder of data sets')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    parser.add_argument(
        '--epochs', type=int, default=6, help='epochs on molecules'
    )
    parser.add_argument(
        '--node_epochs', type=int, default=30, help='epochs on fingerprints'
    )
    parser.add_argument('--output', help='file of JSON lines for the rows')
    args = parser.parse_args()

    start, root = time.perf_counter(), Path(args.root)
    train = MeltingPoint(str(root / 'MeltingPoint'), 'train')
    test = MeltingPoint(str(root / 'MeltingPoint'), 'test')
    data = FingerprintKNN(str(root / 'FingerprintKNN'))[0]
    cpu, threads = cpu_model(), torch.get_num_threads()
    print(
        f'Does a molecule melt below 25 °C, up to 125 °C, or above? '
        f'{len(train):,} training and {len(test):,} test molecules.\nAs one '
        f'graph: {data.num_nodes:,} molecules, {data.num_edges:,} edges '
        f'between similar ones, {data.num_features:,} features.\n{cpu}, '
        f'{threads} thread(s), kernels {"on" if WITH_EXT else "off"}, seed '
        f'{args.seed}\n\n{LEGEND}\n{HEADER}'
    )
    if WITH_EXT:
        calibrate()  # Measure once where sparse products are faster.
    graphs = train, test, args.seed, args.epochs
    nodes = data, args.seed, args.node_epochs
    doors = [
        fewer_graphs(*graphs),
        *trees(*graphs),
        sparse_layers(*nodes),
        *full_batches(*nodes),
    ]
    results = run_doors(doors)
    seconds = time.perf_counter() - start
    print(f'\n{summarize(results)}\n{seconds:.0f} seconds in all.')
    if args.output:
        Path(args.output).write_text(
            to_json_lines(
                doors,
                results,
                command=f'python -m examples.demo --seed {args.seed}',
                date=time.strftime('%Y-%m-%d'),
                processor=cpu,
                threads=threads,
                seeds=[args.seed],
                versions=dict(
                    torch=torch.__version__,
                    torch_geometric=torch_geometric.__version__,
                    torch_geometric_ext=torch_geometric_ext.__version__,
                ),
            )
        )


if __name__ == '__main__':
    main()
