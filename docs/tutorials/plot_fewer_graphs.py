r"""
Train on fewer graphs, balanced and without outliers
====================================================

A graph classifier trains on every graph of the data set in every epoch.
*Dynamic* pruning trains on a different subset in each epoch: epochs are
cheaper, and no graph is lost. The subset can also correct two faults of a data
set: classes of different sizes, and corrupted graphs.

This tutorial trains a GIN on real molecules, only 20 of which are of the third
class: on all molecules, on a new random half in each epoch, and on the half
that :class:`~torch_geometric_ext.loader.GDeRSampler` draws. Test molecules are
not imbalanced.
"""

# %%
# The data set is part of a Python package and needs no download.
# :class:`~torch_geometric_ext.data.IndexedDataset` adds to each molecule its
# position in the data set as :obj:`graph_idx`:
import tempfile

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch_geometric import seed_everything
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool
from torch_geometric.utils.smiles import x_map

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import (
    BalancedSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.nn import HypersphericalPrototypes

root = tempfile.mkdtemp()
molecules = Solubility(root, 'train')
rare = (molecules.y == 2).nonzero().view(-1)
others = (molecules.y != 2).nonzero().view(-1)
dataset = IndexedDataset(molecules[torch.cat([others, rare[::8][:20]])])
test_dataset = Solubility(root, 'test')
dataset[7]

# %%
# Any model that returns one embedding per graph is suitable:


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # One embedding per value of the nine features of an atom:
        sizes = torch.tensor([len(values) for values in x_map.values()])
        self.register_buffer('offset', sizes.cumsum(0) - sizes)
        self.atom = torch.nn.EmbeddingBag(int(sizes.sum()), 64, mode='sum')
        self.gnn = GIN(64, 64, num_layers=3, norm='batch_norm')
        self.head = torch.nn.Linear(64, dataset.num_classes)

    def forward(self, batch):
        h = self.gnn(self.atom(batch.x + self.offset), batch.edge_index)
        return global_add_pool(h, batch.batch)


# %%
# The training loop needs one more line: add the result of ``update`` to the
# loss. ``update`` also records the embeddings of the graphs.


def train(make_sampler, dataset=dataset, num_epochs=30, seed=0):
    seed_everything(seed)
    model = Net()
    prototypes = HypersphericalPrototypes(64, dataset.num_classes)
    sampler = make_sampler(prototypes, num_epochs)
    loader = DataLoader(
        dataset, batch_size=32, sampler=sampler, shuffle=sampler is None
    )
    optimizer = torch.optim.Adam(
        [*model.parameters(), *prototypes.parameters()], lr=0.005
    )
    num_steps = num_epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.005, total_steps=num_steps
    )
    for _ in range(num_epochs):
        for batch in loader:
            optimizer.zero_grad()
            h = model(batch)
            loss = F.cross_entropy(model.head(h), batch.y)
            if isinstance(sampler, GDeRSampler):
                loss = loss + sampler.update(h, batch.y, batch.graph_idx)
            loss.backward()
            optimizer.step()
            scheduler.step()

    model.eval()
    (batch,) = DataLoader(test_dataset, batch_size=len(test_dataset))
    pred = model.head(model(batch)).argmax(dim=-1)
    return f1_score(batch.y, pred, average='macro'), num_steps, sampler


# %%
# The optimizer also trains the prototypes. If their parameters are missing in
# the optimizer, the sampler warns after an epoch.


def all_graphs(prototypes, num_epochs):
    return None


def random_half(prototypes, num_epochs):
    return SoftRandomSampler(dataset, 0.5, num_epochs)


def gder_half(prototypes, num_epochs):
    return GDeRSampler(dataset, prototypes, 0.5, num_epochs)


for make_sampler in [all_graphs, random_half, gder_half]:
    f1, num_steps, sampler = train(make_sampler)
    print(f'{make_sampler.__name__:12} F1 {f1:.1%} after {num_steps} steps')

# %%
# A single seed is not conclusive. ``examples/compare_methods.py`` compares
# five paired seeds. :doc:`Benchmarks </benchmarks/fewer_graphs>` report on six
# more data sets and on corrupted graphs.
#
# Inspect the draws
# -----------------
#
# ``sampler.history()`` returns statistics of each epoch, and
# ``sampler.plot()`` draws them. In the first four epochs, draws follow the
# data set. The nearest prototype is then wrong for nearly all molecules of the
# third class, and the sampler draws all classes equally often. With another
# seed, it may decide not to balance: if you know that classes are imbalanced,
# pass ``balance=1.0``.
figure = sampler.plot()

# %%
# Find corrupted graphs
# ---------------------
#
# Set all features of a tenth of the molecules to zero, as a failed conversion
# may do:
molecules = list(dataset)
torch.manual_seed(0)
corrupted = torch.randperm(len(molecules))[: len(molecules) // 10]
for i in corrupted.tolist():
    molecules[i].x = torch.zeros_like(molecules[i].x)
corrupted_dataset = IndexedDataset(molecules)


def gder_corrupted(prototypes, num_epochs):
    return GDeRSampler(corrupted_dataset, prototypes, 0.5, num_epochs)


# %%
# ``sampler.suspects()`` returns the graphs that the sampler distrusts. The
# list is empty without a clear gap between their scores and those of the
# others. ``sampler.suspects(k)`` ranks graphs in any case, the most unusual
# embeddings first:
for num_epochs in [8, 30]:
    _, _, sampler = train(gder_corrupted, corrupted_dataset, num_epochs)
    top = sampler.suspects(k=len(corrupted))
    precision = torch.isin(top, corrupted).float().mean()
    print(
        f'{num_epochs:2} epochs: {len(sampler.suspects())} suspects, '
        f'{precision:.0%} of the first {len(top)} graphs are corrupted'
    )

# %%
# Rank after a few epochs: in longer training, the model learns corrupted
# graphs, and their embeddings become ordinary. The ranking varies with the
# seed: look at the graphs before you drop them.
# Unusual but correct molecules rank high, too. Wrong labels do not.
#
# Where a simpler sampler is enough
# ---------------------------------
# The original molecules are clean, so that only balance matters.
# :class:`~torch_geometric_ext.loader.BalancedSampler` draws all classes
# equally often from the first epoch on, and needs neither prototypes nor
# feedback:


def balanced_half(prototypes, num_epochs):
    return BalancedSampler(dataset, 0.5, num_epochs)


f1, num_steps, _ = train(balanced_half)
print(f'balanced_half F1 {f1:.1%} after {num_steps} steps')

# %%
# One seed does not rank the two samplers: over six imbalanced data sets, both
# are equally accurate (:doc:`benchmarks </benchmarks/fewer_graphs>`).
# :class:`~torch_geometric_ext.loader.GDeRSampler` serves where it is unknown
# whether classes need balance, or whether graphs are corrupted. On clean,
# balanced data, it is no more accurate than a random subset, and both are less
# accurate than all graphs.
#
# Train without classes
# ---------------------
#
# For a regression, several labels per graph or pre-training, one line changes:
# pass ``None`` instead of labels, so that graphs belong to the virtual class
# of their nearest prototype. Outliers are found as before:
#
# .. code-block:: python
#
#     loss = loss + sampler.update(h, None, batch.graph_idx)
#
# Choose another policy
# ---------------------
#
# All samplers share budgets, epochs, resuming and ranks. Samplers that follow
# the loss return its mean:
#
# .. code-block:: python
#
#     sampler = InfoBatchSampler(dataset, 0.5, num_epochs=30)
#     ...
#     losses = F.cross_entropy(model.head(h), batch.y, reduction='none')
#     loss = sampler.update(losses, batch.graph_idx)
#
# Save and resume
# ---------------
#
# Save ``sampler.state_dict()`` with the model. A sampler that loads the state
# draws the same graphs in the same order as without an interruption.
prototypes = HypersphericalPrototypes(64, dataset.num_classes)
other = GDeRSampler(dataset, prototypes, 0.5, num_epochs=30)
other.load_state_dict(sampler.state_dict())
print(list(sampler) == list(other))
