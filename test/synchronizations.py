"""Count how often the host waits for the device, for each public name.

Run `PYTHONPATH=test python test/synchronizations.py` to renew the table in the
documentation, `docs/source/synchronizations.csv`.
"""

import copy
import csv
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Sequential
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GCNConv, GINConv, GraphSAGE
from torch_geometric.sampler import NodeSamplerInput

import accelerator
import torch_geometric_ext.data
from searches import graph, prune
from torch_geometric_ext import (
    full_batch,
    loader,
    nn,
    ops,
    sparsity,
    transforms,
    utils,
)

TABLE = Path(__file__).parents[1] / 'docs/source/synchronizations.csv'

# Unit of work that is counted.
STEP = 'training step'
BATCH = 'mini-batch'
EPOCH = 'epoch'
UPDATE = 'topology update'
CALL = 'call'


class Case(NamedTuple):
    """A unit of work of a public name.

    `prepare` sets up on a device and returns the work.
    """

    name: str
    unit: str
    prepare: Callable[[torch.device], Callable[[], Any]]


CASES: List[Case] = []


def case(unit: str, *names: str) -> Callable:
    """Add a case for each name, which a function of two arguments gets."""

    def add(prepare: Callable) -> Callable:
        for name in names:
            bound = lambda device, name=name: prepare(device, name)  # noqa: E731
            CASES.append(Case(name, unit, bound))
        return prepare

    return add


def count(prepare: Callable, device: torch.device) -> List[accelerator.Sync]:
    """Record a run of the work, after those that check models and allocate
    the states of optimizers.
    """
    torch.manual_seed(0)
    with (
        patch('torch.Generator', accelerator.Generator),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        work = prepare(device)
        for _ in range(3):
            work()
        with accelerator.record_syncs() as syncs:
            work()
    return syncs


def train(
    parameters: Any, loss: Callable[[], Tensor], after: Callable = int
) -> Callable[[], None]:
    """Return a training step."""
    optimizer = torch.optim.Adam(parameters, lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        after()

    return step


# Samplers.


def make_features(device: torch.device, size: int = 16) -> Dict[str, Tensor]:
    graph_idx = torch.arange(size, device=device)
    h = torch.randn(size, 8).to(device)
    return dict(h=h, y=graph_idx % 3, graph_idx=graph_idx)


def make_sampler(name: str, device: torch.device) -> Any:
    """Return a sampler, its extra parameters, and its call in a step."""
    Sampler = getattr(loader, name)
    args = (64, 0.5, 8)
    if name == 'GDeRSampler':
        prototypes = nn.HypersphericalPrototypes(8, 3).to(device)
        y = torch.arange(64) % 3
        sampler = Sampler(64, prototypes, *args[1:], y=y)
        update = lambda h, out, y, i: sampler.update(h, y, i)  # noqa: E731
        return sampler, list(prototypes.parameters()), update
    if hasattr(Sampler, 'update'):
        sampler = Sampler(*args)

        def update(h: Tensor, out: Tensor, y: Tensor, i: Tensor) -> Tensor:
            loss = F.cross_entropy(out, y, reduction='none')
            return sampler.update(loss, i).mean()

        return sampler, [], update
    y = torch.arange(64) % 3
    sampler = Sampler(*args, y=y)
    return sampler, [], lambda h, out, y, i: F.cross_entropy(out, y)


SAMPLERS = [
    'BalancedSampler',
    'DynamicSampler',
    'EpsilonGreedySampler',
    'GDeRSampler',
    'InfoBatchSampler',
    'LossBasedSampler',
    'LossSampler',
    'SoftRandomSampler',
    'UCBSampler',
]


def train_with_sampler(
    name: str, device: torch.device, every_epoch: bool
) -> Callable:
    """Return a training step, with a new epoch before each one if set."""
    sampler, parameters, update = make_sampler(name, device)
    lin, head = Linear(8, 8).to(device), Linear(8, 3).to(device)
    features = make_features(device)
    graph_idx = torch.empty(16, dtype=torch.long, device=device)

    def draw() -> None:
        iterator = iter(sampler)
        drawn = torch.tensor([next(iterator) for _ in range(16)])
        graph_idx.copy_(drawn, non_blocking=True)

    def loss() -> Tensor:
        h = lin(features['h']).relu()
        return update(h, head(h), features['y'], graph_idx)

    draw()
    parameters += [*lin.parameters(), *head.parameters()]
    return train(parameters, loss, after=draw if every_epoch else int)


@case(STEP, *SAMPLERS)
def _(device: torch.device, name: str) -> Callable:
    return train_with_sampler(name, device, every_epoch=False)


@case(EPOCH, *SAMPLERS)
def _(device: torch.device, name: str) -> Callable:
    return train_with_sampler(name, device, every_epoch=True)


@case(STEP, 'HypersphericalPrototypes')
def _(device: torch.device, name: str) -> Callable:
    prototypes = nn.HypersphericalPrototypes(8, 3).to(device)
    features = make_features(device)
    return train(
        prototypes.parameters(),
        lambda: prototypes(features['h'], features['y'])[0],
    )


@case(BATCH, 'NodeBudgetBatchSampler')
def _(device: torch.device, name: str) -> Callable:
    sizes = torch.arange(1, 40)
    sampler = loader.NodeBudgetBatchSampler(range(39), sizes, 100)
    return lambda: list(sampler)


# Shared computation trees.


def make_graphs() -> List[Data]:
    graphs = []
    for i in range(48):
        ring = torch.arange(3 + i % 4)
        edge_index = torch.stack([ring, ring.roll(1)])
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        x = (ring % (1 + i % 3)).view(-1, 1).float()
        graphs.append(Data(x=x, edge_index=edge_index, y=torch.tensor(i % 2)))
    return graphs


def make_shared() -> Any:
    return transforms.ShareComputationTrees(2)(make_graphs())


class TreeModel(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        convs = [GINConv(Linear(1, 8)), GINConv(Linear(8, 8))]
        if name == 'LevelwiseConv':
            convs = [nn.LevelwiseConv(conv) for conv in convs]
        self.convs = torch.nn.ModuleList(convs)
        self.norm = nn.TreeBatchNorm(8)
        self.aggr = nn.RootAggregation('mean')
        self.head = Linear(8, 2)

    def forward(self, batch: Any) -> Tensor:
        with nn.shared_batch(batch):
            h = self.convs[0](batch.x, batch.edge_index)
            h = self.norm(h).relu()
            h = self.convs[1](h, batch.edge_index)
        return self.head(self.aggr(h, batch))


@case(
    STEP,
    'LevelwiseConv',
    'RootAggregation',
    'SharedTreeBatch',
    'TreeBatchNorm',
    'shared_batch',
)
def _(device: torch.device, name: str) -> Callable:
    model = TreeModel(name).to(device)
    # Each step sees another mini-batch.
    batches = iter([x.to(device) for x in tree_loader()])

    def loss() -> Tensor:
        batch = next(batches)
        return F.cross_entropy(model(batch), batch.y)

    return train(model.parameters(), loss)


def tree_loader(**kwargs: Any) -> Any:
    return loader.SharedTreeLoader(make_shared(), batch_size=8, **kwargs)


@case(BATCH, 'SharedTreeLoader', 'SharedTrees')
def _(device: torch.device, name: str) -> Callable:
    """Extract on the host, and copy as pinned memory can be copied."""
    batches = iter(tree_loader())
    return lambda: next(batches).to(device, non_blocking=True)


@case(CALL, 'ShareComputationTrees')
def _(device: torch.device, name: str) -> Callable:
    graphs = [x.to(device) for x in make_graphs()]
    return lambda: transforms.ShareComputationTrees(2)(graphs)


@case(CALL, 'MirageCondense')
def _(device: torch.device, name: str) -> Callable:
    graphs = [x.to(device) for x in make_graphs()]
    return lambda: transforms.MirageCondense(2, num_graphs=8)(graphs)


@case(CALL, 'Discretize')
def _(device: torch.device, name: str) -> Callable:
    data = Data(x=torch.randn(20, 3).to(device))
    discretize = transforms.Discretize().fit([data])
    return lambda: discretize(data)


@case(CALL, 'check_exact')
def _(device: torch.device, name: str) -> Callable:
    model = TreeModel(name).to(device)
    return lambda: nn.check_exact(model)


@case(BATCH, 'IndexedDataset')
def _(device: torch.device, name: str) -> Callable:
    dataset = torch_geometric_ext.data.IndexedDataset(make_graphs())
    batches = iter(DataLoader(dataset, batch_size=8))
    return lambda: next(batches).to(device, non_blocking=True)


@case(BATCH, 'NeighborSampler')
def _(device: torch.device, name: str) -> Callable:
    data = graph()
    sampler = loader.NeighborSampler(data, [2, 2], seed=0)
    node = torch.arange(4)
    return lambda: sampler.sample_from_nodes(NodeSamplerInput(None, node))


# Sparse layers.


def train_on_nodes(conv: torch.nn.Module, device: torch.device) -> Callable:
    model, data = (
        torch.nn.ModuleList([conv, Linear(32, 3)]).to(device),
        graph(),
    )
    data = data.to(device)

    def loss() -> Tensor:
        is_conv = not isinstance(conv, nn.SparseLinear)
        h = conv(data.x, data.edge_index) if is_conv else conv(data.x)
        return F.cross_entropy(model[1](h.relu()), data.y)

    return train(model.parameters(), loss)


LAYERS = {
    # For comparison, a layer of PyG, which adds self-loops in each pass.
    'torch_geometric.nn.GCNConv': lambda: GCNConv(5, 32),
    'MaskedGCNConv': lambda: nn.MaskedGCNConv(5, 32, sparsity=0.5),
    'MaskedGCNConv(cached=True)': lambda: nn.MaskedGCNConv(
        5, 32, sparsity=0.5, cached=True
    ),
    'SparseLinear': lambda: nn.SparseLinear(5, 32, sparsity=0.5),
    'SparseLinear(block_size=8)': lambda: nn.SparseLinear(
        5, 32, sparsity=0.5, block_size=8
    ),
}


@case(STEP, *LAYERS)
def _(device: torch.device, name: str) -> Callable:
    return train_on_nodes(LAYERS[name](), device)


@case(STEP, 'densify', 'sparsify')
def _(device: torch.device, name: str) -> Callable:
    model = nn.sparsify(GraphSAGE(5, 32, 2), sparsity=0.5)
    model = nn.densify(model) if name == 'densify' else model
    return train_on_nodes(model, device)


@case(CALL, 'densify', 'sparsify', 'sparsity_summary')
def _(device: torch.device, name: str) -> Callable:
    model = GraphSAGE(5, 32, 2).to(device)
    if name == 'sparsify':
        return lambda: nn.sparsify(copy.deepcopy(model), sparsity=0.5)
    model = nn.sparsify(model, sparsity=0.5)
    return lambda: getattr(nn, name)(copy.deepcopy(model))


SCHEDULERS = ['GradualMagnitude', 'RigL', 'SET']
PRUNERS = ['ADMM', 'MagnitudePruner', 'SLR']
BASES = {
    'TopologyScheduler': 'SET',
    'WeightScheduler': 'GradualMagnitude',
    'LagrangianPruner': 'ADMM',
}


def train_with_scheduler(
    device: torch.device, name: str, update_every: int
) -> Callable:
    name = BASES.get(name, name)
    Scheduler, kwargs = getattr(sparsity, name), {}
    if name in SCHEDULERS:
        model = Sequential(
            nn.SparseLinear(16, 32, sparsity=0.5), Linear(32, 3)
        )
        kwargs.update(num_steps=100)
    else:
        model = Sequential(Linear(16, 32), Linear(32, 3))
    if name != 'RigL' and name != 'SET':
        kwargs.update(sparsity=0.8)
    if name != 'MagnitudePruner':
        kwargs.update(update_every=update_every)
    model.to(device)
    x, y = torch.randn(8, 16).to(device), torch.arange(8).to(device) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = Scheduler(model, optimizer, **kwargs)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if name in ['ADMM', 'SLR']:
            loss = scheduler.regularize(loss)
        loss.backward()
        optimizer.step()
        if name != 'MagnitudePruner':
            scheduler.step()

    return step


@case(STEP, *BASES, *SCHEDULERS, *PRUNERS)
def _(device: torch.device, name: str) -> Callable:
    return train_with_scheduler(device, name, update_every=10)


@case(UPDATE, *BASES, *SCHEDULERS, 'ADMM', 'SLR')
def _(device: torch.device, name: str) -> Callable:
    return train_with_scheduler(device, name, update_every=1)


# Full-batch training.


@case(STEP, 'AcceleratedModel', 'StaticGraph', 'accelerate')
def _(device: torch.device, name: str) -> Callable:
    data = graph(device=device)
    model = full_batch.accelerate(
        GCN(5, 8, 2, 3).to(device), full_batch.StaticGraph(data)
    )
    nodes = data.train_mask.nonzero().view(-1)
    y = data.y[nodes]
    return train(model.parameters(), lambda: F.cross_entropy(model(nodes), y))


@case(CALL, 'accelerate')
def _(device: torch.device, name: str) -> Callable:
    data, model = graph(device=device), GCN(5, 8, 2, 3).to(device)
    return lambda: full_batch.accelerate(model, full_batch.StaticGraph(data))


@case(CALL, 'Report')
def _(device: torch.device, name: str) -> Callable:
    graph_ = full_batch.StaticGraph(graph(device=device))
    return full_batch.accelerate(GCN(5, 8, 2, 3).to(device), graph_).report


# Lottery.


@case(CALL, 'GraphLotteryPruner')
def _(device: torch.device, name: str) -> Callable:
    data = graph(device=device)
    return lambda: prune(GCN(5, 8, 2, 3).to(device), data)


@case(CALL, 'Ticket')
def _(device: torch.device, name: str) -> Callable:
    model, data = GCN(5, 8, 2, 3).to(device), graph(device=device)
    ticket = prune(model, data)
    return lambda: ticket.apply(model, data, sparse=True)


@case(CALL, 'number_edges')
def _(device: torch.device, name: str) -> Callable:
    graphs = [graph(device=device)]
    return lambda: utils.number_edges(graphs)


# Utilities.


@case(STEP, 'ForgettingCounter')
def _(device: torch.device, name: str) -> Callable:
    counter = utils.ForgettingCounter(16)
    features = make_features(device)
    correct = features['y'] == 0
    return lambda: counter.update(correct, features['graph_idx'])


@case(CALL, 'count_macs')
def _(device: torch.device, name: str) -> Callable:
    model, data = GCN(5, 8, 2, 3).to(device), graph(device=device)
    return lambda: utils.count_macs(model, data.x, data.edge_index)


@case(CALL, 'el2n_scores', 'grand_scores')
def _(device: torch.device, name: str) -> Callable:
    features = make_features(device)
    args = [torch.randn(16, 3).to(device), features['y']]
    args = args if name == 'el2n_scores' else [features['h'], *args]
    return lambda: getattr(utils, name)(*args)


@case(CALL, 'herding_selection', 'k_center_selection', 'select_graphs')
def _(device: torch.device, name: str) -> Callable:
    h = make_features(device)['h']
    h = h[:, 0] if name == 'select_graphs' else h
    return lambda: getattr(utils, name)(h, 0.5)


@case(CALL, 'random_selection')
def _(device: torch.device, name: str) -> Callable:
    return lambda: utils.random_selection(64, 0.5)


@case(CALL, 'temporal_random_walks')
def _(device: torch.device, name: str) -> Callable:
    src, dst = torch.randint(8, (2, 60)).to(device)
    t = torch.arange(60, device=device)
    return lambda: utils.temporal_random_walks(src, dst, t, 4, 2)


@case(CALL, 'skip_gram_embeddings')
def _(device: torch.device, name: str) -> Callable:
    walks = torch.randint(8, (20, 4)).to(device)
    return lambda: utils.skip_gram_embeddings(walks, 8, 4, epochs=1)


# Operators.


def make_operands(name: str, device: torch.device) -> List[Any]:
    """Return arguments of an operator."""
    numbers = torch.arange(16, device=device)
    x = torch.randn(16, 8).to(device)
    if name == 'block_sparse_linear':
        grid = ops.sparse_pattern(numbers[:4:2], 4, 1)  # Two blocks of four.
        return [x, torch.randn(128).to(device), None, *grid, (32, 8), 8, False]
    if name in ['csr_sparse_linear', 'sparse_linear']:
        pattern = ops.sparse_pattern(numbers * 4, 8, 8)
        values = torch.randn(16).to(device)
        x = x.to_sparse_csr() if name == 'csr_sparse_linear' else x
        return [x, values, None, *pattern, False]
    return {
        'computation_tree_ids': [x, numbers[:8].view(2, 4), 2],
        'csr_matmul': [
            *[x[:4, :1], x[:2].view(2, 1, 8)],
            *[numbers[:5], numbers[:4] % 2, numbers[:4]],
            *[2 * numbers[:3], numbers[:4], numbers[:4]],
        ],
        'extract_trees': [
            *[numbers[:2], numbers[:4], numbers[:3].int()],
            *[numbers[:6], numbers[:5].int(), numbers[:5].int(), 1],
        ],
        'frequent_itemsets': [4 * numbers[:3], numbers[:4].repeat(2)],
        'herding': [numbers[:9], numbers[:8], numbers[:8], 8 * numbers[:2]],
        'merge_positions': [numbers * 2, numbers * 2 + 1],
        'missing_positions': [numbers * 2, numbers[:4]],
        'prototype_loss': [
            *[x, numbers % 3, x, x[:, :4].repeat(1, 4)],
            *[torch.randn(3, 2, 16).to(device), 0.1, 0.1, 0.1],
        ],
        'sparse_pattern': [numbers, 4, 4],
        'top_positions': [x[:, 0].contiguous(), 4],
        'unique_rows': [numbers.view(8, 2)],
        'unique_trees': [numbers[:4], numbers[:5], numbers[:4]],
        'weighted_sample': [x[:, 0].abs(), 4],
    }[name]


# Operators that take no tensors, or run on the CPU.
NO_TENSORS = [
    'block_sparse_linear_crossover',
    'calibrate',
    'sparse_linear_crossover',
]
OPERATORS = [name for name in ops.functions if name not in NO_TENSORS]


@case(CALL, *[f'ops.{name}' for name in OPERATORS])
def _(device: torch.device, name: str) -> Callable:
    name = name.split('.')[1]
    args = make_operands(name, device)
    return lambda: getattr(ops, name)(*args)


def measure() -> List[Dict[str, str]]:
    """Return the number of synchronizations of each case."""
    rows = []
    for name, unit, prepare in CASES:
        num = len(count(prepare, accelerator.device()))
        rows.append({'Name': name, 'Unit': unit, 'Waits': str(num)})
    return sorted(rows, key=lambda row: (row['Name'].lower(), row['Unit']))


if __name__ == '__main__':
    rows = measure()
    with TABLE.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
