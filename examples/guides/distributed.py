"""Train on several ranks. Each rank trains on its part of the drawn graphs.

torchrun --standalone --nproc-per-node=2 examples/guides/distributed.py
"""

from typing import Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import GDeRSampler
from torch_geometric_ext.nn import HypersphericalPrototypes

ROOT, EPOCHS, BATCH_SIZE = '.data/Solubility', 3, 32


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.atom = torch.nn.Embedding(119, 32)
        self.gnn = GIN(32, 32, num_layers=2)
        self.head = torch.nn.Linear(32, 3)

    def forward(self, batch: Data) -> Tuple[Tensor, Tensor]:
        h = self.gnn(self.atom(batch.x[:, 0]), batch.edge_index)
        h = global_add_pool(h, batch.batch, batch.num_graphs)
        return h, self.head(h)


def train() -> None:
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    if rank == 0:  # Other ranks would write the same files.
        Solubility(ROOT)
    dist.barrier()
    dataset = IndexedDataset(Solubility(ROOT))

    torch.manual_seed(0)
    model = DistributedDataParallel(Net())
    prototypes = DistributedDataParallel(HypersphericalPrototypes(32, 3))
    sampler = GDeRSampler(dataset, prototypes, 0.5, EPOCHS)
    loader = DataLoader(dataset, BATCH_SIZE // num_ranks, sampler=sampler)
    optimizer = torch.optim.Adam(
        [*model.parameters(), *prototypes.parameters()], lr=0.001
    )

    for epoch in range(EPOCHS):
        total, num_graphs = torch.zeros(()), 0
        for batch in loader:
            optimizer.zero_grad()
            h, out = model(batch)
            loss = F.cross_entropy(out, batch.y)
            total += batch.num_graphs * loss.detach()
            loss = loss + sampler.update(h, batch.y, batch.graph_idx)
            loss.backward()
            optimizer.step()
            num_graphs += batch.num_graphs
        mean = total / num_graphs
        dist.all_reduce(mean)
        if rank == 0:
            print(
                f'Epoch {epoch}: {num_graphs} graphs on each of {num_ranks} '
                f'rank(s), loss {mean / num_ranks:.4f}'
            )


def main() -> None:
    dist.init_process_group('gloo')  # 'nccl' on GPUs.
    train()  # Frees the modules before the group.
    dist.barrier()  # Ranks leave together.
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
