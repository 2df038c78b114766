"""Write a scheduler that grows weights where an output has few of them."""

from typing import Optional, Type

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.ops import top_positions
from torch_geometric_ext.sparsity import SET, TopologyScheduler

ROOT, EPOCHS = '.data/DigitsKNN', 60


class EvenFanIn(TopologyScheduler):
    """Drop the smallest weights, and grow weights of the outputs that have
    the fewest.
    """

    def _grow(
        self, name: str, index: Tensor, num_weights: int
    ) -> Optional[Tensor]:
        """Return ascending, inactive positions of the flattened weight."""
        layer = self.layers[name]
        size = (layer.out_channels, layer.in_channels)
        # The generator of the scheduler is part of its state:
        order = torch.rand(size, generator=self._generator)
        order = order.to(index.device)
        order.view(-1)[index] = 2  # Active positions come last.
        rank = order.argsort(dim=1).argsort(dim=1)
        fan_in = count_weights(layer).view(-1, 1) + rank
        score = -fan_in.float().view(-1)
        score[index] = -torch.inf
        return top_positions(score, num_weights)

    def _score_blocks(self, name: str) -> Optional[Tensor]:
        return None  # Layers with a `block_size` keep their blocks.


def count_weights(layer: SparseLinear) -> Tensor:
    """Return the number of active weights of each output."""
    row = layer.index.div(layer.in_channels, rounding_mode='floor')
    return row.bincount(minlength=layer.out_channels)


def train(Scheduler: Type[TopologyScheduler]) -> None:
    seed_everything(0)
    data = DigitsKNN(ROOT)[0]
    model = sparsify(GraphSAGE(64, 128, 2, 10), sparsity=0.9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = Scheduler(model, optimizer, num_steps=EPOCHS, update_every=3)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        F.cross_entropy(
            out[data.train_mask], data.y[data.train_mask]
        ).backward()
        optimizer.step()
        scheduler.step()
    correct = (out.argmax(dim=-1) == data.y)[data.test_mask]
    layer = scheduler.layers['convs.0.lin_l']
    fan_in = count_weights(layer)
    print(
        f'{Scheduler.__name__:12}{layer.values.numel():>10}'
        f'{f"{fan_in.min()} to {fan_in.max()}":>12}'
        f'{100 * correct.float().mean():>14.1f}'
    )


def main() -> None:
    print(f'{"scheduler":12}{"weights":>10}{"fan-in":>12}{"accuracy [%]":>14}')
    train(SET)
    train(EvenFanIn)


if __name__ == '__main__':
    main()
