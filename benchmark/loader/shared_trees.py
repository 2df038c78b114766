"""Compare the costs of training on plain graphs and on shared trees.

Trains GIN, GCN, GraphSAGE and GAT (hidden 128, sum over nodes, Adam) in one
process, one mini-batch of each method in turn:

* plain: PyG's `DataLoader`,
* collated: mini-batches of plain graphs, collated once and loaded in a new
  order in each epoch,
* trees: `SharedTreeLoader`,
* cached: `SharedTreeLoader(cached=True)`,
* all lev.: the same with `shared_batch(levelwise=False)`.

Loading, forward, backward and optimizer count. The time of an epoch is the
median over steps times the number of steps: CPU time with one thread, which
other programs disturb little, wall-clock time with several. Ratios compare
fresh mini-batches (trees to plain), kept ones (cached to collated) and fresh
trees with kept plain mini-batches (trees to collated); `!` marks a warning of
the loader. `rows` and `work` are ratios of
`SharedTreeLoader.report()`. `prep.` is the preparation in seconds: all
transforms from a collated data set.

Further parts print ratios over batch sizes, loading times, the peak memory of
a step on the full batch, and the test metric over epochs and seconds.
"""

import argparse
import copy
import multiprocessing
import resource
import time
import warnings
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.datasets import MoleculeNet, TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
from torch_geometric.utils import degree

from benchmark import record
from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import RootAggregation, shared_batch
from torch_geometric_ext.ops.machine import cpu_model
from torch_geometric_ext.transforms import ShareComputationTrees

HIDDEN = 128
MODELS = ['GIN', 'GCN', 'SAGE', 'GAT']
MOLECULES = ['HIV', 'Tox21']


class Threads(InMemoryDataset):
    """Random discussions: replies to the first post, or to any other.

    Few posts get many replies, so that trees repeat, but edges hardly do.
    """

    def __init__(self, num_graphs: int = 3000, max_degree: int = 50) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        graphs = []
        for i in range(num_graphs):
            uniform = torch.rand(100, 2, generator=generator)
            num_nodes = 11 + int(-13 * uniform[0, 0].log()) % 86
            post = torch.arange(1, num_nodes)
            reply = (uniform[1:num_nodes, 0] * post).long()
            reply[uniform[1:num_nodes, 1] < uniform[0, 1] * 0.7 + 0.2] = 0
            edge_index = torch.stack([post, reply])
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
            deg = degree(edge_index[1], num_nodes, torch.long)
            x = F.one_hot(deg.clamp(max=max_degree), max_degree + 1).float()
            y = torch.tensor([i % 2])
            graphs.append(Data(x=x, edge_index=edge_index, y=y))
        self._data, self.slices = self.collate(graphs)


def load(root: str, name: str) -> InMemoryDataset:
    if name == 'threads':
        return Threads()
    if name in MOLECULES:
        return MoleculeNet(f'{root}/MoleculeNet', name)
    dataset = TUDataset(f'{root}/TUDataset', name)
    if dataset._data.x is None:  # Degrees, up to 50, stand in for features.
        edge_index = dataset._data.edge_index
        offset = torch.tensor([0, *dataset._data._num_nodes]).cumsum(0)
        offset = offset[:-1].repeat_interleave(
            dataset.slices['edge_index'].diff()
        )
        num_nodes = int(sum(dataset._data._num_nodes))
        deg = degree(edge_index[1] + offset, num_nodes, torch.long)
        dataset._data.x = F.one_hot(deg.clamp(max=50), 51).float()
        sizes = torch.tensor([0, *dataset._data._num_nodes])
        dataset.slices['x'] = sizes.cumsum(0)
    return dataset


class Net(torch.nn.Module):
    def __init__(
        self,
        name: str,
        in_channels: int,
        num_layers: int,
        plain: bool = True,
        levelwise: bool = True,
    ) -> None:
        super().__init__()
        self.levelwise = levelwise
        sizes = [in_channels] + num_layers * [HIDDEN]
        self.name = name
        self.convs = torch.nn.ModuleList(
            self.make_conv(name, size, plain) for size in sizes[:-1]
        )
        self.aggr = RootAggregation('sum')
        self.head = torch.nn.Linear(HIDDEN, 2)

    @staticmethod
    def make_conv(name: str, size: int, plain: bool) -> torch.nn.Module:
        if name == 'GIN':
            first = torch.nn.Linear(size, HIDDEN)
            second = torch.nn.Linear(HIDDEN, HIDDEN)
            return GINConv(torch.nn.Sequential(first, torch.nn.ReLU(), second))
        if name == 'GCN':
            return GCNConv(size, HIDDEN, normalize=plain, add_self_loops=plain)
        if name == 'SAGE':
            return SAGEConv(size, HIDDEN)
        return GATConv(size, HIDDEN // 4, heads=4)

    def forward(self, batch: Any) -> Tensor:
        h = batch.x
        if not h.is_floating_point():  # Of molecules: up to some hundred.
            h = h.float().log1p()
        args = (batch.edge_weight,) if 'edge_weight' in batch else ()
        with shared_batch(batch, self.levelwise):
            for conv in self.convs:
                h = conv(h, batch.edge_index, *args).relu()
        return self.head(self.aggr(h, batch))


def compare_sizes(root: str, names: List[str], sizes: List[int]) -> None:
    """Print the rows of all layers on plain graphs to rows on trees."""
    print('\nrows of all layers, plain to shared (!: the loader warns)')
    labels = ''.join(f'{size or "full":>8} ' for size in sizes)
    print(f'{"":24}{labels}')
    for name in names:
        dataset = load(root, name)
        for num_layers in [2, 3]:
            for kind in ['GIN', 'GCN']:
                shared = share(dataset, kind, num_layers)
                cells = ''
                for size in sizes:
                    if size > len(dataset):
                        cells += ' ' * 9
                        continue
                    trees = make_loader(shared, size or len(dataset))
                    ratio = trees.loader.report().node_ratio
                    cells += f'{ratio:8.2f}{trees.mark}'
                    record.write(
                        part='sizes',
                        data_set=name,
                        layers=num_layers,
                        model=kind,
                        batch_size=size or None,
                        rows=ratio,
                        warned=trees.mark == '!',
                    )
                print(f'{name:12}{num_layers} layers {kind:4}{cells}')


class Trees(NamedTuple):
    """A loader, and `!` if it warned."""

    loader: SharedTreeLoader
    mark: str


def make_loader(
    shared: SharedTrees, batch_size: int, cached: bool = False
) -> Trees:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        loader = SharedTreeLoader(
            shared, batch_size, shuffle=True, cached=cached, drop_last=True
        )
    return Trees(loader, '!' if caught else ' ')


def compare_loading(dataset: InMemoryDataset, name: str) -> None:
    """Print the seconds to load an epoch, without training."""
    shared = share(dataset, 'GIN', 2)
    print(f'\n{name}: seconds to load an epoch')
    print(f'{"batch":>6}{"plain":>10}{"shared":>10}{"ratio":>9}')
    for batch_size in [32, 512]:
        trees = make_loader(shared, batch_size).loader
        loaders = [DataLoader(dataset, batch_size, shuffle=True), trees]
        seconds: List[List[float]] = [[], []]
        for _ in range(3):
            for loader, times in zip(loaders, seconds):
                start = time.perf_counter()
                for _ in loader:
                    pass
                times.append(time.perf_counter() - start)
        plain, own = (min(times) for times in seconds)
        print(f'{batch_size:6}{plain:10.3f}{own:10.4f}{plain / own:8.1f}x')
        record.write(
            part='loading',
            data_set=name,
            batch_size=batch_size,
            plain=plain,
            shared=own,
            ratio=plain / own,
        )


class Run:
    """Train on and on, and time each step."""

    def __init__(self, model: Net, loader: Any) -> None:
        self.model, self.loader = model, loader
        self.optimizer = Adam(model.parameters(), lr=1e-3)
        self.batches: Iterator = iter(())
        self.seconds: List[float] = []

    def step(self) -> None:
        clock = (
            time.process_time
            if torch.get_num_threads() == 1
            else time.perf_counter
        )
        start = clock()
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            start = clock()
            batch = next(self.batches)
        train_step(self.model, self.optimizer, batch)
        self.seconds.append(clock() - start)

    def median(self) -> float:
        # Leave out warm-up steps, if there are others.
        return float(torch.tensor(self.seconds[2:] or self.seconds).median())


def train_step(model: Net, optimizer: Adam, batch: Any) -> Tensor:
    optimizer.zero_grad()
    y = batch.y.view(batch.num_graphs, -1)[:, 0]  # The first task.
    y = y.nan_to_num().long().clamp(max=1)
    loss = F.cross_entropy(model(batch), y)
    loss.backward()
    optimizer.step()
    return loss


def collate(dataset: InMemoryDataset) -> Batch:
    return Batch.from_data_list(list(dataset))


def share(dataset: InMemoryDataset, name: str, num_layers: int) -> SharedTrees:
    transform = ShareComputationTrees(
        num_layers,
        gcn_norm=name == 'GCN',
        self_loops='remove' if name == 'GAT' else 'keep',
        edge_attr=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return transform(dataset)


class Collated:
    """Mini-batches of plain graphs, collated once."""

    def __init__(self, dataset: InMemoryDataset, batch_size: int) -> None:
        loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
        self.batches = list(loader)

    def __iter__(self) -> Iterator[Batch]:
        for i in torch.randperm(len(self.batches)).tolist():
            yield self.batches[i]


METHODS = ['plain', 'collated', 'trees', 'cached', 'all lev.']


def compare(
    dataset: InMemoryDataset,
    data_set: str,
    num_layers: int,
    collated: Dict[int, Collated],
    budget: float,
) -> None:
    for name in MODELS:
        start = time.perf_counter()
        shared = share(dataset, name, num_layers)
        prepare = time.perf_counter() - start
        for batch_size, batches in collated.items():
            fresh = make_loader(shared, batch_size)
            cached = make_loader(shared, batch_size, cached=True)
            for _ in cached.loader:
                pass
            plain = Net(name, dataset.num_features, num_layers)
            loaders = {
                'plain': DataLoader(
                    dataset, batch_size, shuffle=True, drop_last=True
                ),
                'collated': batches,
                'trees': fresh.loader,
                'cached': cached.loader,
                'all lev.': cached.loader,
            }
            if batch_size == len(dataset):
                del loaders['plain'], loaders['trees']
            runs = {}
            for method, loader in loaders.items():
                model = plain
                if method not in ['plain', 'collated']:
                    levelwise = method != 'all lev.'
                    sizes = dataset.num_features, num_layers
                    model = Net(name, *sizes, plain=False, levelwise=levelwise)
                    model.load_state_dict(plain.state_dict())
                runs[method] = Run(copy.deepcopy(model), loader)
            train(runs, budget)
            num_steps = len(dataset) / batch_size
            epoch = {k: run.median() * num_steps for k, run in runs.items()}
            print_row(
                {
                    'data_set': data_set,
                    'model': name,
                    'layers': num_layers,
                    'batch_size': batch_size if num_steps > 1 else None,
                },
                epoch,
                fresh,
                cached,
                prepare,
            )


def train(runs: Dict[str, Run], budget: float) -> None:
    """Take steps of all methods in turn; short steps need more of them."""
    start = time.perf_counter()
    num_rounds = 0
    while num_rounds < 3 or (
        time.perf_counter() - start < budget and num_rounds < 25
    ):
        for method, run in runs.items():
            for _ in range(1 if method in ['plain', 'collated'] else 2):
                run.step()
        num_rounds += 1
        if time.perf_counter() - start > 20 * budget:
            break


def print_row(
    setting: Dict[str, Any],
    epoch: Dict[str, float],
    fresh: Trees,
    cached: Trees,
    prepare: float,
) -> None:
    seconds = ''.join(
        f'{epoch[method]:9.4f}' if method in epoch else f'{"":9}'
        for method in METHODS
    )
    ratios = ''
    found: Dict[str, Optional[float]] = {}
    for key, method, rival, mark in [
        ('fresh', 'trees', 'plain', fresh.mark),
        ('kept', 'cached', 'collated', cached.mark),
        ('fresh_to_kept', 'trees', 'collated', fresh.mark),
    ]:
        found[key] = None
        if method in epoch and rival in epoch:
            ratio = epoch[rival] / epoch[method]
            found[key] = ratio
            ratios += f'{ratio:9.2f}x{mark}'
        else:
            ratios += f'{"":11}'
    report = fresh.loader.report()
    print(
        f'{setting["model"]:5}{setting["layers"]:2}'
        f'{setting["batch_size"] or "full":>6}{seconds}{ratios}'
        f'{report.node_ratio:7.2f}{report.work_ratio:7.2f}{prepare:7.2f}',
        flush=True,
    )
    names = {'all lev.': 'all_levels'}
    record.write(
        part='steps',
        **setting,
        **{names.get(x, x): epoch.get(x) for x in METHODS},
        **found,
        warned=fresh.mark == '!',
        warned_kept=cached.mark == '!',
        rows=report.node_ratio,
        work=report.work_ratio,
        prepare=prepare,
    )


def peak_memory(root: str, name: str, shared: bool, queue: Any) -> None:
    """Report the bytes that a full-batch step allocates at its peak."""
    torch.set_num_threads(1)
    dataset = load(root, name)
    model = Net('GIN', dataset.num_features, num_layers=2)
    optimizer = Adam(model.parameters())
    if shared:
        trees = share(dataset, 'GIN', 2)
        batch = next(iter(SharedTreeLoader(trees, len(trees))))
        small = next(iter(make_loader(trees, 2).loader))
    else:
        batch = collate(dataset)
        small = next(iter(DataLoader(dataset, 2)))
    train_step(model, optimizer, small)
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # Reset the peak.
    before = status('VmRSS')
    train_step(model, optimizer, batch)
    queue.put(status('VmHWM') - before)


def status(key: str) -> int:
    with open('/proc/self/status') as file:
        line = next(line for line in file if line.startswith(key))
    return 1024 * int(line.split()[1])


def compare_memory(root: str, names: List[str]) -> None:
    print('\npeak memory of a full-batch step (GIN, 2 layers) [MB]')
    print(f'{"":12}{"plain":>10}{"shared":>10}{"ratio":>9}')
    context = multiprocessing.get_context('spawn')
    for name in names:
        peaks = []
        for shared in [False, True]:
            queue = context.Queue()
            args = (root, name, shared, queue)
            process = context.Process(target=peak_memory, args=args)
            process.start()
            peaks.append(max(queue.get(), 1 << 20))
            process.join()
        plain, own = (peak / 2**20 for peak in peaks)
        print(f'{name:12}{plain:10.0f}{own:10.0f}{plain / own:8.1f}x')
        record.write(
            part='memory',
            data_set=name,
            plain=plain,
            shared=own,
            ratio=plain / own,
        )


def compare_curves(
    dataset: InMemoryDataset,
    name: str,
    epochs: List[int],
    batch_size: int,
) -> None:
    torch.manual_seed(0)
    perm = torch.randperm(len(dataset))
    cut = len(dataset) * 4 // 5
    train_set, test_set = dataset[perm[:cut]], dataset[perm[cut:]]
    test_batch = collate(test_set)
    start = time.perf_counter()
    shared = share(train_set, 'GIN', 2)
    prepare = time.perf_counter() - start
    order = torch.Generator()
    loaders: Dict[str, Any] = {
        'plain': DataLoader(
            train_set, batch_size, shuffle=True, generator=order
        ),
        'shared': SharedTreeLoader(
            shared, batch_size, shuffle=True, generator=order
        ),
    }
    curves: Dict[str, List[Any]] = {}
    for method, loader in loaders.items():
        torch.manual_seed(0)
        order.manual_seed(0)
        model = Net('GIN', dataset.num_features, num_layers=2)
        optimizer = Adam(model.parameters(), lr=1e-3)
        seconds = prepare if method == 'shared' else 0.0
        curves[method] = []
        for epoch in range(1, max(epochs) + 1):
            start = time.perf_counter()
            for batch in loader:
                train_step(model, optimizer, batch)
            seconds += time.perf_counter() - start
            if epoch in epochs:
                curves[method].append((metric(model, test_batch), seconds))
    kind = 'ROC-AUC' if name in MOLECULES else 'accuracy'
    print(
        f'\n{name}, GIN, 2 layers, batch size {batch_size}: test {kind} [%] '
        f'and seconds of training (preparation included)'
    )
    print(f'{"epoch":>6}{"plain":>18}{"shared":>18}{"ratio":>9}')
    for row in zip(epochs, curves['plain'], curves['shared']):
        epoch, (plain, seconds), (own, own_seconds) = row
        print(
            f'{epoch:6}{plain:9.2f}{seconds:8.2f}s{own:9.2f}'
            f'{own_seconds:8.2f}s{seconds / own_seconds:8.2f}x'
        )
        record.write(
            part='curves',
            data_set=name,
            epoch=epoch,
            plain=plain,
            plain_seconds=seconds,
            shared=own,
            shared_seconds=own_seconds,
            ratio=seconds / own_seconds,
        )


@torch.no_grad()
def metric(model: Net, batch: Batch) -> float:
    from sklearn.metrics import roc_auc_score

    out, y = model(batch), batch.y.view(-1).long()
    if batch.x.size(1) == 9:
        return 100 * roc_auc_score(y, out[:, 1] - out[:, 0])
    return 100 * float((out.argmax(dim=-1) == y).float().mean())


def print_report(dataset: InMemoryDataset, name: str, num_layers: int) -> None:
    report = share(dataset, 'GIN', num_layers).report()
    print(report)
    record.write(part='report', data_set=name, **report._asdict())


def compare_steps(
    dataset: InMemoryDataset,
    name: str,
    args: argparse.Namespace,
) -> None:
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(
            f'\n{name}: {len(dataset):,} graphs, {threads} thread(s), '
            f'{cpu_model()}, PyTorch {torch.__version__}'
        )
        if threads == args.threads[0]:
            for num_layers in args.num_layers:
                print_report(dataset, name, num_layers)
        print(
            f'{"model, layers":7}{"":1}{"epoch [s]":>18}{"":27}'
            f'{"fresh":>10}{"kept":>11}{"fr./kept":>11}'
            f'{"rows":>8}{"work":>7}{"prep.":>7}'
        )
        print(f'{"batch":>13}' + ''.join(f'{m:>9}' for m in METHODS))
        collated = {
            size: Collated(dataset, size)
            for size in [s or len(dataset) for s in args.batch_sizes]
            if size <= len(dataset)
        }
        for num_layers in args.num_layers:
            compare(dataset, name, num_layers, collated, args.budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument(
        '--datasets',
        nargs='+',
        default=['NCI1', 'Tox21', 'DHFR', 'PROTEINS', 'IMDB-MULTI', 'HIV'],
    )
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--num_layers', type=int, nargs='+', default=[2, 3])
    parser.add_argument(
        '--batch_sizes',
        type=int,
        nargs='+',
        default=[32, 128, 512, 4096, 0],
        help='0 is the full batch',
    )
    parser.add_argument(
        '--parts',
        nargs='+',
        default=['steps', 'sizes', 'loading', 'memory', 'curves'],
    )
    parser.add_argument('--budget', type=float, default=1.5, help='seconds')
    parser.add_argument('--epochs', type=int, default=50, help='of curves')
    record.add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads[0])
    record.start(args.output, [0])
    if 'steps' in args.parts:
        for name in args.datasets:
            compare_steps(load(args.root, name), name, args)
    torch.set_num_threads(args.threads[0])
    if 'sizes' in args.parts:
        compare_sizes(args.root, args.datasets, args.batch_sizes)
    if 'loading' in args.parts:
        for name in args.datasets[:2]:
            compare_loading(load(args.root, name), name)
    if 'memory' in args.parts:
        compare_memory(args.root, args.datasets)
    if 'curves' in args.parts:
        for name in args.datasets[:2]:
            epochs = args.epochs // (10 if name in MOLECULES else 1)
            marks = sorted({1, 2, 5, epochs // 5, epochs // 2, epochs} - {0})
            marks = [mark for mark in marks if mark <= epochs]
            compare_curves(load(args.root, name), name, marks, batch_size=128)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'\npeak memory of the process: {peak:.1f} GB')
    record.write(part='process', gigabytes=peak)


if __name__ == '__main__':
    main()
