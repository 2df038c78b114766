r"""
Train a model with sparse weights from the first step
=====================================================

A wide network learns well, but needs few of its weights after training.
Pruning removes the others after they have been trained. *Sparse training*
starts with a fraction of the weights, and drops and grows weights during
training. Memory, matrix products and the state of the optimizer never include
the inactive weights.

Many implementations multiply a dense weight by a mask, which saves nothing.
:class:`~torch_geometric_ext.nn.SparseLinear` stores and multiplies the active
weights only, with its own kernels.
"""

# %%
# A sparse layer
# --------------
# The layer has the interface of a linear layer. Its parameter :obj:`values`
# holds the active weights, row by row:
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import (
    SparseLinear,
    densify,
    sparsify,
    sparsity_summary,
)
from torch_geometric_ext.sparsity import SET, RigL
from torch_geometric_ext.utils import count_macs

torch.manual_seed(0)
lin = SparseLinear(512, 512, sparsity=0.9)
print(lin)
print(lin.values.shape)

# %%
# ``dense_above`` is the density above which the layer computes a dense product
# instead. The first product measures it on this machine.
# :func:`~torch_geometric_ext.utils.count_macs` counts the multiply-adds of a
# training step on 4,096 rows. The :doc:`benchmarks
# </benchmarks/sparse_layers>` list times:
x = torch.randn(4096, 512)
dense = count_macs(torch.nn.Linear(512, 512), x)
print(f'dense: {dense.training:,} MACs')
for sparsity in [0.8, 0.9, 0.95, 0.98]:
    macs = count_macs(SparseLinear(512, 512, sparsity=sparsity), x)
    print(f'{sparsity:.0%} sparse: {macs.training:,} MACs')

# %%
# A sparse model
# --------------
# :func:`~torch_geometric_ext.nn.sparsify` replaces the linear layers of any
# model. By default (``distribution='erk'``), small layers are denser than
# large ones:
model = GraphSAGE(64, 256, num_layers=3, out_channels=10)
sparsify(model, sparsity=0.95)
print(sparsity_summary(model))

# %%
# The multiply-adds of a model include aggregations, which remain dense:
data = DigitsKNN(tempfile.mkdtemp())[0]
print(count_macs(model, data.x, data.edge_index))

# %%
# Drop and grow weights
# ---------------------
# A fixed random pattern wastes weights. Every few steps, a scheduler drops the
# weights of smallest magnitude and grows as many weights elsewhere.
# :class:`~torch_geometric_ext.sparsity.SET` grows weights at random positions,
# :class:`~torch_geometric_ext.sparsity.RigL` where the dense gradient is
# largest. Call the scheduler after the optimizer. It also updates the state of
# the optimizer:


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


def graph_sage(hidden_channels: int = 256, dropout: float = 0.5):
    torch.manual_seed(0)
    size = dict(num_layers=3, out_channels=10, dropout=dropout)
    return GraphSAGE(64, hidden_channels, **size)


model = graph_sage()
num_weights = sum(x.numel() for x in model.parameters())
curves = {f'dense, {num_weights:,} weights': train(model)}

# %%
# The strongest baseline is a *narrow* dense model with as many weights as the
# sparse models, here a twentieth of the dense model:
curves['narrow dense'] = train(graph_sage(hidden_channels=37))
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
# Where a narrow model is enough, and where it is not
# ---------------------------------------------------
# At a twentieth of the weights, the narrow model is about as accurate as the
# sparse ones, and simpler. At 1/200 of the weights, five channels remain. They
# train without dropout, which harms few channels. A sparse model spreads its
# weights over all 256 channels:
narrow = train(graph_sage(hidden_channels=5, dropout=0.0))
tiny = train(sparsify(graph_sage(), sparsity=0.995), RigL)
print(f'narrow dense: {narrow[-1]:.1f} %, RigL: {tiny[-1]:.1f} %')

# %%
# Thousands of sparse input features, such as bags of words, widen the gap
# (:doc:`measured on three citation graphs </benchmarks/sparse_training>`): a
# narrow model has few weights per word, while a sparse model selects the
# relevant words.
#
# Convert to a dense model
# ------------------------
# :func:`~torch_geometric_ext.nn.densify` returns a plain PyG model with zeros
# for the inactive weights, to save and to deploy:
with torch.no_grad():
    before = sparse.eval()(data.x, data.edge_index)
    after = densify(sparse)(data.x, data.edge_index)
print(float((before - after).abs().max()))
print(any(isinstance(m, SparseLinear) for m in sparse.modules()))

# %%
# When to use sparse training
# ---------------------------
# * Sparse layers are faster than dense ones from a sparsity of about 50 % on,
#   for batches of a hundred rows or more.
# * Pass sparse features, such as bags of words, as :obj:`x.to_sparse_csr()`.
#   The layer then skips the zeros of features and of weights.
# * Sparse weights do not speed up aggregation. If aggregation dominates, as
#   for wide features on many edges, convert edges to CSR format
#   (:class:`~torch_geometric.transforms.ToSparseTensor`), or prune edges with
#   the :obj:`edge_mask` of :class:`~torch_geometric_ext.nn.MaskedGCNConv`.
# * Compare with a narrow dense model on your data.
