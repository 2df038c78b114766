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
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.nn import GAT, GCN

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
# The receptive field of the training nodes is a part of the graph:
print(f'{fast.select(data.train_mask).data.num_nodes} of {data.num_nodes}')

# %%
# What is not exact is not used
# -----------------------------
# A small random graph shows which part of the graph a model needs: outputs and
# gradients have to be equal, in double precision. Batch normalization needs
# all nodes in training, but not in evaluation:
norm = GCN(64, 256, num_layers=2, out_channels=10, norm='BatchNorm')
print(accelerate(norm, graph).report())

# %%
# What it saves
# -------------
# Seconds of a training step, plain and accelerated. The gain grows with the
# size of the graph and with the number of its features; :doc:`/benchmarks`
# has larger graphs:


def seconds(run, model):
    times = []
    for _ in range(10):
        start = time.perf_counter()
        model.zero_grad()
        F.cross_entropy(run(), data.y[data.train_mask]).backward()
        times.append(time.perf_counter() - start)
    return sorted(times)[5]


models = {
    'GCN': GCN(64, 256, 2, 10),
    'GAT': GAT(64, 256, 2, 10, heads=8),
}
mask, bars = data.train_mask, []
for net in models.values():
    quick = accelerate(net, graph)
    plain = seconds(lambda m=net: m(data.x, data.edge_index)[mask], net)
    bars.append([1e3 * plain, 1e3 * seconds(lambda m=quick: m(mask), net)])
for i, label in enumerate(['plain', 'accelerated']):
    plt.bar([i, 3 + i], [bar[i] for bar in bars], label=label)
plt.xticks([0.5, 3.5], list(models))
plt.ylabel('Milliseconds of a training step')
plt.legend()
plt.show()

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
print(float((fast(torch.tensor([0])) - other(torch.tensor([0]))).abs().max()))
