"""Time full-batch training, plain, by hand and accelerated.

Trains GCN, SAGE, GIN and GAT models of two layers in one process, one epoch of
each method in turn:

* plain: the loop of PyG's examples on the whole graph,
* by hand: what a careful user writes: edges are normalized or get self-loops
  once, training and evaluation run on `k_hop_subgraph` of their nodes where
  that is smaller, with edges as a CSR matrix or as `edge_index`, whichever is
  faster for that model (tried first),
* cached (GCN, with `--cached`): what an expert writes: the rows of A·X that
  the outputs need are computed once, dense or in CSR format, whichever is
  faster (tried first), and the second layer multiplies by a slice of A,
* fast: `accelerate(model, graph)`.

An epoch is a step of training (forward, backward, Adam) and an evaluation of
the validation nodes. Prints milliseconds (medians; of CPU time with one thread
and of wall time with more), ratios, the memory that a training step keeps for
its backward pass (without parameters, features and caches) and that of all
caches, the seconds that it takes to set up the fast way, and the largest
difference of losses and gradients between plain and fast, relative to the
largest gradient of a tensor, in single and in double precision, and the same
of both in single precision from plain in double precision.
"""

import argparse
import copy
import gc
import random
import statistics
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
import torch_geometric
from torch import Tensor
from torch.nn import Module, Parameter
from torch_geometric.data import Data
from torch_geometric.datasets import Amazon, Coauthor, Planetoid
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import (
    add_self_loops,
    k_hop_subgraph,
    remove_self_loops,
    to_torch_csr_tensor,
)

from benchmark import record
from benchmark.full_batch.cached_loop import cached_loop
from torch_geometric_ext.full_batch import StaticGraph, accelerate
from torch_geometric_ext.ops.machine import cpu_model

DATASETS = ['Cora', 'CiteSeer', 'PubMed', 'Computers', 'Physics']
MODELS = {'GCN': GCN, 'SAGE': GraphSAGE, 'GIN': GIN, 'GAT': GAT}
HEADS = 8
DIFFERENCES = ['float', 'double', 'cached double', 'plain err', 'fast err']

Loss = Callable[[], Tensor]


class Method(NamedTuple):
    """A way to compute outputs of training and of validation nodes."""

    train: Callable[[], Tensor]
    valid: Callable[[], Tensor]


def load(root: str, name: str, labels: str) -> Data:
    if name in ['Computers']:
        data = Amazon(f'{root}/Amazon', name)[0]
    elif name in ['Physics']:
        data = Coauthor(f'{root}/Coauthor', name)[0]
    else:
        data = Planetoid(f'{root}/Planetoid', name)[0]
    if labels == 'few' and 'train_mask' in data:
        return data
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(data.num_nodes, generator=generator)
    if labels == 'few':
        y = data.y[order]
        parts = [order[y == label][:20] for label in y.unique()]
        train = torch.cat(parts)
        rest = order[~torch.isin(order, train)]
        valid = rest[:500]
    else:
        first, last = (int(x * data.num_nodes) for x in (0.6, 0.8))
        train, valid = order[:first], order[first:last]
    mask = torch.zeros(data.num_nodes, dtype=torch.bool)
    data.train_mask = mask.index_fill(0, train, True)
    data.val_mask = mask.index_fill(0, valid, True)
    return data


def make(name: str, data: Data, hidden: int) -> Module:
    torch.manual_seed(0)
    kwargs = {'heads': HEADS} if name == 'GAT' else {}
    num_classes = int(data.y.max()) + 1
    cls = MODELS[name]
    return cls(
        data.num_features, hidden, 2, num_classes, dropout=0.5, **kwargs
    )


def plain(model: Module, data: Data) -> Method:
    def run(mask: Tensor) -> Callable[[], Tensor]:
        return lambda: model(data.x, data.edge_index)[mask]

    return Method(run(data.train_mask), run(data.val_mask))


def by_hand(name: str, model: Module, data: Data, csr: bool) -> Method:
    edge_index, weight = data.edge_index, None
    hand = copy.deepcopy(model)
    for own, other in zip(hand.modules(), model.modules()):
        own._parameters = other._parameters
    num_nodes = data.num_nodes
    if name == 'GCN':
        edge_index, weight = gcn_norm(edge_index, None, num_nodes)
    if name == 'GAT':
        edge_index, _ = remove_self_loops(edge_index)
        edge_index, _ = add_self_loops(edge_index, num_nodes=num_nodes)
    convs: Any = hand.convs
    for conv in convs:
        conv.normalize = conv.add_self_loops = False

    def run(mask: Tensor) -> Callable[[], Tensor]:
        nodes = mask.nonzero().flatten()
        subset, edges, index, kept = k_hop_subgraph(
            nodes, 2, edge_index, relabel_nodes=True, num_nodes=num_nodes
        )
        x, part = data.x[subset], None if weight is None else weight[kept]
        if subset.numel() > 0.9 * num_nodes:
            x, edges, part, index = data.x, edge_index, weight, nodes
        if csr:
            adj = to_torch_csr_tensor(edges.flip(0), part, size=len(x))
            return lambda: hand(x, adj)[index]
        if part is None:
            return lambda: hand(x, edges)[index]
        return lambda: hand(x, edges, part)[index]

    method = Method(run(data.train_mask), run(data.val_mask))
    modes = hand.train, hand.eval
    return Method(
        lambda: (modes[0](model.training), method.train())[1],
        lambda: (modes[0](model.training), method.valid())[1],
    )


def hand_cached(model: Module, data: Data) -> List[Method]:
    return [Method(*cached_loop(model, data, csr)) for csr in [False, True]]


def accelerated(model: Module, graph: StaticGraph, data: Data) -> Method:
    fast = accelerate(model, graph)
    return Method(lambda: fast(data.train_mask), lambda: fast(data.val_mask))


def epoch(
    model: Module, method: Method, optimizer: torch.optim.Optimizer, y: Tensor
) -> None:
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(method.train(), y).backward()
    optimizer.step()
    with torch.no_grad():
        model.eval()
        method.valid().argmax(dim=-1)


def clock() -> float:
    if torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def saved_memory(model: Module, method: Method) -> float:
    """Return the memory that a forward pass keeps for the backward pass, in
    MiB, without parameters, features and caches.
    """
    sizes = {}
    model.train()
    method.train()  # Fills caches.
    known = {
        x.untyped_storage().data_ptr()
        for x in gc.get_objects()
        if type(x) in [Tensor, Parameter] and x.layout == torch.strided
    }

    def pack(x: Tensor) -> Tensor:
        if x.layout == torch.strided:
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = method.train()
    total = sum(size for key, size in sizes.items() if key not in known)
    return total / 2**20 if out.requires_grad else 0.0


def losses_and_grads(model: Module, method: Method, y: Tensor) -> List[Tensor]:
    loss = F.cross_entropy(method.train(), y)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return [x.double() for x in [loss.detach(), *grads]]


def difference(found: List[Tensor], expected: List[Tensor]) -> float:
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(found, expected)
    )


def differences(
    name: str, model: Module, data: Data, cached: bool
) -> Dict[str, float]:
    """Compare losses and gradients with those of plain, without dropout."""
    plains, fasts = [], []
    found = {}
    for dtype in [torch.float, torch.double]:
        other = copy.deepcopy(model).to(dtype).train()
        for module in other.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, 'dropout', None), float):
                setattr(module, 'dropout', 0.0)  # noqa: B010
        graph = copy.copy(data)
        graph.x = data.x.to(dtype)
        y = data.y[data.train_mask]
        fast = accelerated(other, StaticGraph(graph), graph)
        plains.append(losses_and_grads(other, plain(other, graph), y))
        fasts.append(losses_and_grads(other, fast, y))
        if cached and dtype == torch.double:
            found['cached double'] = max(
                difference(losses_and_grads(other, hand, y), plains[1])
                for hand in hand_cached(other, graph)
            )
    return {
        **found,
        'float': difference(fasts[0], plains[0]),
        'double': difference(fasts[1], plains[1]),
        'plain err': difference(plains[0], plains[1]),
        'fast err': difference(fasts[0], plains[1]),
    }


def compare(
    name: str, data: Data, hidden: int, args: argparse.Namespace
) -> Dict[str, float]:
    model = make(name, data, hidden)
    errors = {}
    if args.differences:
        errors = differences(name, model, data, args.cached)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    y = data.y[data.train_mask]
    methods = {'plain': plain(model, data)}
    start = time.perf_counter()
    graph = StaticGraph(data)
    methods['fast'] = accelerated(model, graph, data)
    setup = time.perf_counter() - start

    def measure(method: Method) -> float:
        start = clock()
        epoch(model, method, optimizer, y)
        return clock() - start

    def fastest(choices: List[Method]) -> Method:
        tried = [min(measure(x) for _ in range(2)) for x in choices]
        return choices[tried.index(min(tried))]

    # CSR matrices do not keep the attention of GAT apart:
    formats = [False] if name == 'GAT' else [False, True]
    methods['hand'] = fastest([by_hand(name, model, data, x) for x in formats])
    if args.cached:
        methods['cached'] = fastest(hand_cached(model, data))

    times: Dict[str, List[float]] = {key: [] for key in methods}
    for method in methods.values():
        measure(method)
    begin = time.perf_counter()
    for i in range(args.max_rounds):
        # Each method leaves other caches and free pages to the next one.
        for key in random.Random(i).sample(list(methods), len(methods)):
            times[key].append(measure(methods[key]))
        if i >= 1 and time.perf_counter() - begin > args.seconds:
            break
    out = {key: 1e3 * statistics.median(times[key]) for key in methods}
    for key in sorted(methods.keys() - {'fast'}):
        ratios = [a / b for a, b in zip(times[key], times['fast'])]
        out[f'x {key}'] = statistics.median(ratios)
    for key in methods:
        out[f'MiB {key}'] = saved_memory(model, methods[key])
    out['MiB cache'] = graph.num_bytes / 2**20
    return {**out, 'setup s': setup, **errors}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument('--root', required=True)
    parser.add_argument('--datasets', nargs='+', default=DATASETS)
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--hidden', nargs='+', type=int, default=[64, 512])
    parser.add_argument('--labels', nargs='+', default=['few', 'dense'])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--max_rounds', type=int, default=9)
    parser.add_argument('--seconds', type=float, default=4.0)
    parser.add_argument('--differences', action='store_true')
    parser.add_argument(
        '--cached',
        action='store_true',
        help='also time a loop by hand that caches the first aggregation',
    )
    record.add_argument(parser)
    args = parser.parse_args()
    if args.cached and args.models != ['GCN']:
        parser.error("'--cached' needs '--models GCN'")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    print(
        f'# {cpu_model()}, {args.threads} thread(s), PyTorch '
        f'{torch.__version__}, PyG {torch_geometric.__version__}'
    )
    record.start(args.output)
    columns: Tuple[str, ...] = ()
    for name in args.datasets:
        for labels in args.labels:
            data = load(args.root, name, labels)
            for hidden in args.hidden:
                for model in args.models:
                    row = compare(model, data, hidden, args)
                    if not columns:
                        columns = tuple(row)
                        head = ''.join(f'{x:>11}' for x in columns)
                        print(f'{"set":<10}{"labels":<7}{"model":<5} C{head}')
                    cells = ''.join(
                        f'{x:>11.1e}'
                        if key in DIFFERENCES
                        else f'{x:>11.2f}'
                        if key[0] in 'xs'
                        else f'{x:>11.1f}'
                        for key, x in row.items()
                    )
                    print(
                        f'{name:<10}{labels:<7}{model:<5}{hidden:>4}{cells}',
                        flush=True,
                    )
                    record.write(
                        data_set=name,
                        labels=labels,
                        model=model,
                        hidden=hidden,
                        **row,
                    )


if __name__ == '__main__':
    main()
