r"""
Train a model whose weights are sparse from the first step
==========================================================

A wide network learns well, and most of its weights are not needed in the end.
Pruning finds out which, but only after all of them were paid for. *Sparse
training* starts with a tenth of the weights, or a fiftieth, and moves them
while it trains: the missing weights never exist, neither in memory nor in
the products, nor in the state of the optimizer.

Most implementations multiply a dense weight by a mask, which saves nothing.
:class:`~torch_geometric_ext.nn.SparseLinear` computes with the weights that
exist, by kernels of its own.
"""

# %%
# A sparse layer
# --------------
# It has the interface of a linear layer. Its parameter :obj:`values` holds the
# weights that exist, row by row:
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import SparseLinear, densify, sparsify
from torch_geometric_ext.sparsity import SET, RigL
from torch_geometric_ext.utils import count_macs

torch.manual_seed(0)
lin = SparseLinear(512, 512, sparsity=0.9)
print(lin)
print(lin.values.shape)

# %%
# When printed, the layer tells above which density it would rather compute a
# dense product. Is it faster? A training step on 4,096 rows, against a dense
# layer:


def milliseconds(layer: torch.nn.Module, num_steps: int = 15) -> float:
    optimizer = torch.optim.Adam(layer.parameters())
    x = torch.randn(4096, 512, requires_grad=True)
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[num_steps // 2]


dense = milliseconds(torch.nn.Linear(512, 512))
print(f'dense: {dense:.1f} ms')
for sparsity in [0.5, 0.8, 0.9, 0.95, 0.98]:
    own = milliseconds(SparseLinear(512, 512, sparsity=sparsity))
    print(f'{sparsity:.0%} sparse: {own:.1f} ms ({dense / own:.1f}x)')

# %%
# A sparse model
# --------------
# :func:`~torch_geometric_ext.nn.sparsify` swaps the linear layers of any
# model. Weights are spread over layers such that each neuron has about as many
# connections (``distribution='erk'``), and small layers keep enough to live
# on:
model = GraphSAGE(64, 256, num_layers=3, out_channels=10)
print(sparsify(model, sparsity=0.95).convs)

# %%
# What does a step cost? :func:`~torch_geometric_ext.utils.count_macs` counts
# the multiply-adds that are really computed, those of aggregations included:
data = DigitsKNN('.data/DigitsKNN')[0]
print(count_macs(model, data.x, data.edge_index))

# %%
# Moving weights
# --------------
# A random pattern that stays as it is wastes weights. A scheduler moves a
# share of them every few steps: the smallest ones are dropped, and as many
# grow, at random (:class:`~torch_geometric_ext.sparsity.SET`) or where the
# dense gradient is largest (:class:`~torch_geometric_ext.sparsity.RigL`, which
# computes it at these steps only, block by block). It is called after the
# optimizer, whose state it lets follow the weights:


def train(model: torch.nn.Module, scheduler: type | None = None) -> list:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    mover = None
    if scheduler is not None:
        mover = scheduler(model, optimizer, num_steps=100, update_every=5)
    accuracy = []
    for _ in range(100):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
        if mover is not None:
            mover.step()
        model.eval()
        with torch.no_grad():
            pred = model(data.x, data.edge_index).argmax(dim=-1)
        correct = (pred == data.y)[data.test_mask]
        accuracy.append(100 * correct.float().mean().item())
    return accuracy


def graph_sage(hidden_channels: int = 256) -> torch.nn.Module:
    torch.manual_seed(0)
    size = dict(num_layers=3, out_channels=10, dropout=0.5)
    return GraphSAGE(64, hidden_channels, **size)


model = graph_sage()
num_weights = sum(x.numel() for x in model.parameters())
curves = {f'dense, {num_weights:,} weights': train(model)}

# %%
# The rival to beat is not the dense model: it is a *narrow* dense one with as
# many weights, which any library trains. Below, all others have one twentieth
# of the weights:
curves['narrow dense'] = train(graph_sage(hidden_channels=38))
curves['static'] = train(sparsify(graph_sage(), sparsity=0.95))
curves['SET'] = train(sparsify(graph_sage(), sparsity=0.95), SET)
sparse = sparsify(graph_sage(), sparsity=0.95)
curves['RigL'] = train(sparse, RigL)

for label, accuracy in curves.items():
    plt.plot(accuracy, label=f'{label}: {accuracy[-1]:.1f} %')
plt.xlabel('step')
plt.ylabel('test accuracy [%]')
plt.ylim(60, 100)
plt.legend()
plt.show()

# %%
# These digits are easy, and all of them come close to each other: here, a
# narrow model would do. With thousands of sparse input features, as in bags of
# words, it would not: there, a narrow model has only a few weights for each
# word, while a sparse one picks the words that matter
# (:doc:`measured on three citation graphs </benchmarks>`).
#
# Back to an ordinary model
# -------------------------
# :func:`~torch_geometric_ext.nn.densify` gives back the PyG model, with zeros
# for the weights that do not exist, to be saved or served as any other:
with torch.no_grad():
    before = sparse.eval()(data.x, data.edge_index)
    after = densify(sparse)(data.x, data.edge_index)
print(float((before - after).abs().max()))
print(any(isinstance(m, SparseLinear) for m in sparse.modules()))

# %%
# When does it pay?
# -----------------
# * From a sparsity of about 50 % on, on batches of a hundred rows or more;
#   :doc:`the measurements </benchmarks>` tell for which sizes.
# * The aggregation of messages is not made cheaper: where it dominates, as
#   with wide features on many edges, hand PyG a matrix in CSR format
#   (:class:`~torch_geometric.transforms.ToSparseTensor`), or drop messages by
#   the :obj:`edge_mask` of :class:`~torch_geometric_ext.nn.MaskedGCNConv`.
# * Hold it against a narrow dense model on your data.
