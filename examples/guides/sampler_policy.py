"""Write a sampler that draws graphs on which the model is unsure."""

from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import DynamicSampler

ROOT, EPOCHS = '.data/Solubility', 8


class EntropySampler(DynamicSampler):
    """Draw graphs in proportion to the entropy of their predictions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entropy = torch.ones(self.size)  # Of unseen graphs.

    def update(self, out: Tensor, graph_idx: Tensor) -> None:
        """Record the logits of a mini-batch."""
        log_p = out.detach().log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1, keepdim=True)
        self._record(graph_idx, entropy)  # One row for each graph.

    def _observe(self, graph_idx: Tensor, feedback: Tensor) -> None:
        """Process all feedback of an epoch, on CPU."""
        self.entropy[graph_idx] = feedback.view(-1)

    def _weights(self, epoch: int) -> Optional[Tensor]:
        """Return the relative probability of each graph."""
        return self.entropy + 0.05

    # Checkpoints hold what the sampler has learned:

    def _extra_state(self) -> Dict[str, Any]:
        return {'entropy': self.entropy.clone()}

    def _load_extra_state(self, state: Dict[str, Any]) -> None:
        self.entropy = state['entropy'].cpu().clone()


def main() -> None:
    seed_everything(0)
    dataset = IndexedDataset(Solubility(ROOT))
    sampler = EntropySampler(dataset, keep_ratio=0.3, num_epochs=EPOCHS)
    loader = DataLoader(dataset, batch_size=32, sampler=sampler)
    atom, head = torch.nn.Embedding(119, 64), torch.nn.Linear(64, 3)
    gnn = GIN(64, 64, num_layers=2)
    model = torch.nn.ModuleList([atom, gnn, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(EPOCHS):
        for batch in loader:
            optimizer.zero_grad()
            h = gnn(atom(batch.x[:, 0]), batch.edge_index)
            out = head(global_add_pool(h, batch.batch, batch.num_graphs))
            losses = F.cross_entropy(out, batch.y, reduction='none')
            weight = sampler.loss_weight(batch.graph_idx)  # Unbiased.
            (weight * losses).mean().backward()
            optimizer.step()
            sampler.update(out, batch.graph_idx)

    state = sampler.state_dict()
    sampler.set_epoch(EPOCHS)  # Plans the next epoch with all feedback.
    drawn = torch.tensor(sampler.peek())
    print(f'Entropy of all graphs: {sampler.entropy.mean():.2f}')
    print(f'Entropy of drawn graphs: {sampler.entropy[drawn].mean():.2f}')

    other = EntropySampler(dataset, keep_ratio=0.3, num_epochs=EPOCHS)
    other.load_state_dict(state)
    other.set_epoch(EPOCHS)
    print(f'Same draw from a checkpoint: {other.peek() == sampler.peek()}')


if __name__ == '__main__':
    main()
