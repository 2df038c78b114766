"""Train on mini-batches of nodes and their sampled neighbors."""

import time
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.typing
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader, NodeLoader
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.loader import NeighborSampler

ROOT = '.data/DigitsKNN'
COMPILED = (
    torch_geometric.typing.WITH_PYG_LIB
    or torch_geometric.typing.WITH_TORCH_SPARSE
)


def make_loader(data: Data, num_neighbors: list, nodes: Tensor) -> Any:
    """Return the fastest loader that the installed packages permit."""
    kwargs: dict = dict(input_nodes=nodes, batch_size=64, shuffle=True)
    if COMPILED:
        return NeighborLoader(data, num_neighbors, **kwargs)
    sampler = NeighborSampler(data, num_neighbors)
    return NodeLoader(data, node_sampler=sampler, **kwargs)


def main() -> None:
    seed_everything(0)
    print(f'Compiled sampler: {COMPILED}')
    data = DigitsKNN(ROOT)[0]
    model = GraphSAGE(64, 64, num_layers=2, out_channels=10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    # One number for each layer of the model:
    loader = make_loader(data, [5, 5], data.train_mask)
    start, num_nodes = time.perf_counter(), 0
    for _ in range(10):
        for batch in loader:
            optimizer.zero_grad()
            out = model(batch.x, batch.edge_index)[: batch.batch_size]
            F.cross_entropy(out, batch.y[: batch.batch_size]).backward()
            optimizer.step()
            num_nodes += batch.num_nodes
    print(f'{num_nodes:,} nodes in {time.perf_counter() - start:.1f} s')

    # Predictions of all neighbors (-1) equal those of the whole graph:
    model.eval()
    with torch.no_grad():
        expected = model(data.x, data.edge_index)
        correct, error = 0, 0.0
        for batch in make_loader(data, [-1, -1], data.test_mask):
            out = model(batch.x, batch.edge_index)[: batch.batch_size]
            nodes = batch.n_id[: batch.batch_size]
            error = max(error, float((out - expected[nodes]).abs().max()))
            correct += int((out.argmax(dim=-1) == data.y[nodes]).sum())
    print(f'Test accuracy: {100 * correct / int(data.test_mask.sum()):.1f} %')
    print(f'Largest difference to the whole graph: {error:.0e}')


if __name__ == '__main__':
    main()
