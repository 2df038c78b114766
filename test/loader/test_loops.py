"""Training loops with samplers that draw graphs several times."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn import Linear, ReLU, Sequential
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINConv, global_mean_pool

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import (
    GDeRSampler,
    NodeBudgetBatchSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

NUM_GRAPHS = 61
SAMPLERS = ['GDeRSampler', 'SoftRandomSampler']


class GIN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        mlp = Sequential(Linear(4, 8), ReLU(), Linear(8, 8))
        self.conv = GINConv(mlp)
        self.head = Linear(8, 2)

    def forward(self, x, edge_index, batch, size):
        h = self.conv(x, edge_index).relu()
        h = global_mean_pool(h, batch, size)
        return h, self.head(h)


def make_dataset():
    """Return graphs of different sizes, one tenth of them of class 1."""
    generator = torch.manual_seed(1)
    out = []
    for i in range(NUM_GRAPHS):
        num_nodes, y = 3 + i % 5, int(i % 10 == 0)
        x = torch.randn(num_nodes, 4, generator=generator) + y
        edge_index = torch.randint(
            num_nodes, (2, 3 * num_nodes), generator=generator
        )
        y = torch.tensor([y])
        out.append(Data(x=x, edge_index=edge_index, y=y))
    return IndexedDataset(out)


class Loop:
    """Train a GIN, balanced with copies of graphs of the small class."""

    def __init__(
        self,
        name,
        device=None,
        batch_size=8,
        accumulate=1,
        autocast=False,
        wrap=None,
        max_num_nodes=None,
    ):
        torch.manual_seed(12345)
        self.device, self.autocast = device or 'cpu', autocast
        self.accumulate = accumulate
        self.model = GIN().to(device)
        self.forward = self.model if wrap is None else wrap(self.model)
        parameters = list(self.model.parameters())
        dataset = make_dataset()
        kwargs = dict(keep_ratio=0.5, num_epochs=6, balance=1.0)
        if name == 'GDeRSampler':
            prototypes = HypersphericalPrototypes(8, 2).to(device)
            parameters += list(prototypes.parameters())
            if wrap is not None:
                prototypes = wrap(prototypes)
            y = torch.cat([data.y for data in dataset])
            self.sampler = GDeRSampler(dataset, prototypes, y=y, **kwargs)
        else:
            self.sampler = SoftRandomSampler(
                dataset, replacement=True, **kwargs
            )
        self.optimizer = torch.optim.Adam(parameters, 0.01)
        if max_num_nodes is None:
            kwargs = dict(batch_size=batch_size, sampler=self.sampler)
        else:
            batch_sampler = NodeBudgetBatchSampler(
                self.sampler, dataset, max_num_nodes
            )
            kwargs = dict(batch_sampler=batch_sampler)
        self.loader = DataLoader(dataset, **kwargs)

    def loss(self, batch):
        batch = batch.to(self.device)
        device = torch.device(self.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            h, out = self.forward(
                batch.x, batch.edge_index, batch.batch, batch.num_graphs
            )
            loss = F.cross_entropy(out, batch.y)
            if isinstance(self.sampler, GDeRSampler):
                loss = loss + self.sampler.update(h, batch.y, batch.graph_idx)
        return loss

    def epoch(self):
        """Return the drawn graphs and the mean loss."""
        graphs, total, steps = [], 0.0, len(list(self.loader.batch_sampler))
        # Counting the mini-batches has planned the epoch. Repeat it:
        self.sampler.set_epoch(self.sampler.epoch)
        for i, batch in enumerate(self.loader):
            graphs += batch.graph_idx.tolist()
            loss = self.loss(batch)
            (loss / self.accumulate).backward()
            total += float(loss.detach()) / steps
            if (i + 1) % self.accumulate == 0 or i + 1 == steps:
                self.optimizer.step()
                self.optimizer.zero_grad()
        return graphs, total

    def run(self, num_epochs=5):
        return zip(*[self.epoch() for _ in range(num_epochs)])


def assert_balanced_with_copies(graphs):
    for epoch in graphs:
        minority = [i for i in epoch if i % 10 == 0]
        assert len(epoch) == 30 and len(minority) == 15
        # All 7 graphs of the small class, others without copies:
        assert len(set(epoch)) == 22


@withDevice
@pytest.mark.parametrize('name', SAMPLERS)
def test_compile(device, name):
    graphs, losses = Loop(name, device).run()
    assert_balanced_with_copies(graphs)
    assert len({tuple(epoch) for epoch in graphs}) == 5

    def wrap(model):
        return torch.compile(model, backend='aot_eager', dynamic=True)

    torch.compiler.reset()
    compiled = Loop(name, device, wrap=wrap)
    graphs_compiled, losses_compiled = compiled.run()
    assert graphs_compiled == graphs
    assert losses_compiled == pytest.approx(losses, rel=1e-4)
    torch.compiler.reset()


@withDevice
@pytest.mark.parametrize('name', SAMPLERS)
def test_gradient_accumulation(device, name):
    # 30 graphs are five mini-batches of six, or ten halves:
    loop = Loop(name, device, batch_size=6)
    graphs, losses = loop.run()
    halves = Loop(name, device, batch_size=3, accumulate=2)
    graphs_halves, losses_halves = halves.run()
    assert graphs_halves == graphs
    assert losses_halves == pytest.approx(losses, rel=1e-4)
    for a, b in zip(loop.model.parameters(), halves.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    for sampler in [loop.sampler, halves.sampler]:
        sampler.set_epoch(5)
    if name == 'GDeRSampler':
        state, other = loop.sampler.state_dict(), halves.sampler.state_dict()
        torch.testing.assert_close(
            state['distance'],
            other['distance'],
            rtol=1e-2,
            atol=1e-2,
            equal_nan=True,
        )


@withDevice
@pytest.mark.parametrize('name', SAMPLERS)
def test_autocast(device, name):
    loop = Loop(name, device, autocast=True)
    graphs, losses = loop.run()
    assert_balanced_with_copies(graphs)
    assert losses[-1] < losses[0]
    plain = list(Loop(name, device).run())[1]
    assert losses == pytest.approx(plain, abs=0.02)
    assert losses != pytest.approx(plain, rel=1e-6)  # In half precision.
    if name == 'GDeRSampler':
        loop.sampler.set_epoch(5)
        state = loop.sampler.state_dict()
        assert state['distance'].dtype == torch.float
        drawn = sorted(set(sum(graphs, [])))
        assert state['distance'][drawn].isfinite().all()


@withDevice
@pytest.mark.parametrize('name', SAMPLERS)
def test_node_budget(device, name):
    graphs, losses = Loop(name, device, max_num_nodes=30).run()
    assert_balanced_with_copies(graphs)
    assert losses[-1] < losses[0]


def run_rank(path):
    out = {}
    for name in SAMPLERS:
        for max_num_nodes in [None, 20]:
            loop = Loop(
                name, wrap=DistributedDataParallel, max_num_nodes=max_num_nodes
            )
            # The budget, 30, does not divide into equal shards:
            loop.sampler.budget = 31
            graphs, losses = loop.run()
            before = copy.deepcopy(loop.sampler.state_dict())
            loop.sampler.set_epoch(5)
            out[name, max_num_nodes] = {
                'graphs': graphs,
                'losses': losses,
                'weight': loop.model.head.weight.detach(),
                'before': before,
                'after': loop.sampler.state_dict(),
            }
            del loop
    torch.save(out, f'{path}/{torch.distributed.get_rank()}.pt')


def assert_same(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value, other[key], rtol=0, atol=0, equal_nan=True
            )
        else:
            assert value == other[key] or value != value, key


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    for key in ranks[0]:
        first, second = (rank[key] for rank in ranks)
        for stage in ['before', 'after']:
            assert_same(first[stage], second[stage])
        assert torch.equal(first['weight'], second['weight'])
        assert first['losses'] != second['losses']  # Of different graphs.
        for a, b in zip(first['graphs'], second['graphs']):
            both = [x for pair in zip(a, b) for x in pair]
            assert len(a) == len(b) == 16
            # The last graph pads the shards:
            assert both[31] == both[0]
            assert len([i for i in both[:31] if i % 10 == 0]) in [15, 16]
        assert first['before']['order'].tolist() == both[:31]
        if key[0] == 'GDeRSampler':
            state = first['before']
            assert state['embedding_idx'].tolist() == sorted(both)
            drawn = sorted(
                {
                    x
                    for run in (first, second)
                    for epoch in run['graphs']
                    for x in epoch
                }
            )
            assert first['after']['distance'][drawn].isfinite().all()
