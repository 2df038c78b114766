r"""
Train on every distinct computation tree once
=============================================

A message-passing network with :math:`L` layers sees of a node what lies within
:math:`L` hops: its *computation tree*. Nodes with the same tree get the same
embedding, and in real data most trees repeat, within a graph and across
graphs: a carbon between two carbons of a ring looks the same everywhere. A
plain mini-batch computes the same embedding again and again.

This tutorial finds the distinct trees of a data set, looks at what is shared,
and trains a GIN on every tree once. The loss and all gradients are those of
plain training; only the time is not.
"""

# %%
# Trees of two molecules
# ----------------------
# Propanol, C-C-C-O, and butane, C-C-C-C, with the element as the feature of
# each heavy atom:
import copy
import tempfile
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GIN

from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import (
    LevelwiseConv,
    RootAggregation,
    TreeBatchNorm,
    check_exact,
    shared_batch,
)
from torch_geometric_ext.transforms import ShareComputationTrees

chain = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
carbon, oxygen = [1.0, 0.0], [0.0, 1.0]
x = torch.tensor([carbon, carbon, carbon, oxygen])
propanol = Data(x=x, edge_index=chain)
butane = Data(x=x[[0, 0, 0, 0]], edge_index=chain)
names = ['propanol', 'butane']

shared = ShareComputationTrees(num_layers=2)(4 * [propanol, butane])
print(shared.report())

# %%
# Among the 32 atoms of these eight molecules, there are only five distinct
# trees of depth 2. A mini-batch holds one node for each distinct tree of each
# level, and edges from children to parents. It is an ordinary graph: :obj:`L`
# layers of a convolution give the nodes of the highest level just the
# embeddings that the atoms have. What a molecule is, tell the counts: it is a
# multiset of trees.
batch = next(iter(SharedTreeLoader(shared, batch_size=2)))
print(batch)

# %%
# The picture shows the levels of the union, colored by the element, and above
# them which trees each molecule is made of, and how often:


def draw(batch, names):
    sizes, position, start = batch.num_sampled_nodes, {}, 0
    depth = len(sizes) - 1
    for level, size in zip(range(depth, -1, -1), sizes):
        for i in range(size):
            position[start + i] = ((i + 0.5) / size, level)
        start += size
    fig, ax = plt.subplots(figsize=(8, 4.5))
    edges, times = batch.edge_index.unique(dim=1, return_counts=True)
    for (child, parent), width in zip(edges.t().tolist(), times.tolist()):
        style = dict(arrowstyle='->', color='gray', shrinkB=9)
        style['linewidth'] = 2 * width - 1
        ax.annotate('', position[parent], position[child], arrowprops=style)
    for i, name in enumerate(names):
        top = ((i + 0.5) / len(names), depth + 1)
        ax.annotate(name, top, ha='center', va='bottom')
        for k in range(batch.root_ptr[i], batch.root_ptr[i + 1]):
            x, y = position[int(batch.root[k])]
            ax.plot([x, top[0]], [y, top[1]], ':', color='tab:blue')
            ax.annotate(
                f'{int(batch.root_count[k])}×',
                ((x + top[0]) / 2, (y + top[1]) / 2),
                ha='center',
                color='tab:blue',
            )
    for node, (x, y) in position.items():
        color = 'black' if batch.x[node, 0] == 1 else 'tab:red'
        ax.plot(x, y, 'o', markersize=14, color=color)
    ax.set_yticks(range(depth + 1), [f'depth {k}' for k in range(depth + 1)])
    ax.set_xticks([])
    ax.set_frame_on(False)
    ax.set_ylim(-0.4, depth + 1.4)
    ax.set_title('Black: carbon, red: oxygen. Thick: two equal children')


draw(batch, names)

# %%
# Both ends of butane and the first carbon of propanol are one tree already;
# with thousands of molecules, most trees are shared.
#
# Same loss, same gradients
# -------------------------
# The model is written as always, with two changes:
# :class:`~torch_geometric_ext.nn.RootAggregation` pools plain graphs and
# shared trees alike, and within :func:`~torch_geometric_ext.nn.shared_batch`,
# :class:`~torch_geometric_ext.nn.TreeBatchNorm` counts each tree as often as
# it occurs.
dataset = Solubility(tempfile.mkdtemp(), 'train')


class Net(torch.nn.Module):
    def __init__(self, num_layers=2):
        super().__init__()
        gnn = GIN(9, 64, num_layers, norm='batch_norm')
        self.gnn = TreeBatchNorm.convert(gnn)
        self.aggr = RootAggregation('mean')
        self.head = torch.nn.Linear(64, dataset.num_classes)

    def forward(self, batch):
        with shared_batch(batch):
            h = self.gnn(batch.x.to(self.head.weight), batch.edge_index)
        return self.head(self.aggr(h, batch))


model = Net().double()
shared = ShareComputationTrees(num_layers=2, edge_attr=False)(dataset)
print(shared.report())

# %%
# Is a model made of layers for which this is exact? If not, this tells which
# one is in the way, and what to do about it:
check_exact(model.gnn, shared)

# %%
# Here is one step on all 1,025 molecules, with plain graphs and with trees:
plain_batch = Batch.from_data_list(list(dataset))
tree_batch = next(iter(SharedTreeLoader(shared, batch_size=len(shared))))


def gradients(model, batch):
    model.zero_grad()
    loss = F.cross_entropy(model(batch), batch.y)
    loss.backward()
    return loss, torch.cat([p.grad.view(-1) for p in model.parameters()])


loss, grad = gradients(model, plain_batch)
tree_loss, tree_grad = gradients(model, tree_batch)
print(f'nodes: {plain_batch.num_nodes:,} and {tree_batch.num_nodes:,}')
print(f'loss:  {loss:.12f} and {tree_loss:.12f}')
print(f'largest difference of gradients: {(grad - tree_grad).abs().max():.1e}')

# %%
# Layer by layer
# --------------
# By default, every layer updates the trees of all levels, although layer
# :math:`l` is only needed for those of depth :math:`l`.
# :class:`~torch_geometric_ext.nn.LevelwiseConv` wraps the convolutions of a
# model so that each computes its own level:
levelwise = copy.deepcopy(model)
LevelwiseConv.convert(levelwise.gnn)
_, levelwise_grad = gradients(levelwise, tree_batch)
print(f'largest difference: {(grad - levelwise_grad).abs().max():.1e}')


def seconds(model, batch, num_steps=10):
    gradients(model, batch)
    start = time.perf_counter()
    for _ in range(num_steps):
        gradients(model, batch)
    return (time.perf_counter() - start) / num_steps


base = seconds(model, plain_batch)
for name, net in [('shared', model), ('shared, level-wise', levelwise)]:
    print(f'{name}: {base / seconds(net, tree_batch):.1f} times faster')

# %%
# How much is shared depends on the data, on the number of layers, and on the
# size of mini-batches: more graphs share more.
depths, sizes = [1, 2, 3, 4], [32, 128, 512, len(dataset)]
ratios = []
for num_layers in depths:
    transform = ShareComputationTrees(num_layers, edge_attr=False)
    trees = transform(dataset)
    ratios.append([])
    for size in sizes:
        loader = SharedTreeLoader(trees, size, shuffle=True, drop_last=True)
        parts = [(b.root_count.sum(), b.num_nodes) for b in loader]
        plain, own = torch.tensor(parts).sum(dim=0)
        ratios[-1].append(float(plain * num_layers / own))

plt.figure()
for size, ratio in zip(sizes, zip(*ratios)):
    plt.plot(depths, ratio, 'o-', label=f'{size} molecules')
plt.axhline(1, color='gray', linewidth=1)
plt.xticks(depths)
plt.yscale('log')
plt.xlabel('layers')
plt.ylabel('embeddings for each distinct tree')
plt.legend()
plt.show()

# %%
# These molecules are small and diverse, and each atom has nine features: a
# hard case. On NCI1 with two layers, there are 56 embeddings for each distinct
# tree, and a step on the full data set takes a fiftieth of the time
# (:doc:`../benchmarks`). Ask
# :class:`~torch_geometric_ext.transforms.ShareComputationTrees` for a
# :meth:`~torch_geometric_ext.data.SharedTrees.report` first: where sharing
# does not pay, it says so.
#
# What is not exact
# -----------------
# :func:`~torch_geometric_ext.nn.check_exact` refuses what follows.
#
# * *Dropout* draws once for each distinct tree instead of once for each node.
#   It is still dropout, with more correlated masks: pass ``dropout=True`` if
#   that is what you want.
# * *GCN* normalizes by the degree of the neighbor, which a leaf of a tree does
#   not show. ``ShareComputationTrees(..., gcn_norm=True)`` keeps these
#   degrees and hands :class:`~torch_geometric.nn.conv.GCNConv` its weights.
#   Others with that normalization hidden inside (SGC, ClusterGCN, GCN2), and
#   convolutions over several hops (TAG, Cheb, APPNP), are not supported.
# * *Self-loops* are children like any other. Convolutions that replace them by
#   their own, such as :class:`~torch_geometric.nn.conv.GATConv`, need
#   ``self_loops='remove'`` if there are any in the data.
# * *Norms, attention and virtual nodes that mix the nodes of a graph* (graph
#   norm, pair norm, GPS) see each tree once, which is something else.
# * *LSTM aggregation* depends on the order of neighbors.
