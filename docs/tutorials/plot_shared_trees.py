r"""
Train on every distinct computation tree once
=============================================

The embedding of a node after :math:`L` layers of message passing depends on
its *computation tree*: the nodes and edges within :math:`L` hops. Nodes with
equal trees get equal embeddings. In real data most trees repeat, within a
graph and across graphs: a carbon between two carbons of a ring looks the same
everywhere. A plain mini-batch computes the same embedding again and again.

This tutorial finds the distinct trees of a data set and trains a GIN on every
tree once. The loss and all gradients are those of plain training, and an epoch
takes fewer multiply-adds.
"""

# %%
# Trees of two molecules
# ----------------------
# Propanol, C-C-C-O, and butane, C-C-C-C, with the element as the feature of
# each heavy atom:
import tempfile
import textwrap
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GIN

from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import (
    RootAggregation,
    TreeBatchNorm,
    check_exact,
    shared_batch,
)
from torch_geometric_ext.transforms import ShareComputationTrees
from torch_geometric_ext.utils import count_macs

chain = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
carbon, oxygen = [1.0, 0.0], [0.0, 1.0]
x = torch.tensor([carbon, carbon, carbon, oxygen])
propanol = Data(x=x, edge_index=chain)
butane = Data(x=x[[0, 0, 0, 0]], edge_index=chain)
names = ['propanol', 'butane']
# sphinx_gallery_start_ignore
warnings.simplefilter('ignore', UserWarning)  # Small examples share little.
# sphinx_gallery_end_ignore

shared = ShareComputationTrees(num_layers=2)(4 * [propanol, butane])
print(shared.report())

# %%
# The 32 atoms of these eight molecules have only five distinct trees of depth
# 2. A mini-batch holds one node for each distinct tree of each level, and
# edges from children to parents. It is an ordinary graph: :obj:`L` layers of a
# convolution give the nodes of the highest level the embeddings of the atoms.
# A molecule is a multiset of trees: each graph counts its trees.
batch = next(iter(SharedTreeLoader(shared, batch_size=2)))
print(batch)

# %%
# The picture shows the levels of the union, colored by the element, and above
# them which trees each molecule is made of, and how often. The downloadable
# script contains :obj:`draw`:


# sphinx_gallery_start_ignore
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


# sphinx_gallery_end_ignore
draw(batch, names)

# %%
# Both ends of butane and the first carbon of propanol share a tree. With
# thousands of molecules, most trees are shared.
#
# Same loss, same gradients
# -------------------------
# The model needs two changes.
# :class:`~torch_geometric_ext.nn.RootAggregation` pools plain graphs and
# shared trees alike. Within :func:`~torch_geometric_ext.nn.shared_batch`,
# layer :math:`l` updates the trees of depth :math:`l` only, and
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
# :func:`~torch_geometric_ext.nn.check_exact` raises an error if a layer is
# not exact, with the reason and the remedy. It also runs the model on a few
# random graphs and on their trees, and compares outputs and gradients:
check_exact(model.gnn, shared)

# %%
# Compare one step on all 1,025 molecules, with plain graphs and with trees:
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
# Split a data set first, then share: ``ShareComputationTrees(...)(dataset)``,
# or ``shared[:890]`` for a part of it. Test on plain graphs with the same
# model.
#
# Level by level
# --------------
# The highest level comes first in the output, so that :obj:`h` has fewer rows
# than the mini-batch. Residual connections and jumping knowledge are exact,
# too. A convolution that does not pass an equivalence check (one that reads
# two hops, for example) runs on the trees of all levels, and the block returns
# a list with the reason:
with shared_batch(tree_batch) as fallbacks:
    h = model.gnn(tree_batch.x.double(), tree_batch.edge_index)
print(f'rows: {h.size(0):,} of {tree_batch.num_nodes:,}')
print(f'on all levels: {fallbacks}')

# %%
# Set :obj:`levelwise=False` to update the trees of all levels in each layer:


class AllLevels(Net):
    def forward(self, batch):
        with shared_batch(batch, levelwise=False):
            h = self.gnn(batch.x.to(self.head.weight), batch.edge_index)
        return self.head(self.aggr(h, batch))


# %%
# :func:`~torch_geometric_ext.utils.count_macs` counts the multiply-adds of a
# training step:
plain = count_macs(model, plain_batch).training
for name, net in [('level by level', model), ('all levels', AllLevels())]:
    macs = count_macs(net.double(), tree_batch).training
    print(f'{name}: 1/{plain / macs:.1f} of the MACs of plain graphs')

# %%
# Where sharing hardly pays
# -------------------------
# The gain depends on the data, on the number of layers, and on the size of
# mini-batches: more graphs share more. The report of a loader compares the
# work of layers at its batch size:
trees = ShareComputationTrees(num_layers=2, edge_attr=False)(dataset)
print(SharedTreeLoader(trees, 128, shuffle=True).report())

# %%
# Mini-batches of 32 molecules share so little that it hardly pays. The loader
# warns:
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    SharedTreeLoader(trees, 32, shuffle=True)
print(textwrap.fill(str(caught[0].message)))

# %%
# The plot compares numbers of layers. Below the gray line, plain graphs are
# better:
depths, sizes = [1, 2, 3, 4], [32, 128, 512, len(dataset)]
ratios = []
for num_layers in depths:
    transform = ShareComputationTrees(num_layers, edge_attr=False)
    trees = transform(dataset)
    ratios.append([])
    for size in sizes:
        loader = SharedTreeLoader(trees, size, shuffle=True)
        ratios[-1].append(loader.report().node_ratio)

plt.figure()
for size, ratio in zip(sizes, zip(*ratios)):
    plt.plot(depths, ratio, 'o-', label=f'{size} molecules')
plt.axhline(1, color='gray', linewidth=1)
plt.xticks(depths)
plt.yscale('log')
plt.xlabel('layers')
plt.ylabel('rows of all layers, plain to shared')
plt.legend()
plt.show()

# %%
# Keep your batch size if you can, and compare at that size: equal gradients
# hold for equal mini-batches, and a larger one makes fewer steps.
#
# These molecules are small and diverse, and each atom has nine features: a
# hard case. NCI1 shares :doc:`far more </benchmarks/shared_trees>`. Set
# :obj:`cached=True` to extract mini-batches only once; then, each epoch loads
# the same mini-batches in a new order.
#
# Layers that are not exact
# -------------------------
# :func:`~torch_geometric_ext.nn.check_exact` refuses these layers:
#
# * *Dropout* draws once for each distinct tree instead of once for each node.
#   Masks of equal trees are then equal: pass ``dropout=True`` to accept that.
# * *GCN* normalizes by the degree of the neighbor, which a leaf of a tree does
#   not show. ``ShareComputationTrees(..., gcn_norm=True)`` keeps these
#   degrees and gives :class:`~torch_geometric.nn.conv.GCNConv` its weights.
#   Convolutions with that normalization inside (SGC, GCN2) and convolutions
#   over several hops (TAG, Cheb, APPNP) are not supported.
# * *Self-loops* are children like any other. Convolutions that replace them,
#   such as :class:`~torch_geometric.nn.conv.GATConv`, need
#   ``self_loops='remove'`` if the data has some.
# * *Norms, attention and virtual nodes that mix the nodes of a graph* (graph
#   norm, pair norm, GPS) weigh each tree once.
# * *LSTM aggregation* depends on the order of neighbors.
