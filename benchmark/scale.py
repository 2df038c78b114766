"""How time and memory grow with the size of the input.

* `condense`: `MirageCondense` on random molecules, trees shared, at 1 % and
  10 % of the bytes.
* `trees`: `ShareComputationTrees` on random molecules, nanoseconds an edge.
* `lottery`: `GraphLotteryPruner` on a random graph, a few epochs, in its
  stages and outside of them.
* `update`: an update of `RigL` on a square layer, dense gradients included.

Each row runs in a process of its own. Seconds are CPU seconds of one thread.
Peak memory excludes the loaded input. A growth factor compares a row with the
row above it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.nn import GCN

from benchmark import record
from torch_geometric_ext.data.storage import from_tensors
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops.machine import describe_machine
from torch_geometric_ext.ops.ragged import row_index, row_ptr
from torch_geometric_ext.sparsity import RigL
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)
from torch_geometric_ext.utils import GraphLotteryPruner

ROWS: List[Tuple[str, List[int]]] = [
    ('trees', [25_000, 100_000, 1_000_000]),
    ('condense 1 %', [100_000, 1_000_000]),
    ('condense 10 %', [100_000, 1_000_000]),
    ('lottery', [100_000, 1_000_000]),
    ('update', [2_048, 4_096, 8_192]),
]

# Seconds of a search that are not those of training and evaluation.
OUTSIDE = ['setup', 'channels', 'other']


def random_molecules(num_graphs: int, seed: int = 0) -> InMemoryDataset:
    """Return chains of 15 to 35 atoms with branches and six-rings, of two
    classes that differ in the frequencies of atoms.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    ptr = row_ptr(15 + (21 * random(num_graphs)).long())
    y = (random(num_graphs) < 0.5).long()
    size = int(ptr[-1])
    graph, node = row_index(ptr, size), torch.arange(size)
    position, draw = node - ptr[graph], random(size)
    # Most atoms follow the previous one, the others branch off before it:
    step = 1 + (draw > 0.75).long() + (draw > 0.92).long()
    bonded = position > 0
    ring = (position >= 5) & (random(size) < 0.12)
    source = torch.cat([node[bonded], node[ring]])
    target = node - torch.minimum(step, position)
    target = torch.cat([target[bonded], node[ring] - 5])
    edge_index = torch.stack(
        [torch.cat([source, target]), torch.cat([target, source])]
    )
    edge_graph = graph[edge_index[0]]
    order = edge_graph.argsort(stable=True)
    edge_ptr = row_ptr(edge_graph.bincount(minlength=num_graphs))
    edge_index = (edge_index - ptr[edge_graph])[:, order]
    # Frequencies of 37 atoms fall as 1 / k^2:
    weight = 1 / torch.arange(1, 38, dtype=torch.double).square()
    weight = weight.repeat(2, 1)
    weight[1, 1:4] *= 1.3
    level = (weight / weight.sum(dim=1, keepdim=True)).cumsum(dim=1)
    x = torch.empty(size, dtype=torch.long)
    for label in range(2):
        mask = y[graph] == label
        draw = random(int(mask.sum())).double()
        x[mask] = torch.bucketize(draw, level[label]).clamp(max=36)
    attrs = {'x': x.view(-1, 1), 'edge_index': edge_index, 'y': y}
    slices = {'x': ptr, 'edge_index': edge_ptr}
    return from_tensors(attrs, {**slices, 'y': torch.arange(num_graphs + 1)})


def random_graph(num_nodes: int) -> Data:
    """Return a graph of ten directed edges a node, and 2,000 labels."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(num_nodes, (2, 5 * num_nodes), generator=generator)
    y = torch.randint(8, (num_nodes,), generator=generator)
    node = torch.arange(num_nodes)
    return Data(
        x=torch.randn(num_nodes, 32, generator=generator),
        edge_index=torch.cat([half, half.flip(0)], dim=1),
        y=y,
        train_mask=node < 1000,
        val_mask=(node >= 1000) & (node < 2000),
    )


def memory(key: str) -> float:
    """Return the current (`VmRSS`) or the peak memory (`VmHWM`) in GB."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def timed(function: Callable[[], Any]) -> Tuple[Any, float]:
    start = time.process_time()
    out = function()
    return out, time.process_time() - start


def load(path: str) -> Any:
    """Return the input that another process wrote, to keep its peak apart."""
    state = torch.load(path, weights_only=False)
    return from_tensors(*state) if isinstance(state, tuple) else state


def measure(name: str, size: int, path: str) -> Dict[str, Any]:
    """Return a row of the table."""
    row: Dict[str, Any] = {'name': name, 'size': size, 'gigabytes': None}
    if name == 'update':
        row['seconds'], row['detail'] = measure_update(size)
        return row
    data = load(path)
    base = memory('VmRSS')
    row['seconds'], row['detail'] = MEASURE[name](data)
    row['gigabytes'] = memory('VmHWM') - base
    return row


def show(row: Dict[str, Any]) -> None:
    """Print and record a row."""
    growth, peak = row['growth'], row['gigabytes']
    cells = f'{growth:>7.1f}x  ' if growth else f'{"":>10}'
    cells += f'{peak:>6.2f} GB  ' if peak else ''
    print(
        f'{row["name"]:<15}{row["size"]:>10,}{row["seconds"]:>10.2f}{cells}'
        f'{row["detail"]}',
        flush=True,
    )
    record.write(**row)


def measure_trees(dataset: InMemoryDataset) -> Tuple[float, str]:
    _, seconds = timed(lambda: ShareComputationTrees(2)(dataset))
    rate = 1e9 * seconds / dataset._data.edge_index.size(1)
    return seconds, f'{rate:.0f} ns an edge'


def measure_condense(ratio: float) -> Callable[[Any], Tuple[float, str]]:
    def measure(dataset: InMemoryDataset) -> Tuple[float, str]:
        condense = MirageCondense(2, ratio=ratio, share=True)
        small, seconds = timed(lambda: condense(dataset))
        part = condense.report().seconds
        trees = part['trees'] / sum(part.values())
        return seconds, f'{len(small):,} graphs kept, {trees:.0%} for trees'

    return measure


def measure_lottery(data: Data) -> Tuple[float, str]:
    torch.manual_seed(0)
    pruner = GraphLotteryPruner(
        GCN(32, 64, 2, 8, dropout=0.5),
        weight_sparsity=0.9,
        edge_sparsity=0.35,
        pretrain_epochs=4,
        search_epochs=5,
        retrain_epochs=5,
        update_every=2,
    )
    ticket, seconds = timed(lambda: pruner.fit(data))
    outside = sum(ticket.seconds[key] for key in OUTSIDE)
    return (
        seconds,
        f'{outside / sum(ticket.seconds.values()):.0%} outside the stages',
    )


def measure_update(size: int) -> Tuple[float, str]:
    """Return the seconds of an update beyond those of a step without one."""
    torch.manual_seed(0)
    layer = SparseLinear(size, size, sparsity=0.95)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scheduler = RigL(layer, optimizer, num_steps=10**6, update_every=2)
    x = torch.randn(256, size)
    steps = []
    for _ in range(8):
        layer(x).square().mean().backward()
        optimizer.step()
        steps.append(timed(scheduler.step)[1])
        optimizer.zero_grad()
    seconds = sum(sorted(steps)[-4:]) / 4
    return seconds, f'{1e9 * seconds / size**2:.1f} ns a dense weight'


MEASURE: Dict[str, Callable[[Any], Tuple[float, str]]] = {
    'trees': measure_trees,
    'condense 1 %': measure_condense(0.01),
    'condense 10 %': measure_condense(0.1),
    'lottery': measure_lottery,
}


def make(name: str, size: int, path: str) -> None:
    if name == 'lottery':
        torch.save(random_graph(size), path)
    elif name != 'update':
        dataset = random_molecules(size)
        torch.save((dataset._data.to_dict(), dataset.slices), path)


def run(stage: str, name: str, size: int, path: str) -> str:
    command = [sys.executable, '-m', 'benchmark.scale']
    command += [stage, name, str(size), path]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', nargs='+', choices=[x for x, _ in ROWS])
    parser.add_argument('--make', nargs=3, help=argparse.SUPPRESS)
    parser.add_argument('--row', nargs=3, help=argparse.SUPPRESS)
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')  # Random molecules share little.
    if args.make:
        make(args.make[0], int(args.make[1]), args.make[2])
        return
    if args.row:
        name, size, path = args.row
        print(json.dumps(measure(name, int(size), path)))
        return
    record.start(args.output, [0])
    for key, value in describe_machine().items():
        print(f'{key}: {value}')
    print(f'{"":<15}{"size":>10}{"CPU [s]":>10}{"growth":>8}')
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in ROWS:
            if args.only and name not in args.only:
                continue
            before = 0.0
            for size in sizes:
                path = f'{folder}/{name.split()[0]}_{size}.pt'
                if not Path(path).exists():
                    run('--make', name, size, path)
                row = json.loads(run('--row', name, size, path))
                seconds = row['seconds']
                row['growth'] = seconds / before if before else None
                show(row)
                before = seconds


if __name__ == '__main__':
    main()
