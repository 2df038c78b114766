"""Time convolutions on shared trees by messages and by sparse products.

Takes training steps (forward, backward, Adam) of models of 128 channels on the
same mini-batches of trees, level by level, one step of each way in turn:

* mess.: one message for each edge (median CPU time of a step, milliseconds),
* prop.: the share of such a step that propagation takes, which is the time
  saved if it is left out,
* fresh: products, with matrices that are made in each step,
* kept: products, with matrices that are kept with the mini-batch,
* merged: fresh and kept products, after equal children of a tree are merged
  into one edge with a count,
* plain: plain graphs, in kept mini-batches.

`fresh`, `kept`, `merged` and `plain` are the time of messages to the time of
the other way. `edges` is the ratio of edges to merged edges. A GAT has no
product. The part `sort` times sorting with and without the padding of
`level_product`.
"""

import argparse
import statistics
import time
import warnings
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor
from torch.optim import Adam

from benchmark import record
from benchmark.loader.shared_trees import (
    Collated,
    Net,
    load,
    make_loader,
    share,
    train_step,
)
from torch_geometric_ext.nn import level_product
from torch_geometric_ext.nn.tree_levels import TreeLevels
from torch_geometric_ext.ops.csr_product import CSRPair, csr_matrix
from torch_geometric_ext.ops.machine import cpu_model
from torch_geometric_ext.ops.ragged import row_ptr

NUM_BATCHES = 4
CLASSES = level_product.CLASSES
MAKE_MATRIX = level_product.make_matrix
WAYS = ['mess.', 'prop.', 'fresh', 'kept', 'merged', '(kept)', 'plain']


def merge(levels: TreeLevels, level: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Return merged edges, the first of each and their counts. Equal children
    of a tree follow each other.
    """
    edges = levels.batch.edge_index[:, levels.edges(level)]
    is_first = edges.new_ones(edges.size(1), dtype=torch.bool)
    torch.any(edges[:, 1:] != edges[:, :-1], dim=0, out=is_first[1:])
    first = is_first.nonzero().view(-1)
    ends = torch.cat([first, first.new_tensor([edges.size(1)])])
    return edges[:, first], first, ends.diff()


def make_merged(
    levels: TreeLevels, level: int, weight: Any, dtype: Any, is_mean: bool
) -> CSRPair:
    """Make the matrix of a level from merged edges."""
    (source, target), first, count = merge(levels, level)
    start, size, num_cols = (
        levels.start(level),
        levels.size(level),
        levels.size(level - 1),
    )
    own = torch.cat([levels.own(level), torch.arange(num_cols)])
    source, target = own.index_select(0, source - start), target - start
    value = count.to(dtype)
    if weight is not None:
        value = value * weight[levels.edges(level)][first]
    if is_mean:
        degree = value.new_zeros(size).index_add_(0, target, value)
        value = value / degree[target]
    perm = level_product.argsort_padded(source)
    pair = []
    for row, col, val, shape in [
        (target, source, value, (size, num_cols)),
        (source[perm], target[perm], value[perm], (num_cols, size)),
    ]:
        ptr = row_ptr(torch.bincount(row, minlength=shape[0])).int()
        pair.append(csr_matrix(ptr, col.int(), val, shape[1]))
    return CSRPair(*pair)


def no_propagation(edge_index: Any, x: Any, **kwargs: Any) -> Tensor:
    out: Tensor = x[0] if isinstance(x, tuple) else x
    return out.view(out.size(0), -1) if out.dim() == 3 else out


def step(net: Net, optimizer: Adam, batch: Any, way: str) -> float:
    """Return the seconds of a step."""
    kept = way in ['kept', '(kept)']
    level_product.make_matrix = (
        make_merged if way in ['merged', '(kept)'] else MAKE_MATRIX
    )
    multiplies = kept or way in ['fresh', 'merged']
    level_product.CLASSES = CLASSES if multiplies else ()
    if way == 'prop.':
        for conv in net.convs:
            conv.propagate = no_propagation  # type: ignore[assignment]
    level_product.matrices.clear()
    if kept:
        with torch.no_grad():
            net(batch)
    start = time.process_time()
    train_step(net, optimizer, batch)
    seconds = time.process_time() - start
    for conv in net.convs:
        vars(conv).pop('propagate', None)
    return seconds


def compare(
    dataset: Any, name: str, kind: str, num_layers: int, size: int
) -> None:
    shared = share(dataset, kind, num_layers)
    loader = make_loader(shared, size).loader
    batches = [batch for batch, _ in zip(loader, range(NUM_BATCHES))]
    plain = [x for x, _ in zip(Collated(dataset, size), range(NUM_BATCHES))]
    nets = {
        is_plain: Net(kind, dataset.num_features, num_layers, is_plain)
        for is_plain in [True, False]
    }
    optimizers = {
        key: Adam(net.parameters(), lr=1e-3) for key, net in nets.items()
    }
    ways = WAYS if kind != 'GAT' else ['mess.', 'prop.', 'plain']
    seconds: Dict[str, List[float]] = {way: [] for way in ways}
    for i in range(-2, 40 if size <= 32 else 15):
        for way in ways:
            is_plain = way == 'plain'
            batch = (plain if is_plain else batches)[i % len(batches)]
            net = nets[is_plain]
            taken = step(net, optimizers[is_plain], batch, way)
            seconds[way] += [taken] if i >= 0 else []
    median = {way: statistics.median(x) for way, x in seconds.items()}
    base = median['mess.']
    propagation = 1 - median['prop.'] / base
    cells = f'{1e3 * base:8.1f}{propagation:8.0%}'
    for way in WAYS[2:]:
        cells += f'{base / median[way]:8.2f}' if way in median else f'{"":8}'
    edges = edge_ratio(batches)
    print(f'{kind:6}{num_layers:2}{size:6}{cells}{edges:8.2f}', flush=True)
    keys = ['fresh', 'kept', 'merged', 'merged_kept', 'plain']
    record.write(
        part='steps',
        data_set=name,
        model=kind,
        layers=num_layers,
        batch_size=size,
        messages=1e3 * base,
        propagation=propagation,
        **{
            key: base / median[way] if way in median else None
            for key, way in zip(keys, WAYS[2:])
        },
        edges=edges,
    )


def edge_ratio(batches: List[Any]) -> float:
    """Return the ratio of edges to merged edges."""
    num_edges = num_merged = 0
    for batch in batches:
        levels = TreeLevels(batch)
        for level in range(1, levels.num_layers + 1):
            edges, first, _ = merge(levels, level)
            num_edges += int(levels.edges(level).stop)
            num_edges -= int(levels.edges(level).start)
            num_merged += first.numel()
    return num_edges / num_merged


def compare_sorts() -> None:
    print(f'\n{"indices":>8}{"sort":>9}{"padded":>9}  [ms]')
    for size in [1000, 2000, 4000, 8000, 16000, 32000]:
        index = torch.randint(size // 4, (size,))

        times = []
        for level_product.MIN_PADDED_SIZE in [size + 1, 0]:
            times.append(measure(level_product.argsort_padded, index))
        print(f'{size:8,}' + ''.join(f'{1e3 * x:9.3f}' for x in times))
        own, padded = (1e3 * x for x in times)
        record.write(part='sort', indices=size, sort=own, padded=padded)


def measure(func: Callable[[Tensor], Any], x: Tensor) -> float:
    seconds = []
    for _ in range(50):
        start = time.process_time()
        func(x)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument(
        '--datasets',
        nargs='+',
        default=[
            'NCI1',
            'AIDS',
            'MUTAG',
            'PROTEINS',
            'DD',
            'IMDB-BINARY',
            'IMDB-MULTI',
            'threads',
        ],
    )
    kinds = ['GCN', 'GIN', 'SAGE', 'GAT']
    parser.add_argument('--models', nargs='+', default=kinds)
    parser.add_argument('--num_layers', type=int, nargs='+', default=[2, 3])
    parser.add_argument(
        '--batch_sizes', type=int, nargs='+', default=[32, 512]
    )
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--parts', nargs='+', default=['steps', 'sort'])
    record.add_argument(parser)
    args = parser.parse_args()

    warnings.simplefilter('ignore')
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    record.start(args.output, [0])
    print(
        f'{args.threads} thread(s), {cpu_model()}, PyTorch {torch.__version__}'
    )
    for name in args.datasets if 'steps' in args.parts else []:
        dataset = load(args.root, name)
        print(f'\n{name}: {len(dataset):,} graphs')
        labels = ''.join(f'{way:>8}' for way in [*WAYS, 'edges'])
        print(f'{"model":14}' + labels)
        for num_layers in args.num_layers:
            for size in args.batch_sizes:
                for kind in args.models if size <= len(dataset) else []:
                    compare(dataset, name, kind, num_layers, size)
    if 'sort' in args.parts:
        compare_sorts()


if __name__ == '__main__':
    main()
