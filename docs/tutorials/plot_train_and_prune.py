r"""
Prune after training, or train sparse?
======================================

There are two ways to a sparse model. *Train-and-prune* trains all weights,
prunes most of them, and fine-tunes the others.
:class:`~torch_geometric_ext.sparsity.ADMM` and
:class:`~torch_geometric_ext.sparsity.SLR` also *reweight* the model before
they prune it: training with a penalty moves it towards sparse weights.
*Sparse training*, as with :class:`~torch_geometric_ext.sparsity.RigL`, starts
with few weights and moves them during training.

This tutorial takes both ways for one GraphSAGE, and then shows a larger study.
"""

# %%
# The data are 1,797 images of handwritten digits, each connected to its
# nearest neighbors:
import copy
import tempfile

import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import sparsify
from torch_geometric_ext.sparsity import SLR, MagnitudePruner, RigL
from torch_geometric_ext.utils import count_macs

data = DigitsKNN(tempfile.mkdtemp())[0]
torch.manual_seed(0)
initial = GraphSAGE(data.num_features, 256, 3, 10, dropout=0.5)


def step(model, optimizer, pruner=None):
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)[data.train_mask]
    loss = F.cross_entropy(out, data.y[data.train_mask])
    if pruner is not None:
        loss = pruner.regularize(loss)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def test(model):
    model.eval()
    pred = model(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((pred == data.y)[data.test_mask].float().mean())


def macs(model):
    return count_macs(model, data.x, data.edge_index).training / 1e9


# %%
# Train and prune
# ---------------
# The first phase is dense training:
model = copy.deepcopy(initial)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
for _ in range(60):
    step(model, optimizer)
total = 60 * macs(model)
trained = copy.deepcopy(model)
print(f'dense: {test(model):.1f} %, {total:.1f} GMACs')

# %%
# The second phase reweights the model. Two lines are new: ``regularize`` adds
# a penalty to the loss, and ``step`` updates its multipliers. A quarter of the
# learning rate suffices:
optimizer = torch.optim.Adam(model.parameters(), lr=0.005 / 4)
pruner = SLR(model, optimizer, sparsity=0.98)
for _ in range(60):
    step(model, optimizer, pruner)
    pruner.step()
total += 60 * macs(model)
figure = pruner.plot()

# %%
# The plots show the loss, the distance of the weights to sparse weights, and
# the multipliers and their step size. ``finalize`` prunes the model. Its
# layers become sparse, and fine-tuning costs less:
model = pruner.finalize()
print(f'pruned: {test(model):.1f} %')

optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
for _ in range(60):
    step(model, optimizer)
total += 60 * macs(model)
print(f'fine-tuned: {test(model):.1f} %, {total:.1f} GMACs')

# %%
# Train sparse
# ------------
# Sparse training has one phase. It takes as many epochs as the three phases
# above, each at a fraction of the cost:
model = sparsify(copy.deepcopy(initial), sparsity=0.98)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
scheduler = RigL(model, optimizer, num_steps=180, update_every=5)
for _ in range(180):
    step(model, optimizer)
    scheduler.step()
print(f'RigL: {test(model):.1f} %, {180 * macs(model):.1f} GMACs')

# %%
# If the model is trained already
# -------------------------------
# The dense phases take most of the multiply-adds above. If a dense model
# exists, pruning it costs less than sparse training from scratch.
# :class:`~torch_geometric_ext.sparsity.MagnitudePruner` prunes it at once, and
# only the fine-tuning remains. The result is less accurate here:
model = MagnitudePruner(trained, sparsity=0.98).finalize()
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
for _ in range(60):
    step(model, optimizer)
print(f'fine-tuned: {test(model):.1f} %, {60 * macs(model):.1f} GMACs')

# %%
# A larger study
# --------------
# ``benchmark/sparsity/train_and_prune.py`` trains GCNs of 512 hidden channels
# on four data sets. ``RigL 3x`` trains for as many epochs as all phases of
# ``SLR``, and ``narrow`` is a dense model with fewer channels:
#
# .. image:: ../figures/train_and_prune_sparsity.svg
#
# Over the MACs of the whole training, including the dense phase:
#
# .. image:: ../figures/train_and_prune_macs.svg
#
# Which one?
# ----------
# .. list-table::
#    :header-rows: 1
#
#    * - Your case
#      - Use
#    * - The model is trained already.
#      - :class:`~torch_geometric_ext.sparsity.MagnitudePruner`. Try
#        :class:`~torch_geometric_ext.sparsity.ADMM` at 99 % and above.
#    * - You train from scratch, with thousands of input features.
#      - :class:`~torch_geometric_ext.sparsity.RigL`, for 1/12 of the
#        multiply-adds of SLR and 1/6 of those of magnitude pruning, or less.
#    * - You train from scratch, with hundreds of input features.
#      - :class:`~torch_geometric_ext.sparsity.RigL` for three times the
#        epochs, for 1/4 of the multiply-adds of SLR and 1/2 of those of
#        magnitude pruning, or less.
#    * - Memory is short.
#      - :class:`~torch_geometric_ext.sparsity.RigL`: no dense weight, gradient
#        or optimizer state exists.
#    * - A twentieth of the weights or more is enough.
#      - A narrow dense model is as accurate, and faster.
