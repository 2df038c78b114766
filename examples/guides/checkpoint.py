"""Save a checkpoint in the middle of an epoch, and resume bit for bit."""

import os
from pathlib import Path
from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import UCBSampler
from torch_geometric_ext.nn import sparsify
from torch_geometric_ext.sparsity import RigL

ROOT, PATH = '.data/Solubility', '.data/checkpoint.pt'
EPOCHS, BATCH_SIZE = 4, 64


def save(checkpoint: dict, path: str) -> None:
    """Replace the file at once: a crash leaves the previous checkpoint."""
    torch.save(checkpoint, f'{path}.tmp')
    os.replace(f'{path}.tmp', path)


def train(stop: Optional[int] = None, resume: bool = False) -> torch.nn.Module:
    """Train to the end, or save a checkpoint after some steps and stop."""
    seed_everything(0)
    dataset = IndexedDataset(Solubility(ROOT))
    model = torch.nn.ModuleDict(
        {
            'atom': torch.nn.Embedding(119, 64),
            'gnn': GIN(64, 64, num_layers=2, dropout=0.2, norm='batch_norm'),
            'head': torch.nn.Linear(64, 3),
        }
    )
    sparsify(model, sparsity=0.8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    sampler = UCBSampler(dataset, keep_ratio=0.5, num_epochs=EPOCHS)
    num_steps = sampler.total_steps(BATCH_SIZE)
    parts: Dict[str, Any] = {
        'model': model,
        'optimizer': optimizer,
        'sampler': sampler,
        'rigl': RigL(model, optimizer, num_steps=num_steps, update_every=4),
        'lr': torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.005, total_steps=num_steps
        ),
    }
    # Iterators of this loader leave the global random generator alone:
    generator = torch.Generator()
    loader = DataLoader(
        dataset, BATCH_SIZE, sampler=sampler, generator=generator
    )
    if resume:
        checkpoint = torch.load(PATH)
        for key, part in parts.items():
            part.load_state_dict(checkpoint[key])
        torch.set_rng_state(checkpoint['random'])  # Of dropout.

    step = 0
    while sampler.next_epoch < EPOCHS:
        for batch in loader:
            optimizer.zero_grad()
            h = model['gnn'](model['atom'](batch.x[:, 0]), batch.edge_index)
            h = global_add_pool(h, batch.batch, batch.num_graphs)
            losses = F.cross_entropy(
                model['head'](h), batch.y, reduction='none'
            )
            sampler.update(losses, batch.graph_idx).backward()
            optimizer.step()
            parts['rigl'].step()
            parts['lr'].step()
            step += 1
            if step == stop:
                states = {k: part.state_dict() for k, part in parts.items()}
                save({**states, 'random': torch.get_rng_state()}, PATH)
                return model
    print(f'{step} steps, the last one of epoch {sampler.epoch}')
    return model


def main() -> None:
    whole = train().state_dict()
    train(stop=13)  # An epoch has eight mini-batches.
    resumed = train(resume=True).state_dict()
    equal = all(torch.equal(x, resumed[key]) for key, x in whole.items())
    print(f'Equal weights: {equal}')
    Path(PATH).unlink()


if __name__ == '__main__':
    main()
