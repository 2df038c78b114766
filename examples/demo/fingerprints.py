"""The doors for node classification on one graph, of fingerprints."""

import time
from functools import cache, partial
from typing import Any, Callable, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from torch_geometric.utils import to_torch_csr_tensor

from torch_geometric_ext.full_batch import StaticGraph, accelerate
from torch_geometric_ext.nn import sparsify
from torch_geometric_ext.sparsity import RigL
from torch_geometric_ext.utils import GraphLotteryPruner

from .table import Door, Run

WIDE, CHANNELS = 512, 256
SPARSITY = 0.95  # Of the wide model.
WEIGHT_SPARSITY, EDGE_SPARSITY = 0.98, 0.35  # Of tickets.


def sparse_layers(data: Data, seed: int, epochs: int) -> Door:
    """Compare a wide model with a narrow and a sparse one."""
    return Door(
        'sparse layers',
        f'GCN, {WIDE} channels',
        'accuracy',
        partial(run_csr, WIDE, data, seed, epochs),
        partial(run_csr, WIDE // 20, data, seed, epochs),
        partial(run_csr, WIDE, data, seed, epochs, sparse=True),
    )


def full_batches(data: Data, seed: int, epochs: int) -> List[Door]:
    """Compare full-batch training with an accelerated model and a ticket."""
    plain = cache(partial(run_plain, data, seed, epochs))
    accelerated = Door(
        'full batches',
        f'GCN, {CHANNELS} channels',
        'accuracy',
        plain,
        partial(run_csr, CHANNELS, data, seed, epochs),
        partial(run_accelerated, data, seed, epochs),
    )
    ticket = Door(
        'tickets',
        f'GCN, {CHANNELS} channels',
        'accuracy',
        plain,
        partial(run_csr, CHANNELS // 50, data, seed, epochs),
        partial(run_ticket, data, seed, epochs),
    )
    return [accelerated, ticket]


def make_model(data: Data, channels: int, seed: int, **kwargs: Any) -> GCN:
    seed_everything(seed)
    # Dropout lowers the accuracy of narrow models:
    dropout = 0.5 if channels > 64 else 0.0
    return GCN(data.num_features, channels, 2, 3, dropout=dropout, **kwargs)


def run_plain(data: Data, seed: int, epochs: int) -> Run:
    model, start = make_model(data, CHANNELS, seed), time.perf_counter()

    def forward(mask: Tensor) -> Tensor:
        return model(data.x, data.edge_index)[mask]

    accuracy = fit(model, forward, data, epochs)
    return Run(accuracy, time.perf_counter() - start)


def run_csr(
    channels: int, data: Data, seed: int, epochs: int, sparse: bool = False
) -> Run:
    """Train with a CSR matrix, which the layers normalize once."""
    model = make_model(data, channels, seed, cached=True)
    start = time.perf_counter()
    adj = to_torch_csr_tensor(data.edge_index)
    if sparse:
        sparsify(model, SPARSITY, seed=seed)

    def forward(mask: Tensor) -> Tensor:
        return model(data.x, adj)[mask]

    accuracy = fit(model, forward, data, epochs, sparse)
    saved = f'{SPARSITY:.0%} of weights'.replace('%', ' %')
    return Run(accuracy, time.perf_counter() - start, saved)


def run_accelerated(data: Data, seed: int, epochs: int) -> Run:
    model, start = make_model(data, CHANNELS, seed), time.perf_counter()
    forward = accelerate(model, StaticGraph(data))
    accuracy = fit(model, forward, data, epochs)
    return Run(accuracy, time.perf_counter() - start, 'equal gradients')


def run_ticket(data: Data, seed: int, epochs: int) -> Run:
    """Search a ticket, whose three trainings have all epochs each."""
    model, start = make_model(data, CHANNELS, seed), time.perf_counter()
    pruner = GraphLotteryPruner(
        model,
        weight_sparsity=WEIGHT_SPARSITY,
        edge_sparsity=EDGE_SPARSITY,
        pretrain_epochs=epochs,
        search_epochs=epochs,
        retrain_epochs=epochs,
        seed=seed,
    )
    ticket = pruner.fit(data)
    seconds = time.perf_counter() - start
    pruned, graph = ticket.apply(model, data)
    pruned.eval()
    with torch.no_grad():
        out = pruned(graph.x, graph.edge_index)[graph.test_mask]
    accuracy = evaluate(out, graph.y[graph.test_mask])
    return Run(accuracy, seconds, '98 % of weights, 35 % of edges')


def fit(
    model: torch.nn.Module,
    forward: Callable[[Tensor], Tensor],
    data: Data,
    epochs: int,
    sparse: bool = False,
) -> float:
    """Return the test accuracy of the epoch with the best validation."""
    optimizer = Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    rigl: Optional[RigL] = None
    if sparse:
        rigl = RigL(model, optimizer, num_steps=epochs, update_every=5)
    held_out = data.val_mask | data.test_mask
    y, is_val = data.y[held_out], data.val_mask[held_out]
    results = []
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        out = forward(data.train_mask)
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
        if rigl is not None:
            rigl.step()
        if epoch % 2 == 0 or epoch == epochs:
            model.eval()
            with torch.no_grad():
                out = forward(held_out)
            val = evaluate(out[is_val], y[is_val])
            results.append((val, evaluate(out[~is_val], y[~is_val])))
    return max(results, key=lambda result: result[0])[1]


def evaluate(out: Tensor, y: Tensor) -> float:
    return 100 * float((out.argmax(dim=-1) == y).float().mean())
