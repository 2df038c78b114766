r"""
Condense a data set to its computation trees
============================================

A data set that is a twentieth in size is easier to ship, to keep on a device,
and to train many models on. Which twentieth? Molecules at random lose most of
what there is to learn. Methods that *train* synthetic graphs take longer than
the training they save, and bind the result to the architecture they used.

:class:`~torch_geometric_ext.transforms.MirageCondense` trains nothing. With
:math:`L` layers, a message-passing network sees of a graph which computation
trees it holds, and how often (:doc:`plot_shared_trees`). It is these that are
chosen, and stored once.
"""

# %%
# A few trees are nearly everywhere
# ---------------------------------
# Here are 1,025 real molecules in three classes of solubility. What a GIN
# reads of them are atoms and edges:
import tempfile
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
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
# We care for bytes here, and know that a few molecules share little time:
warnings.filterwarnings('ignore', '.* pay')


def load(split):
    return [
        Data(x=data.x, edge_index=data.edge_index, y=data.y)
        for data in Solubility(root, split)
    ]


train_dataset, test_dataset = load('train'), load('test')

# %%
# How many of the trees does it take to cover their nodes?
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
plt.ylabel('share of all nodes [%]')
plt.legend()
plt.show()

# %%
# A twentieth of the 4,005 trees of depth 2 covers nearly half of the nodes.
# The deeper the trees, the rarer each of them: condensing is for networks of
# few layers.
#
# Condense
# --------
# One line, and some hundredths of a second. :obj:`ratio` is a share of the
# bytes of *all* tensors of the data set: leave out what the model does not
# read first, as we did above, or it counts as if you had saved it.
condense = MirageCondense(num_layers=2, ratio=0.05)
small = condense(train_dataset)
print(condense.report())

# %%
# Graphs are chosen by herding: the mean number of each tree in the graphs that
# are kept is, as closely as possible, that in their class. Each of them holds
# its distinct trees as roots, with how often they occur (:obj:`root_count`),
# and further nodes only where a child of a root is no root itself:
print(small[0])

# %%
# Within a molecule, most atoms differ, so that these graphs are not much
# smaller than the molecules. Trees repeat *across* molecules. To store each of
# them once, ask for shared trees. The same bytes then hold several times as
# many graphs:
condense = MirageCondense(num_layers=2, ratio=0.05, share=True)
shared = condense(train_dataset)
print(condense.report())

# %%
# Train on the one, predict the other
# -----------------------------------
# :class:`~torch_geometric_ext.nn.RootAggregation` pools roots where there are
# any, and all nodes where not. One model trains on condensed graphs and
# predicts plain ones:


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
# Classes take turns while the budget is filled, so that a condensed data set
# holds as many graphs of a rare class as of a frequent one. The :obj:`weight`
# of its graphs tells what a class really makes up:
loader = DataLoader(small, batch_size=len(small))
batch = next(iter(loader))
for label in range(3):
    part = batch.weight[batch.y == label]
    print(f'class {label}: {len(part)} graphs, weight {part.sum():.2f}')

# %%
# There are two ways to use it, and one not to: if rare classes matter as much
# as others to you, ignore it. Draw graphs in proportion to their weight,
num_draws = 20 * 64
sampler = WeightedRandomSampler(small.weight, num_draws)
loader = DataLoader(small, batch_size=64, sampler=sampler)

# Shared trees hold it among the attributes of their graphs:
sampler = WeightedRandomSampler(shared.graph_attrs['weight'], num_draws)
shared_loader = SharedTreeLoader(shared, batch_size=64, sampler=sampler)

# %%
# or weigh the loss, which has less variance. That is what is done here, with
# the same number of steps for all, lest a small data set is punished by few
# updates:


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
# The rival to beat is the simplest: molecules at random, of the same bytes.
# :obj:`selection="random"` tells what remains of the gain if it is only about
# storing trees once. The data set may be given as shared trees, so that they
# are found only once for all budgets:
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
plt.xscale('log')
plt.xlabel('share of bytes [%]')
plt.ylabel('test accuracy [%]')
plt.legend()
plt.show()

# %%
# Two seeds on 257 test molecules: differences of some points are chance.
# :doc:`../benchmarks` has more data sets, more seeds and more networks.
#
# Patterns
# --------
# The paper mines *sets* of trees that occur together in many graphs of a class
# and makes a graph of each. These are at hand, too. Their weight is in
# proportion to their support:
condense = MirageCondense(num_layers=2, ratio=0.05, selection='patterns')
patterns = condense(train_dataset)
print(condense.report())
print(f'patterns, 5 % of bytes: {train(patterns, seed=0):.1f} %')

# %%
# They are not the default. A set forgets how often a tree occurs, and a
# pattern is far smaller than the molecules it occurs in: a network that
# adds up nodes then learns from sizes that few test molecules have:
mean = patterns.root_count.sum() / len(patterns)
plain = sum(data.num_nodes for data in train_dataset) / len(train_dataset)
print(f'roots of a pattern: {mean:.1f}, atoms of a molecule: {plain:.1f}')

# %%
# What to keep in mind
# --------------------
# * Condense for as many layers as the model has, and for what it reads:
#   ``edge_attr=False`` shares more if it reads no edge attributes,
#   ``gcn_norm=True`` is for :class:`~torch_geometric.nn.conv.GCNConv`.
# * Embeddings of roots are exact. *Batch normalization* is not on condensed
#   plain graphs, where it counts each node once; with ``share=True``, it is
#   :class:`~torch_geometric_ext.nn.TreeBatchNorm` within
#   :func:`~torch_geometric_ext.nn.shared_batch`.
# * Condensing saves bytes. A step costs what the nodes of its mini-batch cost;
#   with ``share=True``, distinct trees are computed once.
