"""Time ids of computation trees against rivals.

Methods:

* ours, on one thread and on two threads,
* explicit: each tree as a string in a hash table (C++, one thread, compiled at
  start), as in the code of the MIRAGE paper,
* reference: the operators of ours in plain PyTorch,
* `WLConv` of PyG, whose colors are the same classes up to hash collisions, but
  which supports no edge labels.

Each method starts from a collated data set. The script checks that all methods
give the same classes. Trees as strings exhaust the memory at three layers of
IMDB-BINARY, hence all methods get its first `--limit` graphs there. At the
end, the script prints time and memory by number of layers and edges.
"""

import argparse
import time
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils.cpp_extension import load as load_extension
from torch_geometric.data import Batch
from torch_geometric.datasets import MoleculeNet, TUDataset
from torch_geometric.nn import WLConv

import torch_geometric_ext.typing
from torch_geometric_ext.ops import computation_tree_ids, unique_rows


class Graph(NamedTuple):
    x: Tensor
    edge_index: Tensor
    edge_attr: Optional[Tensor]


def load(root: str, name: str, num_graphs: Optional[int] = None) -> Graph:
    if name == 'HIV':
        dataset = MoleculeNet(f'{root}/MoleculeNet', name)
    else:
        dataset = TUDataset(f'{root}/TUDataset', name)
    batch = Batch.from_data_list(list(dataset[:num_graphs]))
    if batch.x is None:
        degree = batch.edge_index[1].bincount(minlength=batch.num_nodes)
        return Graph(degree.view(-1, 1), batch.edge_index, None)
    edge_attr = batch.edge_attr if name == 'HIV' else None
    return Graph(batch.x, batch.edge_index, edge_attr)


def measure(function: Callable, repeat: int) -> Tuple[Any, float]:
    """Return the output and the shortest time of at most `repeat` runs."""
    seconds: List[float] = []
    while len(seconds) < repeat:
        start = time.perf_counter()
        out = function()
        seconds.append(time.perf_counter() - start)
        if seconds[0] > 2:
            break
    return out, min(seconds)


def ours(graph: Graph, num_layers: int) -> Tensor:
    x, edge_index, edge_attr = graph
    return computation_tree_ids(x, edge_index, num_layers, edge_attr).ids[-1]


def reference(graph: Graph, num_layers: int) -> Tensor:
    torch_geometric_ext.typing.WITH_EXT = False
    try:
        return ours(graph, num_layers)
    finally:
        torch_geometric_ext.typing.WITH_EXT = True


def explicit(graph: Graph, num_layers: int, extension: Any) -> Tensor:
    label, _ = unique_rows(graph.x)
    edge_label: Optional[Tensor] = None
    target, order = graph.edge_index[1].sort()
    if graph.edge_attr is not None:
        edge_label = unique_rows(graph.edge_attr)[0][order]
    ptr = torch.zeros(label.numel() + 1, dtype=torch.long)
    ptr[1:] = target.bincount(minlength=label.numel()).cumsum(0)
    source = graph.edge_index[0, order]
    return extension.explicit_tree_ids(
        label, ptr, source, edge_label, num_layers
    )


def weisfeiler_lehman(graph: Graph, num_layers: int) -> Tensor:
    out, _ = unique_rows(graph.x)
    for _ in range(num_layers):
        out = WLConv()(out, graph.edge_index)
    return out


def same_groups(ids: Tensor, others: Tensor) -> bool:
    pairs = torch.stack([ids, others], dim=1).unique(dim=0)
    return len(pairs) == ids.unique().numel() == others.unique().numel()


def compare(graph: Graph, num_layers: int, extension: Any, label: str) -> None:
    torch.set_num_threads(2)
    expected, two = measure(lambda: ours(graph, num_layers), 5)
    torch.set_num_threads(1)
    _, one = measure(lambda: ours(graph, num_layers), 5)
    rivals = [
        measure(lambda: explicit(graph, num_layers, extension), 2),
        measure(lambda: reference(graph, num_layers), 2),
    ]
    if graph.edge_attr is None:
        rivals.append(measure(lambda: weisfeiler_lehman(graph, num_layers), 1))
    for out, _ in rivals:
        assert same_groups(out, expected)
    cells = ''.join(f'{s:9.2f}s{s / one:7.0f}x' for _, s in rivals)
    print(
        f'{label:22}{num_layers:2}{graph.x.size(0):11,}'
        f'{graph.edge_index.size(1):11,}{int(expected.max()) + 1:9,}'
        f'{one:9.3f}s{two:8.3f}s{cells}',
        flush=True,
    )


def peak_memory(function: Callable) -> float:
    """Return the peak memory of a function in bytes, minus that before."""
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    before = status('VmRSS')
    function()
    return status('VmHWM') - before


def status(key: str) -> int:
    with open('/proc/self/status') as file:
        line = next(line for line in file if line.startswith(key))
    return 1024 * int(line.split()[1])


def repeat_graph(graph: Graph, times: int) -> Graph:
    num_nodes = graph.x.size(0)
    offset = torch.arange(times).repeat_interleave(graph.edge_index.size(1))
    edge_index = graph.edge_index.repeat(1, times) + num_nodes * offset
    return Graph(graph.x.repeat(times, 1), edge_index, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument('--limit', type=int, default=200)
    parser.add_argument(
        '--datasets',
        nargs='+',
        default=['NCI1', 'IMDB-BINARY', 'DD', 'HIV'],
    )
    args = parser.parse_args()

    source = Path(__file__).parent / 'explicit_trees.cpp'
    extension = load_extension(
        'explicit_trees', [str(source)], extra_cflags=['-O3']
    )
    print(f'PyTorch {torch.__version__}; ratios to ours on one thread')
    print(
        f'{"":22}{"L":>2}{"nodes":>11}{"edges":>11}{"trees":>9}'
        f'{"ours":>10}{"2 thr.":>9}{"explicit trees":>18}'
        f'{"reference":>18}{"WLConv":>18}'
    )
    graphs = {}
    for name in args.datasets:
        graphs[name] = load(args.root, name)
        for num_layers in [2, 3]:
            graph, label = graphs[name], name
            if name == 'IMDB-BINARY' and num_layers == 3:
                graph = load(args.root, name, args.limit)
                label = f'{name}[:{args.limit}]'
            if name == 'DD' and num_layers == 3:
                continue  # Explicit trees take minutes.
            compare(graph, num_layers, extension, label)

    name, base = next(iter(graphs.items()))
    torch.set_num_threads(1)
    print(f'\n{name} on one thread: seconds by number of layers')
    for num_layers in [1, 2, 3, 4, 6, 8]:
        _, seconds = measure(lambda n=num_layers: ours(base, n), 5)
        print(f'{num_layers:8}{seconds:9.3f}')
    print(f'\n{name} repeated, two layers, one thread')
    print(f'{"edges":>12}{"s":>9}{"ns/edge":>9}{"bytes/edge":>12}')
    for times in [1, 4, 16, 64]:
        graph = repeat_graph(base, times)
        num_edges = graph.edge_index.size(1)
        peak = peak_memory(lambda g=graph: ours(g, 2))
        _, seconds = measure(lambda g=graph: ours(g, 2), 3)
        print(
            f'{num_edges:12,}{seconds:9.3f}{1e9 * seconds / num_edges:9.0f}'
            f'{peak / num_edges:12.0f}'
        )


if __name__ == '__main__':
    main()
