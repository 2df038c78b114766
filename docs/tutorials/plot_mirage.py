r"""
Condense a data set to its computation trees
============================================

A data set of a twentieth of the bytes is easier to ship, to keep on a device,
and to train many models on. A random twentieth of the molecules loses most of
the accuracy. Methods that *train* synthetic graphs take longer than the
training they save, and their result depends on one architecture.

:class:`~torch_geometric_ext.transforms.MirageCondense` trains no model. A
message-passing model of :math:`L` layers reads a graph as a multiset of
computation trees of depth :math:`L` (:doc:`plot_shared_trees`). Mirage selects
graphs by their trees, and stores each distinct tree once.
"""

# %%
# A few trees cover many nodes
# ----------------------------
# The example has 1,025 real molecules in three classes of solubility. A GIN
# reads their atoms and edges:
import tempfile
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import RandomSampler, WeightedRandomSampler
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN
from torch_geometric.utils.smiles import x_map

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import RootAggregation
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)

root = tempfile.mkdtemp()
# This tutorial is about bytes. Ignore the hint that small data sets share too
# few trees to save time:
warnings.simplefilter('ignore', UserWarning)


def load(split):
    return [
        Data(x=data.x, edge_index=data.edge_index, y=data.y)
        for data in Solubility(root, split)
    ]


train_dataset, test_dataset = load('train'), load('test')

# %%
# The figure shows the nodes that the most frequent trees cover:
plt.figure()
for num_layers in [1, 2, 3]:
    trees = ShareComputationTrees(num_layers)(train_dataset)
    times = torch.zeros(trees.num_trees[-1], dtype=torch.long)
    times.index_add_(0, trees.tree.long(), trees.count.long())
    covered = times.sort(descending=True).values.cumsum(0) / times.sum()
    rank = torch.arange(1, covered.numel() + 1)
    plt.plot(rank, 100 * covered, label=f'depth {num_layers}')
plt.xscale('log')
plt.xlabel('most frequent trees')
plt.ylabel('covered nodes [%]')
plt.legend()
plt.show()

# %%
# A twentieth of the 4,005 trees of depth 2 covers nearly half of the nodes.
# Deeper trees repeat less often: condense for models of few layers.
#
# Condense
# --------
# Condensing is one line. The report also lists its seconds. :obj:`ratio`
# limits the bytes of the result, relative to the bytes of *all* tensors of the
# data set. Remove attributes that the model does not read first, as above:
# they would make the budget larger.
condense = MirageCondense(num_layers=2, ratio=0.05)
small = condense(train_dataset)
print(str(condense.report()).partition('seconds')[0])

# %%
# Herding selects the graphs: the mean (logarithmic) count of each tree in the
# selected graphs approximates the mean in their class. Each condensed graph
# has its distinct trees as roots, with their counts in :obj:`root_count`. It
# has further nodes only for children of roots that are no roots themselves:
print(small[0])

# %%
# Most atoms of a molecule have different trees, so that these graphs are not
# much smaller than the molecules. Trees repeat *across* molecules. With
# :obj:`share=True`, equal trees of several graphs are stored once, and the
# same bytes hold several times as many graphs:
condense = MirageCondense(num_layers=2, ratio=0.05, share=True)
shared = condense(train_dataset)
print(str(condense.report()).partition('seconds')[0])

# %%
# Train on condensed graphs, predict plain graphs
# -----------------------------------------------
# :class:`~torch_geometric_ext.nn.RootAggregation` pools the roots of condensed
# graphs and all nodes of plain graphs. The same model trains on condensed
# graphs and predicts plain graphs:


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # One embedding for each value of the nine features of an atom:
        sizes = torch.tensor([len(values) for values in x_map.values()])
        self.register_buffer('offset', sizes.cumsum(0) - sizes)
        self.atom = torch.nn.EmbeddingBag(int(sizes.sum()), 64, mode='sum')
        self.gnn = GIN(64, 64, num_layers=2)
        self.aggr = RootAggregation('sum')
        self.head = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
        )

    def forward(self, batch):
        h = self.gnn(self.atom(batch.x + self.offset), batch.edge_index)
        return self.head(self.aggr(h, batch))


# %%
# Classes take turns until the budget is full, so that a condensed data set has
# as many graphs of a rare class as of a frequent class. The weights of the
# graphs of a class sum to the fraction of the class in the original data set:
loader = DataLoader(small, batch_size=len(small))
batch = next(iter(loader))
for label in range(3):
    part = batch.weight[batch.y == label]
    print(f'class {label}: {len(part)} graphs, weight {part.sum():.2f}')

# %%
# Ignore :obj:`weight` if all classes are equally important. Otherwise, there
# are two ways to use it. The first one samples graphs by weight:
num_draws = 20 * 64
sampler = WeightedRandomSampler(small.weight, num_draws)
loader = DataLoader(small, batch_size=64, sampler=sampler)

# Shared trees have it among the attributes of graphs:
sampler = WeightedRandomSampler(shared.graph_attrs['weight'], num_draws)
shared_loader = SharedTreeLoader(shared, batch_size=64, sampler=sampler)

# %%
# The second one weights the loss, which has less variance. The tutorial does
# so. All data sets get the same number of steps, since fewer updates would put
# small data sets at a disadvantage:


def train(part, seed, num_steps=100, batch_size=128):
    seed_everything(seed)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    kind = SharedTreeLoader if isinstance(part, SharedTrees) else DataLoader
    size = len(part)
    sampler = RandomSampler(range(size), num_samples=num_steps * batch_size)
    scheduler = OneCycleLR(optimizer, 0.005, total_steps=num_steps)
    for batch in kind(part, batch_size, sampler=sampler):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), batch.y, reduction='none')
        if 'weight' in batch:
            loss = loss * batch.weight * size
        loss.mean().backward()
        optimizer.step()
        scheduler.step()
    return test(model)


@torch.no_grad()
def test(model):
    batch = Batch.from_data_list(test_dataset)
    pred = model(batch).argmax(dim=1)
    return 100 * float((pred == batch.y).float().mean())


print(f'plain graphs, 5 % of bytes: {train(small, seed=0):.1f} %')
print(f'shared trees, 5 % of bytes: {train(shared, seed=0):.1f} %')

# %%
# Accuracy against bytes
# ----------------------
# The simplest rival is a set of random molecules of the same bytes. Shared
# trees with :obj:`selection="random"` show the gain of storing trees once,
# without the gain of herding. A second baseline needs no molecules at all: a
# logistic regression on the number of atoms. All budgets condense the same
# shared trees, so that trees are found once:
trees = ShareComputationTrees(num_layers=2)(train_dataset)
sizes = [sum(x.nbytes for _, x in data) for data in train_dataset]
sizes = torch.tensor(sizes)
total = int(sizes.sum())


def choose(method, budget, seed):
    if method == 'random':
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(sizes), generator=generator)
        size = int((sizes[order].cumsum(0) <= budget).sum())
        return [train_dataset[i] for i in order[:size].tolist()]
    selection = 'random' if method == 'random, shared' else 'herding'
    condense = MirageCondense(
        num_layers=2,
        num_bytes=budget,
        selection=selection,
        share=method.endswith('shared'),
        seed=seed,
    )
    return condense(trees)


def count_atoms():
    sets = []
    for part in [train_dataset, test_dataset]:
        size = [[data.num_nodes] for data in part]
        sets += [size, [int(data.y) for data in part]]
    classifier = LogisticRegression().fit(*sets[:2])
    return 100 * classifier.score(*sets[2:])


budgets, seeds = [0.01, 0.03, 0.1], [0, 1]
plt.figure()
for method in ['Mirage, shared', 'Mirage', 'random, shared', 'random']:
    means = []
    for budget in budgets:
        values = [
            train(choose(method, int(budget * total), seed), seed)
            for seed in seeds
        ]
        means.append(sum(values) / len(values))
    plt.plot([100 * budget for budget in budgets], means, 'o-', label=method)
full = sum(train(trees, seed) for seed in seeds) / len(seeds)
plt.axhline(full, color='gray', label='all molecules')
plt.axhline(count_atoms(), color='gray', ls=':', label='number of atoms')
plt.xscale('log')
plt.xlabel('bytes [%]')
plt.ylabel('test accuracy [%]')
plt.legend()
plt.show()

# %%
# With two seeds and 257 test molecules, differences of a few points are noise.
# A budget that falls below the dotted line does not pay: the number of atoms
# alone is as accurate.
# :doc:`Benchmarks </benchmarks/condensing>` have more data sets, seeds and
# models.
#
# Patterns
# --------
# The paper mines *sets* of trees that occur together in many graphs of a
# class, and makes a graph of each set. :obj:`selection="patterns"` does the
# same. The weight of a pattern is proportional to its support:
condense = MirageCondense(num_layers=2, ratio=0.05, selection='patterns')
patterns = condense(train_dataset)
print(str(condense.report()).partition('seconds')[0])
print(f'patterns, 5 % of bytes: {train(patterns, seed=0):.1f} %')

# %%
# Patterns are not the default. A set loses the counts of trees, and a pattern
# is far smaller than the molecules that hold it. A model with sum pooling then
# trains on sizes that few test molecules have:
mean = patterns.root_count.sum() / len(patterns)
plain = sum(data.num_nodes for data in train_dataset) / len(train_dataset)
print(f'roots of a pattern: {mean:.1f}, atoms of a molecule: {plain:.1f}')

# %%
# Rules of use
# ------------
# * Condense for the number of layers of the model. Set ``edge_attr=False`` if
#   the model reads no edge attributes: more trees are equal without. Set
#   ``gcn_norm=True`` for :class:`~torch_geometric.nn.conv.GCNConv`.
# * Embeddings of roots are exact. *Batch normalization* on condensed plain
#   graphs is not, since it counts each node once. With ``share=True``, use
#   :class:`~torch_geometric_ext.nn.TreeBatchNorm` within
#   :func:`~torch_geometric_ext.nn.shared_batch`, which is exact.
# * Condensing saves bytes. The time of a step depends on the nodes of its
#   mini-batch. With ``share=True``, each distinct tree is computed once.
