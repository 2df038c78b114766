"""Short searches on small graphs."""

import torch
from torch_geometric.data import Data

from torch_geometric_ext.utils import GraphLotteryPruner

FIT = ['loss_fn', 'evaluate', 'callbacks', 'checkpoint', 'checkpoint_every']
SHORT = dict(
    weight_sparsity=0.7,
    edge_sparsity=0.3,
    pretrain_epochs=4,
    search_epochs=8,
    retrain_epochs=4,
    update_every=2,
)


def graph(num_nodes=16, seed=0, device=None, undirected=True):
    """A graph with multi-edges, self-loops and an isolated node."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(num_nodes - 1, (2, 40), generator=generator)
    edges[1, :3] = edges[0, :3]
    if undirected:
        between = edges[:, edges[0] != edges[1]]
        edges = torch.cat([edges, between.flip(0)], dim=1)
    y = torch.arange(num_nodes) % 3
    x = torch.randn(num_nodes, 5, generator=generator) + y.view(-1, 1)
    mask = torch.rand(num_nodes, generator=generator) < 0.5
    data = Data(x=x, edge_index=edges, y=y, train_mask=mask, val_mask=~mask)
    return data.to(device)


def prune(model, data, *args, **kwargs):
    fit = {key: kwargs.pop(key) for key in FIT if key in kwargs}
    pruner = GraphLotteryPruner(model, **{**SHORT, **kwargs})
    return pruner.fit(data, *args, **fit)


def equal(ticket, other):
    """Return whether tickets are equal bit for bit."""
    a, b = vars(ticket).copy(), vars(other).copy()
    for values in [a, b]:
        values.pop('seconds')
    return str(flat(a)) == str(flat(b))


def flat(value):
    if isinstance(value, dict):
        return {key: flat(x) for key, x in value.items()}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value
