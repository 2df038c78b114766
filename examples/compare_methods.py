"""Train a GIN on real molecules, and a GCN on digits, at a lower cost.

Prints five tables:

1. Fewer graphs per epoch of an imbalanced data set, 20 of whose molecules are
   of the third class: compares training on all molecules with a new random
   half in each epoch (`SoftRandomSampler`), a half with equally many draws of
   each class (`BalancedSampler`), and the half of `GDeRSampler`, which finds
   out whether classes need balance. Test molecules are not imbalanced.
2. Shared computation trees: compares full batches of plain graphs with
   full batches of `SharedTreeLoader`, which have equal gradients. Double
   precision keeps rounding from changing predictions.
3. Sparse weights: compares a wide dense model with a narrow dense model of as
   many weights, and with sparse training of the wide model.
4. A condensed data set: compares random molecules with `MirageCondense`, at a
   twentieth of the bytes. An epoch has about as many draws as there are
   molecules.
5. Lottery tickets of a GCN: compares a dense model with a narrow dense model
   of as many weights as the ticket, and with the ticket of
   `GraphLotteryPruner`. The narrow model trains for as many epochs as the
   search in total.

All methods of a seed start from the same weights. Tables 1 to 4 report the
accuracy after the last epoch, table 5 after the epoch with the best validation
accuracy. Nothing is selected on the test set.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import WeightedRandomSampler
from torch_geometric import seed_everything
from torch_geometric.data import Data, Dataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GIN
from torch_geometric.utils.smiles import x_map
from tqdm import tqdm

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import DigitsKNN, Solubility
from torch_geometric_ext.loader import (
    BalancedSampler,
    DynamicSampler,
    GDeRSampler,
    SharedTreeLoader,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import (
    HypersphericalPrototypes,
    RootAggregation,
    TreeBatchNorm,
    shared_batch,
    sparsify,
)
from torch_geometric_ext.ops.machine import cpu_model
from torch_geometric_ext.sparsity import RigL
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)
from torch_geometric_ext.typing import WITH_EXT
from torch_geometric_ext.utils import GraphLotteryPruner, count_macs

CONDENSED_RATIO = 0.05
EDGE_SPARSITY = 0.35
NUM_RARE = 20  # Molecules of the third class in the first table.


class Net(torch.nn.Module):
    def __init__(
        self,
        hidden_channels: int,
        num_layers: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        sizes = torch.tensor([len(values) for values in x_map.values()])
        self.register_buffer('offset', sizes.cumsum(0) - sizes)
        self.atom = torch.nn.EmbeddingBag(
            int(sizes.sum()), hidden_channels, mode='sum'
        )
        gnn = GIN(
            hidden_channels, hidden_channels, num_layers, norm='batch_norm'
        )
        self.gnn = TreeBatchNorm.convert(gnn)
        self.aggr = RootAggregation('sum')
        self.head = torch.nn.Linear(hidden_channels, num_classes)

    def forward(self, batch: Data) -> Tensor:
        with shared_batch(batch):
            x = self.atom(batch.x + self.offset)
            h = self.gnn(x, batch.edge_index)
        return self.aggr(h, batch)


class Method(NamedTuple):
    name: str
    epochs: int
    batch_size: int = 32
    num_layers: int = 4
    sampler: Optional[str] = None
    keep_ratio: float = 1.0
    share: bool = False
    dtype: torch.dtype = torch.float
    hidden_channels: int = 64
    sparsity: float = 0.0
    condense: Optional[str] = None
    metric: str = 'accuracy'


class Result(NamedTuple):
    metric: float  # In percent.
    num_graphs: int  # The number of edges in the last table.
    num_macs: float  # Multiply-adds of a training step per graph.
    seconds: float


def train(
    method: Method,
    seed: int,
    dataset: IndexedDataset,
    test_dataset: Dataset,
    args: argparse.Namespace,
    progress: tqdm,
) -> Result:
    seed_everything(seed)
    hidden_channels = method.hidden_channels
    model = Net(hidden_channels, method.num_layers, dataset.num_classes)
    model = model.to(method.dtype)
    if method.sparsity > 0:
        sparsify(model, method.sparsity, seed=seed)
    parameters = list(model.parameters())
    sampler: Optional[DynamicSampler] = None
    start = time.perf_counter()

    if method.sampler == 'soft':
        sampler = SoftRandomSampler(
            dataset, method.keep_ratio, method.epochs, seed=seed
        )
    elif method.sampler == 'balanced':
        sampler = BalancedSampler(
            dataset, method.keep_ratio, method.epochs, seed=seed
        )
    elif method.sampler == 'gder':
        prototypes = HypersphericalPrototypes(
            hidden_channels, dataset.num_classes
        )
        parameters += prototypes.parameters()
        sampler = GDeRSampler(
            dataset, prototypes, method.keep_ratio, method.epochs, seed=seed
        )
    loader: Iterable = DataLoader(
        dataset, method.batch_size, shuffle=sampler is None, sampler=sampler
    )
    if method.condense is not None:
        loader = condensed_loader(method, dataset, seed)
    elif method.share:
        transform = ShareComputationTrees(method.num_layers, edge_attr=False)
        loader = SharedTreeLoader(transform(dataset), method.batch_size)
    elif method.batch_size >= len(dataset):
        loader = list(loader)  # Collate once.

    optimizer = Adam(parameters, lr=args.lr)
    num_steps = method.epochs * len(loader)  # type: ignore[arg-type]
    scheduler = OneCycleLR(optimizer, args.lr, total_steps=num_steps)
    rigl: Optional[RigL] = None
    if method.sparsity > 0:
        rigl = RigL(model, optimizer, num_steps=num_steps, update_every=10)
    num_graphs = 0
    model.train()
    for _ in range(method.epochs):
        for batch in loader:
            optimizer.zero_grad()
            h = model(batch)
            loss = F.cross_entropy(model.head(h), batch.y)
            if isinstance(sampler, GDeRSampler):
                loss = loss + sampler.update(h, batch.y, batch.graph_idx)
            loss.backward()
            optimizer.step()
            scheduler.step()
            if rigl is not None:
                rigl.step()
            num_graphs += batch.num_graphs
            progress.update(batch.num_graphs)
    seconds = time.perf_counter() - start
    batch = next(iter(DataLoader(test_dataset, batch_size=len(test_dataset))))
    num_macs = count_macs(model.eval(), batch).training / batch.num_graphs
    value = test(model, batch)[method.metric]
    return Result(value, num_graphs, num_macs, seconds)


def condensed_loader(
    method: Method, dataset: IndexedDataset, seed: int
) -> DataLoader:
    """Return a loader that draws from a fraction of the data set's bytes."""
    graphs: Any = [
        Data(x=data.x, edge_index=data.edge_index, y=data.y)
        for data in dataset
    ]
    share = method.share
    if method.condense == 'molecules':
        graphs = [graphs[i] for i in torch.randperm(len(graphs))]
        sizes = [sum(x.nbytes for _, x in data) for data in graphs]
        used = torch.tensor(sizes).cumsum(0)
        graphs = graphs[: int((used <= CONDENSED_RATIO * used[-1]).sum())]
        weight: Any = torch.ones(len(graphs))
    else:
        condense = MirageCondense(
            method.num_layers,
            ratio=CONDENSED_RATIO,
            selection=method.condense or 'herding',
            share=share,
            seed=seed,
        )
        graphs = condense(graphs)
        weight = graphs.graph_attrs['weight'] if share else graphs.weight
    # Drop the last mini-batch: batch normalization needs several nodes.
    num_draws = len(dataset) // method.batch_size * method.batch_size
    sampler = WeightedRandomSampler(weight, num_draws)
    kind = SharedTreeLoader if share else DataLoader
    with warnings.catch_warnings():
        # Trees serve to save bytes here, even where they do not save time:
        warnings.filterwarnings('ignore', 'Mini-batches of .* share so little')
        return kind(graphs, method.batch_size, sampler=sampler)


@torch.no_grad()
def test(model: Net, batch: Data) -> Dict[str, float]:
    pred = model.head(model(batch)).argmax(dim=-1)
    return {
        'accuracy': 100 * float((pred == batch.y).float().mean()),
        'F1': 100 * f1_score(batch.y, pred, average='macro'),
    }


def make_imbalanced(dataset: Dataset) -> IndexedDataset:
    """Return a data set with few graphs of the third class."""
    rare = (dataset.y == 2).nonzero().view(-1)
    others = (dataset.y != 2).nonzero().view(-1)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(rare.numel(), generator=generator)[:NUM_RARE]
    return IndexedDataset(dataset[torch.cat([others, rare[chosen]])])


def mean_and_error(values: List[float]) -> str:
    x = torch.tensor(values, dtype=torch.double)
    error = x.std() / len(x) ** 0.5 if len(x) > 1 else torch.tensor(0.0)
    return f'{x.mean():.1f} ± {error:.1f}'


def print_table(
    results: Dict[Method, List[Result]], unit: str = 'graphs'
) -> None:
    full = next(iter(results.values()))
    full_seconds = sum(r.seconds for r in full)
    title = f'{next(iter(results)).metric} [%]'
    print(
        f'{"method":24}{title:>14}{"Δ to full":>14}'
        f'{unit:>10}{"MMACs":>8}{"time [s]":>10}{"speed-up":>10}'
    )
    for method, runs in results.items():
        delta = [r.metric - f.metric for r, f in zip(runs, full)]
        seconds = sum(r.seconds for r in runs)
        num_graphs = sum(r.num_graphs for r in runs) // len(runs)
        print(
            f'{method.name:24}'
            f'{mean_and_error([r.metric for r in runs]):>14}'
            f'{mean_and_error(delta) if runs is not full else "":>14}'
            f'{num_graphs:>10,}{runs[0].num_macs / 1e6:>8.2f}'
            f'{seconds / len(runs):>10.2f}'
            f'{full_seconds / seconds:>9.2f}x'
        )


def make_tables(args: argparse.Namespace, size: int) -> List[List[Method]]:
    full = Method('full data', args.epochs, metric='F1')
    fewer = [
        full,
        full._replace(name='soft random 50%', sampler='soft', keep_ratio=0.5),
        full._replace(name='balanced 50%', sampler='balanced', keep_ratio=0.5),
        full._replace(name='GDeR 50%', sampler='gder', keep_ratio=0.5),
    ]
    full = Method(
        'plain graphs', args.epochs, size, num_layers=2, dtype=torch.double
    )
    shared = [
        full,
        full._replace(name='shared trees', share=True),
    ]
    wide = Method(
        'dense',
        max(args.epochs // 4, 1),
        batch_size=64,
        num_layers=2,
        hidden_channels=256,
    )
    sparse = [
        wide,
        wide._replace(name='dense, 1/10 of weights', hidden_channels=81),
        wide._replace(name='RigL, 1/10', sparsity=0.9),
        wide._replace(name='dense, 1/20 of weights', hidden_channels=57),
        wide._replace(name='RigL, 1/20', sparsity=0.95),
    ]
    full = Method(
        'full data', max(args.epochs // 4, 1), batch_size=128, num_layers=2
    )
    condensed = [
        full,
        full._replace(name='random, 5% of bytes', condense='molecules'),
        full._replace(name='Mirage, 5%', condense='herding'),
        full._replace(
            name='random, shared, 5%', condense='random', share=True
        ),
        full._replace(
            name='Mirage, shared, 5%', condense='herding', share=True
        ),
    ]
    return [fewer, shared, sparse, condensed]


def run_on_digits(args: argparse.Namespace) -> None:
    """Train a GCN on one graph and print the last table."""
    data = DigitsKNN(str(Path(args.root) / 'digits'))[0]
    epochs, num_seeds = 2 * args.epochs, min(args.seeds, 3)
    print(
        f'\nGCN on DigitsKNN: {data.num_nodes:,} nodes, {num_seeds} paired '
        f'seeds\n\n2 layers, 128 channels, {epochs} epochs (in the search, '
        f'three times), full batches'
    )
    dense = Method('dense', epochs, num_layers=2, hidden_channels=128)
    narrow = dense._replace(name='dense, 1/20 of weights', hidden_channels=6)
    ticket = dense._replace(name='ticket, 1/20', sparsity=0.95)
    methods = [dense, narrow._replace(epochs=3 * epochs), ticket]
    print_table(
        {
            method: [
                train_gcn(method, seed, data) for seed in range(num_seeds)
            ]
            for method in methods
        },
        unit='edges',
    )


def train_gcn(method: Method, seed: int, data: Data) -> Result:
    seed_everything(seed)
    size = (data.num_features, method.hidden_channels, method.num_layers, 10)
    # Dropout lowers the accuracy of narrow models:
    dropout = 0.5 if method.hidden_channels > 64 else 0.0
    model: torch.nn.Module = GCN(*size, dropout=dropout)
    start = time.perf_counter()
    if method.sparsity > 0:
        pruner = GraphLotteryPruner(
            model,
            weight_sparsity=method.sparsity,
            edge_sparsity=EDGE_SPARSITY,
            seed=seed,
            pretrain_epochs=method.epochs,
            search_epochs=method.epochs,
            retrain_epochs=method.epochs,
        )
        ticket = pruner.fit(data)
        model, data = ticket.apply(model, data, sparse=True, narrow=True)
        accuracy = test_nodes(model, data)[1]
    else:
        accuracy = train_nodes(model, data, method.epochs)
    seconds = time.perf_counter() - start
    macs = count_macs(model, data.x, data.edge_index)
    return Result(accuracy, data.num_edges, macs.training, seconds)


def train_nodes(model: torch.nn.Module, data: Data, epochs: int) -> float:
    """Train with the default settings of `GraphLotteryPruner`."""
    optimizer = Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    results = []
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
        if epoch % 2 == 0:
            results.append(test_nodes(model, data))
    return max(results, key=lambda accuracy: accuracy[0])[1]


@torch.no_grad()
def test_nodes(model: torch.nn.Module, data: Data) -> Tuple[float, float]:
    """Return the accuracy on validation and test nodes."""
    pred = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    correct = (pred == data.y).float()
    val, out = correct[data.val_mask].mean(), correct[data.test_mask].mean()
    return 100 * float(val), 100 * float(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--root', default='.data/Solubility', help='folder of the data sets'
    )
    parser.add_argument(
        '--seeds', type=int, default=5, help='number of paired seeds'
    )
    parser.add_argument(
        '--epochs', type=int, default=40, help='epochs of the first table'
    )
    parser.add_argument(
        '--lr', type=float, default=0.005, help='learning rate'
    )
    args = parser.parse_args()

    molecules = Solubility(args.root, 'train')
    train_dataset = IndexedDataset(molecules)
    imbalanced = make_imbalanced(molecules)
    test_dataset = Solubility(args.root, 'test')
    size = len(train_dataset)
    print(
        f'GIN on Solubility: {size:,} training and {len(test_dataset)} test '
        f'molecules, {args.seeds} paired seeds, {torch.get_num_threads()} '
        f'thread(s), kernels {"on" if WITH_EXT else "off"}, {cpu_model()}'
    )
    for i, methods in enumerate(make_tables(args, size)):
        first = methods[0]
        dataset = train_dataset if i > 0 else imbalanced
        batches = f'batches of {first.batch_size:,}'
        print(
            f'\n{first.num_layers} layers, {first.hidden_channels} channels, '
            f'{first.epochs} epochs, '
            f'{batches if first.batch_size < size else "full batches"}'
            + ('' if i > 0 else f', {len(dataset)} imbalanced molecules')
        )
        print_table(run(methods, dataset, test_dataset, args))
    run_on_digits(args)


def run(
    methods: List[Method],
    dataset: IndexedDataset,
    test_dataset: Dataset,
    args: argparse.Namespace,
) -> Dict[Method, List[Result]]:
    total = sum(round(m.keep_ratio * len(dataset)) * m.epochs for m in methods)
    results: Dict[Method, List[Result]] = {method: [] for method in methods}
    with tqdm(
        total=args.seeds * total, unit=' graphs', leave=False, disable=None
    ) as bar:
        for seed in range(args.seeds):
            for method in methods:
                bar.set_description(f'seed {seed}, {method.name}')
                results[method].append(
                    train(method, seed, dataset, test_dataset, args, bar)
                )
    return results


if __name__ == '__main__':
    main()
