import pytest
import torch
import torch.distributed as dist
from torch.nn import BatchNorm1d, Dropout, Module
from torch.nn.functional import cross_entropy
from torch.utils.data import DistributedSampler
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GraphSAGE, SAGEConv

from searches import SHORT, equal, graph, prune
from torch_geometric_ext.utils import GraphLotteryPruner


class Batches:
    """Mini-batches of the edges that point to some of the nodes.

    Args:
        data (Data): The graph.
        ids (List[List[int]]): The mini-batches, each with the number of a part
            of the nodes for each rank.
        rank (int, optional): The rank to yield mini-batches of; by default,
            yield those of all ranks side by side.
    """

    def __init__(self, data, ids, rank=None):
        self.data = data
        self.ids = ids
        if rank is not None:
            self.ids = [x[rank : rank + 1] for x in ids if rank < len(x)]

    def __len__(self):
        return len(self.ids)

    def __iter__(self):
        data, num_nodes = self.data, self.data.num_nodes
        for ids in self.ids:
            masks = [torch.arange(num_nodes) % 5 == i for i in ids]
            e_ids = [x[data.edge_index[1]].nonzero().flatten() for x in masks]
            edges = [
                data.edge_index[:, e_id] + i * num_nodes
                for i, e_id in enumerate(e_ids)
            ]
            yield Data(
                x=data.x.repeat(len(ids), 1),
                y=data.y.repeat(len(ids)),
                edge_index=torch.cat(edges, dim=1),
                e_id=torch.cat(e_ids),
                masks=masks,
            )


def losses(model, batch):
    """Return the losses of ranks."""
    out = model(batch.x, batch.edge_index).chunk(len(batch.masks))
    y = batch.y.chunk(len(batch.masks))
    return [cross_entropy(o[m], y[m]) for o, y, m in zip(out, y, batch.masks)]


def loss_fn(model, batch):
    """Return the mean loss of ranks."""
    return torch.stack(losses(model, batch)).mean()


def evaluate(model, batches):
    """Return the mean metric of ranks."""
    values = {}
    for batch in batches:
        for rank, loss in enumerate(losses(model, batch)):
            values.setdefault(rank, []).append(-float(loss))
    means = [sum(x) / len(x) for x in values.values()]
    return sum(means) / len(means)


# Rank 0 has three mini-batches, rank 1 has two:
IDS = [[0, 1], [2, 3], [4]]
SEARCHES = [
    dict(method='fast', edge_score='degree'),
    dict(method='fast', edge_score='learned', patience=2),
    dict(method='imp', edge_score='learned', retrain_epochs=2),
    dict(method='one_shot', weight_sparsity=0.0),
    dict(method='random', edge_sparsity=0.0),
]


def search(kwargs, rank=None):
    torch.manual_seed(12)
    model = GraphSAGE(5, 8, 2, 3)
    if rank == 1:  # The weights of rank 0 count.
        torch.nn.init.zeros_(model.convs[0].lin_l.weight)
    batches = Batches(graph(), IDS, rank)
    return prune(model, batches, loss_fn, evaluate, **kwargs)


class Random(Module):
    """A model with dropout, running statistics, and an unused layer."""

    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(5, 8)
        self.norm = BatchNorm1d(8)
        self.dropout = Dropout(0.5)
        self.out = SAGEConv(8, 3)
        self.unused = torch.nn.Linear(2, 2)
        # Of other types, and not contiguous:
        self.register_buffer('flag', torch.tensor([True, False]))
        self.register_buffer('transposed', torch.rand(2, 3).t())

    def forward(self, x, edge_index):
        x = self.dropout(self.norm(self.conv(x, edge_index)).relu())
        return self.out(x, edge_index)


class Stop(Exception):
    pass


def resumed(path, rank):
    """Return tickets of a search, and of the same search in two runs."""

    def run(**kwargs):
        torch.manual_seed(12 + rank)
        pruner = GraphLotteryPruner(Random(), ignored=['unused'], **SHORT)
        batches = Batches(graph(), IDS, rank)
        return pruner.fit(batches, loss_fn, evaluate, **kwargs)

    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == 4:
            raise Stop

    file = dict(checkpoint=f'{path}/search.pt', checkpoint_every=1)
    with pytest.raises(Stop):
        run(callbacks=[interrupt], **file)
    return run(), run(**file)


def check_errors(path, rank):
    args = Batches(graph(), IDS, rank), loss_fn, evaluate
    model = GraphSAGE(5, 8, 2, 3)
    with pytest.raises(ValueError, match='same settings on all ranks'):
        prune(model, *args, seed=rank)
    with pytest.raises(ValueError, match='same model on all ranks'):
        prune(GraphSAGE(5, 8 + rank, 2, 3), *args)
    with pytest.raises(ValueError, match='same edges on all ranks'):
        prune(model, Batches(graph(seed=rank), IDS, rank), *args[1:])
    with pytest.raises(ValueError, match='same optimizer on all ranks'):
        prune(
            model,
            *args,
            optimizer=lambda x: torch.optim.Adam(x, lr=0.1 + rank),
        )
    with pytest.raises(ValueError, match='same kind of checkpoint on all'):
        prune(model, *args, checkpoint=f'{path}/0.pt' if rank else None)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    with pytest.raises(TypeError, match="pass its 'module'"):
        prune(wrapped, *args)
    error = [RuntimeError, ValueError][rank]
    with pytest.raises(error, match='needs to hold a mini-batch'):
        prune(model, Batches(graph(), IDS[: 1 - rank], rank), *args[1:])

    class Longer(Batches):
        def __len__(self):
            return super().__len__() - 1

    with pytest.raises(ValueError, match='as its length on several ranks'):
        prune(model, Longer(graph(), [[0, 1], [2, 3]], rank), *args[1:])

    def fails(model, batch):
        if rank == 0:
            raise KeyError('y')
        return loss_fn(model, batch)

    error = [KeyError, RuntimeError][rank]
    with pytest.raises(error, match='y'):
        prune(model, args[0], fails, lambda m, b: fails(m, next(iter(b))))


def run_rank(path):
    rank = dist.get_rank()
    tickets = [search(kwargs, rank) for kwargs in SEARCHES]
    tickets += resumed(path, rank)
    check_errors(path, rank)
    dist.barrier()
    torch.save([vars(x) for x in tickets], f'{path}/{rank}.pt')


def test_epochs_of_distributed_sampler():
    dataset = [graph(seed=i) for i in range(8)]
    for data in dataset:
        data.label = torch.zeros(1, dtype=torch.long)
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0)
    loader = DataLoader(dataset, batch_size=1, sampler=sampler)
    seen = []

    def loss(model, batch):
        seen.append(float(batch.x[0, 0]))
        return model(batch.x, batch.edge_index).square().mean()

    sizes = dict(edge_sparsity=0.0, method='random', pretrain_epochs=2)
    args = loader, loss, lambda model, batches: 0.0
    prune(GraphSAGE(5, 8, 1, 3), *args, **sizes)
    assert len({tuple(seen[i : i + 4]) for i in range(0, 8, 4)}) == 2
    assert sampler.epoch == SHORT['retrain_epochs'] - 1


class Saved:
    def __init__(self, values):
        vars(self).update(values)


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    outs = [
        [Saved(x) for x in torch.load(tmp_path / f'{rank}.pt')]
        for rank in range(2)
    ]
    for first, second in zip(*outs):
        assert equal(first, second)
    once, twice = outs[0][-2:]
    assert equal(once, twice)
    for kwargs, ticket in zip(SEARCHES, outs[0]):
        # One process that sees the mini-batches of both ranks does the same:
        expected = search(kwargs)
        assert ticket.weight_masks.keys() == expected.weight_masks.keys()
        for key, mask in expected.weight_masks.items():
            assert torch.equal(ticket.weight_masks[key], mask)
        if expected.edge_mask is not None:
            assert torch.equal(ticket.edge_mask, expected.edge_mask)
        assert ticket.metrics == pytest.approx(expected.metrics)
        for state in ['initial_state', 'dense_state', 'final_state']:
            torch.testing.assert_close(
                vars(ticket)[state],
                vars(expected)[state],
                rtol=1e-3,
                atol=1e-4,
            )
