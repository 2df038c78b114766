r"""
Find a winning ticket
=====================

A trained network holds more weights than it needs, and its graph more edges.
Which of them could go? To prune after training is easy for weights: nothing in
PyG does it, but a few lines would. Edges are harder. A factor of zero for a
message is not the same as no message: a mean still divides by the number of
neighbors, attention is still shared with a neighbor that is gone, and a GCN
still normalizes by degrees that are no longer there. And a mask saves no time.

A *winning ticket* is a part of the weights and a part of the edges that are
together as good as all of them.
:class:`~torch_geometric_ext.lottery.GraphLotteryPruner` looks for it, and
gives back an ordinary model and a smaller graph.
"""

# %%
# The model and the graph
# -----------------------
# 1,797 handwritten digits, each linked to those it is most similar to, and a
# GCN of two layers. Of each digit, 20 images have a label:
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.nn import GCN
from torch_geometric.transforms import RandomLinkSplit

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.utils import GraphLotteryPruner, Ticket, count_macs

root = Path(tempfile.mkdtemp())
data = DigitsKNN(str(root))[0]
seed_everything(0)
model = GCN(64, 256, num_layers=2, out_channels=10, dropout=0.5)

# %%
# The ticket
# ----------
# Two shares tell what is to go. The rest is one call, which trains by
# :obj:`train_mask` and chooses by :obj:`val_mask`. Test nodes are not looked
# at:
shares = dict(weight_sparsity=0.95, edge_sparsity=0.35)
epochs = dict(pretrain_epochs=60, search_epochs=80, retrain_epochs=80)
pruner = GraphLotteryPruner(model, **shares, **epochs)
ticket = pruner.fit(data)
print(ticket)

# %%
# The accuracies are those on validation nodes: of the dense model, of the
# search, in which weights move, and of the ticket, trained from the initial
# weights on. What is applied is the better of the last two. The model that was
# searched is unchanged, and so is the graph:
small_model, small_data = ticket.apply(model, data)
print(small_data)


@torch.no_grad()
def test(model, data, mask='test_mask'):
    pred = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((pred == data.y)[data[mask]].float().mean())


print(f'test accuracy: {test(small_model, small_data):.1f} %')

# %%
# It is an ordinary :class:`~torch_geometric.nn.models.GCN`, with zeros. With
# ``sparse=True``, the zeros do not exist
# (:class:`~torch_geometric_ext.nn.SparseLinear`), and are not multiplied. The
# weights that are left belong to a few of the 256 hidden channels. With
# ``narrow=True``, the other ones do not exist, either, so that messages are
# short:
sparse_model, _ = ticket.apply(model, sparse=True, narrow=True)
print(sparse_model.convs)
for part, graph in [(model, data), (sparse_model, small_data)]:
    macs = count_macs(part, graph.x, graph.edge_index)
    print(f'{macs.num_parameters:,} parameters, {macs.forward:,} MACs')

# %%
# What happened to the graph?
# ---------------------------
# On the left, how each stage learned. On the right, how many neighbors nodes
# have. Edges between nodes of many neighbors left, those of nodes with few are
# still there:
ticket.plot(data)
plt.show()

# %%
# The rivals
# ----------
# A ticket is worth something only if it beats what is simpler. First, the
# dense model and a *narrow* dense one of as many weights, trained by hand for
# as many epochs as the search took in all (and without dropout, which would
# harm so few channels):


def train(model, num_epochs=220):
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.01, weight_decay=5e-4
    )
    results = []
    for _ in range(num_epochs // 2):
        for _ in range(2):
            model.train()
            optimizer.zero_grad()
            out = model(data.x, data.edge_index)[data.train_mask]
            F.cross_entropy(out, data.y[data.train_mask]).backward()
            optimizer.step()
        results.append((test(model, data, 'val_mask'), test(model, data)))
    return max(results, key=lambda accuracy: accuracy[0])[1]


results = {'ticket': test(small_model, small_data)}
results['dense'] = train(model, 60)
seed_everything(0)
results['narrow dense'] = train(GCN(64, 13, num_layers=2, out_channels=10))

# %%
# Second, as many edges at random, which is one of the methods, with all
# weights:
random = GraphLotteryPruner(
    model, method='random', edge_sparsity=0.35, retrain_epochs=60
)
results['random edges'] = test(*random.fit(data).apply(model, data))
for name, accuracy in results.items():
    print(f'{name:15}{accuracy:6.1f} %')

# %%
# One seed is an anecdote, and these digits are easy: neighbors are nearly
# always of the same class, so that it hardly matters which edges are kept, and
# with 64 features, a narrow model has enough weights for each of them. With
# thousands of features, as in bags of words, it has not
# (:doc:`measured on three citation graphs </benchmarks>`). Hold both rivals
# against the ticket on your own graph.
#
# Keep it
# -------
# A file holds masks, weights and metrics, but no code. It is checked against
# the model when it is read:
ticket.save(root / 'ticket.pt')
ticket = Ticket.load(root / 'ticket.pt', model)
try:
    Ticket.load(root / 'ticket.pt', GCN(64, 64, 2, 10))
except ValueError as error:
    print(error)

# %%
# To train it with a loop of your own, start from the initial weights:
start, _ = ticket.apply(model, data, weights='initial', sparse=True)
print(start.convs[0].lin)

# %%
# Other tasks
# -----------
# Whatever has a loss and a metric can be searched: ``loss_fn(model, data)`` is
# minimized, and ``evaluate(model, data)`` tells how good it is, the higher the
# better. Both get to see the pruned graph. Here, links are predicted:
split = RandomLinkSplit(num_test=0.0, is_undirected=True)
train_data, val_data, _ = split(data)


def scores(model, data, label_index):
    h = model(data.x, data.edge_index)
    return (h[label_index[0]] * h[label_index[1]]).sum(dim=-1)


def loss_fn(model, data):
    out = scores(model, data, train_data.edge_label_index)
    label = train_data.edge_label
    return F.binary_cross_entropy_with_logits(out, label)


def evaluate(model, data):
    out = scores(model, data, val_data.edge_label_index)
    return float(((out > 0) == val_data.edge_label.bool()).float().mean())


few = dict(pretrain_epochs=10, search_epochs=10, retrain_epochs=10)
encoder = GCN(64, 64, num_layers=2)
pruner = GraphLotteryPruner(encoder, **shares, **few)
print(pruner.fit(train_data, loss_fn, evaluate))

# %%
# Mini-batches need to tell which edges of the graph they hold, by
# :obj:`e_id`. Those of a :class:`~torch_geometric.loader.NeighborLoader` do.
# Here, its seeds are all nodes with a label to train or to validate on:
#
# .. code-block:: python
#
#     def seeds(model, batch, mask):
#         out = model(batch.x, batch.edge_index)[:batch.batch_size]
#         mask = batch[mask][:batch.batch_size]
#         return out[mask], batch.y[:batch.batch_size][mask]
#
#     def loss_fn(model, batch):  # A sum, since there may be no such seed.
#         out, y = seeds(model, batch, 'train_mask')
#         return F.cross_entropy(out, y, reduction='sum')
#
#     def evaluate(model, batches):  # Without edges that left, like all.
#         results = [seeds(model, batch, 'val_mask') for batch in batches]
#         return sum(int((x.argmax(dim=-1) == y).sum()) for x, y in results)
#
#     loader = NeighborLoader(
#         data,
#         num_neighbors=[10, 10],
#         input_nodes=data.train_mask | data.val_mask,
#         batch_size=256,
#         shuffle=True,
#     )
#     ticket = pruner.fit(loader, loss_fn, evaluate)
#
# The loader samples from the whole graph, and edges leave its mini-batches
# afterwards: a node may have fewer neighbors than were asked for.
#
# For a list of graphs, :func:`~torch_geometric_ext.lottery.number_edges` gives
# all edges a number, such that a :class:`~torch_geometric.loader.DataLoader`
# of them works in the same way.
#
# Long searches
# -------------
# With a checkpoint, a search that was interrupted goes on where it was, with
# the same result. Callbacks are told the progress, and may interrupt:
lines = []


def report(progress):
    lines.append(f'{progress.stage} {progress.epoch}: {progress.best:.3f}')
    if len(lines) == 12:
        raise KeyboardInterrupt


for _ in range(2):  # The second time, to the end.
    pruner = GraphLotteryPruner(model, **shares, **few)
    try:
        pruner.fit(data, callbacks=[report], checkpoint=root / 'search.pt')
    except KeyboardInterrupt:
        print(f'interrupted after {lines[-1]}')
print(lines[-1])

# %%
# What to keep in mind
# --------------------
# * A search costs more than to train once. It pays if the ticket is used
#   often, or on a device that the dense model does not fit.
# * ``method='imp'`` prunes in rounds, a fifth of the weights in each: many
#   times the epochs. ``method='one_shot'`` leaves the search out.
# * ``ignored=['convs.0']`` leaves a layer dense.
# * Layers that normalize over channels, or divide them into heads, keep all of
#   them: ``ticket.narrow_index`` tells whether there is a narrow model.
# * Predict on the pruned graph, or try the whole one: the weights often do as
#   well there, and new nodes come with all their edges.
