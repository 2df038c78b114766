r"""
Find a winning ticket
=====================

A trained network has more weights than it needs, and its graph more edges.
A *winning ticket* is a sub-network and a sub-graph that together are as
accurate as the dense model on the whole graph.
:class:`~torch_geometric_ext.lottery.GraphLotteryPruner` searches for a ticket,
and returns an ordinary model and a smaller graph.

Masks on weights and edges do not suffice. A message that is multiplied by
zero still counts: a mean still divides by the number of neighbors, attention
still attends to the pruned neighbor, and a GCN still normalizes by the degrees
before pruning. Masks save no time, either. The pruner removes weights and
edges instead.
"""

# %%
# The model and the graph
# -----------------------
# The nodes are 1,797 images of handwritten digits, with edges to the most
# similar images. 20 images of each digit have a label. The model is a GCN of
# two layers:
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.nn import GCN
from torch_geometric.transforms import RandomLinkSplit

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.lottery import GraphLotteryPruner, Ticket
from torch_geometric_ext.utils import count_macs

root = Path(tempfile.mkdtemp())
data = DigitsKNN(str(root))[0]
seed_everything(0)
model = GCN(64, 256, num_layers=2, out_channels=10, dropout=0.5)

# %%
# The ticket
# ----------
# The pruner needs the fractions of weights and edges to prune. One call trains
# by :obj:`train_mask` and selects by :obj:`val_mask`. Labels of test nodes are
# not used:
sparsity = dict(weight_sparsity=0.95, edge_sparsity=0.35)
epochs = dict(pretrain_epochs=60, search_epochs=80, retrain_epochs=80)
pruner = GraphLotteryPruner(model, **sparsity, **epochs)
ticket = pruner.fit(data)
print(str(ticket).partition('  seconds')[0])  # Times differ by machine.

# %%
# The ticket prints validation accuracies of three stages: the dense model, the
# search, in which connections move, and the ticket retrained from its initial
# weights. :meth:`~torch_geometric_ext.lottery.Ticket.apply` returns copies of
# the model and the graph. By default (``weights='final'``), the pruned model
# has the weights of the better of the last two stages:
small_model, small_data = ticket.apply(model, data)
print(small_data)


@torch.no_grad()
def test(model, data, mask='test_mask'):
    pred = model.eval()(data.x, data.edge_index).argmax(dim=-1)
    return 100 * float((pred == data.y)[data[mask]].float().mean())


print(f'test accuracy: {test(small_model, small_data):.1f} %')

# %%
# The pruned model is an ordinary :class:`~torch_geometric.nn.models.GCN` with
# zeros. With ``sparse=True``, its layers are
# :class:`~torch_geometric_ext.nn.SparseLinear`, which neither store nor
# multiply the zeros. The remaining weights belong to a few of the 256 hidden
# channels. With ``narrow=True``, the model has these channels only, and
# shorter messages:
sparse_model, _ = ticket.apply(model, sparse=True, narrow=True)
print(sparse_model.convs)
for part, graph in [(model, data), (sparse_model, small_data)]:
    macs = count_macs(part, graph.x, graph.edge_index)
    print(f'{macs.num_parameters:,} parameters, {macs.forward:,} MACs')

# %%
# The pruned graph
# ----------------
# The left plot shows the validation accuracy of each stage. The right plot
# shows the degrees of the nodes. The search prunes edges between nodes of high
# degree, and keeps edges of nodes of low degree:
ticket.plot(data)
plt.show()

# %%
# Baselines
# ---------
# A ticket pays only if it beats simpler methods. The first baselines are the
# dense model and a *narrow* dense model of as many weights. A plain loop
# trains the narrow model for as many epochs as all stages of the search, and
# without dropout, which harms few channels:


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
# The second baseline prunes as many edges at random, and no weights:
random = GraphLotteryPruner(
    model, method='random', edge_sparsity=0.35, retrain_epochs=60
)
results['random edges'] = test(*random.fit(data).apply(model, data))
for name, accuracy in results.items():
    print(f'{name:15}{accuracy:6.1f} %')

# %%
# One seed proves nothing, and these digits are easy: with a twentieth of the
# weights, the narrow model is as accurate as the ticket. Neighbors nearly
# always have the same class, so that the choice of edges hardly matters.
#
# Where a ticket wins
# -------------------
# At 1 % of the weights, a narrow model has three channels. A ticket of as many
# weights keeps more channels, each with its largest weights:
pruner = GraphLotteryPruner(model, weight_sparsity=0.99, **epochs)
tiny_model, _ = pruner.fit(data).apply(model, data)
narrow = train(GCN(64, 3, num_layers=2, out_channels=10))
print(f'ticket: {test(tiny_model, data):.1f} %, narrow dense: {narrow:.1f} %')

# %%
# With thousands of features, as in bags of words, narrow models fall behind
# earlier (:doc:`results </benchmarks/lottery>` on three citation graphs).
# Compare the ticket with both baselines on your own graph.
#
# Save and load
# -------------
# A file holds masks, weights and metrics, but no code.
# :meth:`~torch_geometric_ext.lottery.Ticket.load` checks that the ticket fits
# the model:
ticket.save(root / 'ticket.pt')
ticket = Ticket.load(root / 'ticket.pt', model)
try:
    Ticket.load(root / 'ticket.pt', GCN(64, 64, 2, 10))
except ValueError as error:
    print(error)

# %%
# A training loop of your own starts from the initial weights:
start, _ = ticket.apply(model, data, weights='initial', sparse=True)
print(start.convs[0].lin)

# %%
# Other tasks
# -----------
# Any task with a loss and a metric has tickets. The search minimizes
# ``loss_fn(model, data)``, and selects by the highest
# ``evaluate(model, data)``. Both functions receive the pruned graph. This
# example predicts links:
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
pruner = GraphLotteryPruner(encoder, **sparsity, **few)
ticket = pruner.fit(train_data, loss_fn, evaluate)
print(str(ticket).partition('  seconds')[0])

# %%
# Mini-batches need the numbers of their edges in the graph as :obj:`e_id`.
# :class:`~torch_geometric.loader.NeighborLoader` (which needs :obj:`pyg-lib`
# or :obj:`torch-sparse`) adds them. The seeds of this loader are all nodes
# with a label in training or validation:
#
# .. code-block:: python
#
#     def seeds(model, batch, mask):
#         out = model(batch.x, batch.edge_index)[:batch.batch_size]
#         mask = batch[mask][:batch.batch_size]
#         return out[mask], batch.y[:batch.batch_size][mask]
#
#     def loss_fn(model, batch):  # A mean over no seeds would be NaN.
#         out, y = seeds(model, batch, 'train_mask')
#         return F.cross_entropy(out, y, reduction='sum')
#
#     def evaluate(model, batches):  # Mini-batches without pruned edges.
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
# The loader samples from the whole graph. Edges are pruned from its
# mini-batches afterwards, so that a node may have fewer neighbors than
# :obj:`num_neighbors`.
#
# :func:`~torch_geometric_ext.lottery.number_edges` numbers the edges of a list
# of graphs. A :class:`~torch_geometric.loader.DataLoader` of these graphs
# works in the same way.
#
# Long searches
# -------------
# With a checkpoint, an interrupted search resumes and finds the same ticket.
# Callbacks receive the progress, and can interrupt the search:
lines = []


def report(progress):
    lines.append(f'{progress.stage} {progress.epoch}: {progress.best:.3f}')
    if len(lines) == 12:
        raise KeyboardInterrupt


for _ in range(2):  # The second search resumes the first.
    pruner = GraphLotteryPruner(model, **sparsity, **few)
    try:
        pruner.fit(data, callbacks=[report], checkpoint=root / 'search.pt')
    except KeyboardInterrupt:
        print(f'interrupted after {lines[-1]}')
print(lines[-1])

# %%
# Practical advice
# ----------------
# * A search trains the model several times, with full-batch acceleration
#   (:func:`~torch_geometric_ext.full_batch.accelerate`) for node
#   classification. The cost pays off if the ticket is used often, or on a
#   device with too little memory for the dense model.
# * :doc:`/develop/lottery` describes the algorithm.
# * ``method='imp'`` prunes a fifth of the remaining weights in each round, and
#   takes many times the epochs. ``method='one_shot'`` skips the search.
# * ``ignored=['convs.0']`` keeps a layer dense.
# * Models that normalize over channels keep all channels:
#   ``ticket.narrow_index`` is :obj:`None` without a narrow model.
# * Predict on the pruned graph, and compare with the whole graph: the weights
#   are often as accurate there, and new nodes come with all of their edges.
