r"""
Train node classifiers faster
=============================

Full-batch training computes the outputs of all nodes in each epoch, but the
loss reads the outputs of labeled nodes only. On a citation graph, that is one
node in a hundred. The features and the edges stay the same, and yet each epoch
normalizes the edges and aggregates the features anew.

:func:`~torch_geometric_ext.full_batch.accelerate` removes this work from any
model. Outputs and gradients stay equal.
"""

# %%
# Two lines
# ---------
# 1,797 handwritten digits are nodes, each linked to its nearest neighbors. Ten
# classes have 20 labels each:
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.nn import GCN

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.full_batch import StaticGraph, accelerate

data = DigitsKNN(tempfile.mkdtemp())[0]
seed_everything(0)
model = GCN(64, 256, num_layers=2, out_channels=10, dropout=0.5)

graph = StaticGraph(data)
fast = accelerate(model, graph)

# %%
# :obj:`fast` shares the parameters of :obj:`model`. Call it with a mask or
# with indices of the nodes whose outputs are needed:
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(30):
    fast.train()
    optimizer.zero_grad()
    out = fast(data.train_mask)
    F.cross_entropy(out, data.y[data.train_mask]).backward()
    optimizer.step()

fast.eval()
pred = fast(data.test_mask).argmax(dim=-1)
print(f'{100 * float((pred == data.y[data.test_mask]).float().mean()):.1f} %')

# %%
# The model itself is trained, and gives the same outputs on the whole graph:
model.eval()
with torch.no_grad():
    expected = model(data.x, data.edge_index)[data.test_mask]
    print(float((fast(data.test_mask) - expected).abs().max()))

# %%
# What is computed
# ----------------
# The report lists what is used. Each hop that is cached or out of reach is
# computed in no epoch:
print(fast.report())

# %%
# What it saves
# -------------
# The first convolution reads a cached aggregation. The second one needs the
# neighbors of the requested nodes only. This gains much where few nodes have
# labels, and little where most nodes have. The plot shows for how many nodes
# hidden features are computed. Plain training computes them for all nodes:
order = torch.randperm(data.num_nodes)
counts = {}
for percent in [1, 2, 5, 10, 20, 50, 100]:
    labeled = order[: percent * data.num_nodes // 100]
    counts[percent] = fast.select(labeled, training=True).data.num_nodes
plt.plot(counts.keys(), counts.values(), 'o-', label='accelerated')
plt.axhline(data.num_nodes, color='gray', label='plain')
plt.xscale('log')
plt.xlabel('labeled nodes [%]')
plt.ylabel('computed nodes')
plt.legend()
plt.show()

# %%
# The cached aggregation and sparse products save time at any number of labels.
# :doc:`Benchmarks </benchmarks/full_batch>` list times on larger graphs.
#
# What is not exact is not used
# -----------------------------
# A small random graph shows which part of the graph a model needs: outputs and
# gradients have to be equal, in double precision. Batch normalization needs
# all nodes in training, but not in evaluation. Such a model gains less:
norm = GCN(64, 256, num_layers=2, out_channels=10, norm='BatchNorm')
print(accelerate(norm, graph).report())

# %%
# Several graphs and changing features
# ------------------------------------
# Caches belong to the graph. Use a new :class:`StaticGraph` for another graph,
# with the same model:
other = accelerate(model, StaticGraph(data.clone()))
print(other(torch.tensor([0, 5])).shape)

# %%
# If features change, tell the graph:
graph.update(data.x + 1)
node = torch.tensor([0])
print(float((fast(node) - other(node)).detach().abs().max()))
