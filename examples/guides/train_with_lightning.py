"""Train with PyTorch Lightning, and resume within an epoch.

pip install --no-build-isolation '.[lightning]'  # From a clone.
"""

from typing import Any, Dict, Optional

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import GDeRSampler
from torch_geometric_ext.loader.lightning import SamplerCallback
from torch_geometric_ext.nn import HypersphericalPrototypes, sparsify
from torch_geometric_ext.sparsity import RigL

ROOT, FOLDER = '.data/Solubility', '.data/lightning'
EPOCHS, BATCH_SIZE = 3, 64


class Model(pl.LightningModule):
    def __init__(self, dataset: IndexedDataset) -> None:
        super().__init__()
        self.atom = torch.nn.Embedding(119, 64)
        self.gnn = sparsify(GIN(64, 64, num_layers=2), sparsity=0.8)
        self.head = torch.nn.Linear(64, 3)
        # A sub-module, so that the optimizer trains it:
        self.prototypes = HypersphericalPrototypes(64, 3)
        self.sampler = GDeRSampler(dataset, self.prototypes, 0.5, EPOCHS)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        h = self.gnn(self.atom(batch.x[:, 0]), batch.edge_index)
        h = global_add_pool(h, batch.batch, batch.num_graphs)
        loss = F.cross_entropy(self.head(h), batch.y)
        return loss + self.sampler.update(h, batch.y, batch.graph_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.005)
        num_steps = self.sampler.total_steps(BATCH_SIZE)
        self.rigl = RigL(self, optimizer, num_steps=num_steps, update_every=4)
        return optimizer

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.rigl.step()

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        checkpoint['rigl'] = self.rigl.state_dict()

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        self.rigl_state = checkpoint['rigl']

    def on_train_start(self) -> None:
        if hasattr(self, 'rigl_state'):
            self.rigl.load_state_dict(self.rigl_state)


def train(max_steps: int = -1, resume: Optional[str] = None) -> Model:
    pl.seed_everything(0, verbose=False)
    dataset = IndexedDataset(Solubility(ROOT))
    model = Model(dataset)
    loader = DataLoader(dataset, BATCH_SIZE, sampler=model.sampler)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        max_steps=max_steps,
        callbacks=[
            SamplerCallback(model.sampler),
            ModelCheckpoint(
                FOLDER,
                'last',
                every_n_train_steps=11,
                enable_version_counter=False,
            ),
        ],
        use_distributed_sampler=False,  # The sampler splits graphs itself.
        accelerator='cpu',
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, ckpt_path=resume)
    print(f'{trainer.global_step} steps')
    return model


def main() -> None:
    whole = train().state_dict()
    train(max_steps=13)  # An epoch has eight mini-batches.
    resumed = train(resume=f'{FOLDER}/last.ckpt').state_dict()
    equal = all(torch.equal(x, resumed[key]) for key, x in whole.items())
    print(f'Equal weights: {equal}')


if __name__ == '__main__':
    main()
