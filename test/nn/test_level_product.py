"""Products on levels of shared trees give what messages give."""

import copy

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from devices import withDevice
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import SparseLinear, level_product, shared_batch
from torch_geometric_ext.nn.level_product import LevelProduct
from torch_geometric_ext.transforms import ShareComputationTrees

F = 4  # Channels of all layers.


def make_batch(gcn_norm=False, num_layers=2):
    """Trees with equal children: stars, whose centers are connected."""
    graphs = []
    for num_leaves in range(2, 7):
        leaf = torch.arange(1, num_leaves + 1)
        edge_index = torch.stack([leaf, torch.zeros_like(leaf)])
        path = torch.tensor([[0, 0], [num_leaves + 1, num_leaves + 2]])
        edge_index = torch.cat([edge_index, path], dim=1)
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        x = torch.zeros(num_leaves + 3, F, dtype=torch.double)
        x[0], x[-1] = 1, torch.arange(F)
        graphs.append(Data(x=x, edge_index=edge_index))
    share = ShareComputationTrees(num_layers, gcn_norm=gcn_norm)
    loader = SharedTreeLoader(share(graphs))
    return loader.dataset.__getitems__([0, 1, 2, 3])


def mlp():
    layers = torch.nn.Linear(F, F), torch.nn.ReLU(), torch.nn.Linear(F, F)
    return torch.nn.Sequential(*layers)


def sparse_sage():
    conv = pyg.SAGEConv(F, F)
    conv.lin_l = SparseLinear(F, F, sparsity=0.5)
    return conv


MAKE = {
    'GIN': lambda: pyg.GINConv(mlp(), train_eps=True, eps=0.3),
    'GIN of a linear layer': lambda: pyg.GINConv(torch.nn.Linear(F, F)),
    'GIN of an MLP': lambda: pyg.GINConv(pyg.MLP([F, 8, F], norm=None)),
    'GIN of another module': lambda: pyg.GINConv(torch.nn.Tanh()),
    'GIN, mean': lambda: pyg.GINConv(mlp(), aggr='mean'),
    'SAGE': lambda: pyg.SAGEConv(F, F),
    'SAGE, sum': lambda: pyg.SAGEConv(F, F, aggr='sum', bias=False),
    'SAGE, normalize': lambda: pyg.SAGEConv(F, F, normalize=True),
    'SAGE, no root': lambda: pyg.SAGEConv(F, F, root_weight=False),
    'SAGE, sparse': sparse_sage,
    'GraphConv': lambda: pyg.GraphConv(F, F),
    'GraphConv, mean': lambda: pyg.GraphConv(F, F, aggr='mean'),
}

OTHERS = {
    'max': lambda: pyg.SAGEConv(F, F, aggr='max'),
    'projection': lambda: pyg.SAGEConv(F, F, project=True),
    'attention': lambda: pyg.GATConv(F, F, add_self_loops=False),
    'subclass': lambda: type('Own', (pyg.GraphConv,), {})(F, F),
    'root': lambda: own_root(),
    'message hook': lambda: hooked('register_message_forward_hook'),
    'forward hook': lambda: hooked('register_forward_hook'),
    'layer hook': lambda: hooked('lin_rel.register_forward_hook'),
}


def own_root():
    conv = pyg.GraphConv(F, F)
    conv.lin_root = mlp()
    return conv


def hooked(name):
    conv = pyg.GraphConv(F, F)
    path, _, method = name.rpartition('.')
    getattr(conv.get_submodule(path), method)(lambda *args: None)
    return conv


class Net(torch.nn.Module):
    def __init__(self, make, num_layers=2):
        super().__init__()
        convs = [make().double() for _ in range(num_layers)]
        self.convs = torch.nn.ModuleList(convs)

    def forward(self, batch, x):
        args = (batch.edge_weight,) if 'edge_weight' in batch else ()
        for conv in self.convs:
            x = conv(x, batch.edge_index, *args).sigmoid()
        return x


def run(model, batch):
    x = batch.x.clone().requires_grad_()
    with shared_batch(batch) as fallbacks:
        out = model(batch, x)
    assert fallbacks == []
    inputs = [x, *model.parameters()]
    grads = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
    return [out.detach(), *(grad for grad in grads if grad is not None)]


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """The levels of the products that ran."""
    levels = []
    product = LevelProduct.run
    monkeypatch.setattr(level_product, 'MIN_EDGES', 0)
    monkeypatch.setattr(
        LevelProduct,
        'run',
        lambda self: levels.append(self.own.numel()) or product(self),
    )
    return levels


def by_messages(model, batch, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(level_product, 'CLASSES', ())
        return run(model, batch)


def assert_close(out, expected):
    assert len(out) == len(expected)
    for a, b in zip(out, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('make', MAKE.values(), ids=list(MAKE))
def test_outputs_and_gradients(make, products, monkeypatch):
    model, batch = Net(make), make_batch()
    out = run(model, batch)
    assert products == batch.num_sampled_nodes[-2::-1]
    assert_close(out, by_messages(model, batch, monkeypatch))
    assert len(products) == 2


@pytest.mark.parametrize('aggr', ['add', 'mean'])
def test_weighted_edges(aggr, products, monkeypatch):
    # The self-loops of a GCN read the same tree of one depth less.
    batch = make_batch(gcn_norm=True)
    for model in [
        Net(lambda: pyg.GCNConv(F, F, normalize=False, aggr=aggr)),
        Net(lambda: pyg.GCNConv(F, F, normalize=False, bias=False)),
        Net(lambda: pyg.GraphConv(F, F, aggr=aggr)),
    ]:
        products.clear()
        out = run(model, batch)
        assert len(products) == 2
        assert_close(out, by_messages(model, batch, monkeypatch))


@pytest.mark.parametrize('make', OTHERS.values(), ids=list(OTHERS))
def test_messages_where_they_are_needed(make, products, monkeypatch):
    model, batch = Net(make), make_batch()
    out = run(model, batch)
    assert products == []
    assert_close(out, by_messages(model, batch, monkeypatch))


def test_autocast_and_other_types(products):
    model, batch = Net(lambda: pyg.GraphConv(F, F)), make_batch()
    with torch.autocast('cpu', torch.bfloat16), shared_batch(batch):
        model.float()(batch, batch.x.float())
    with shared_batch(batch):
        model.bfloat16()(batch, batch.x.bfloat16())
    assert products == []


def test_learned_weights_of_edges(products, monkeypatch):
    model, batch = Net(lambda: pyg.GraphConv(F, F)), make_batch()
    size = batch.edge_index.size(1)
    batch.edge_weight = torch.rand(size, dtype=torch.double)
    batch.edge_weight.requires_grad_()
    run(model, batch)
    assert products == []
    batch.edge_weight = batch.edge_weight.detach()
    out = run(model, batch)
    batch.edge_weight.mul_(2)  # Changes in-place are seen.
    changed = run(model, batch)
    assert_close(changed, by_messages(model, batch, monkeypatch))
    assert not torch.allclose(out[0], changed[0])
    batch.edge_weight = batch.edge_weight / 2
    assert_close(run(model, batch), out)
    assert len(products) == 6


def test_kept_matrices(monkeypatch):
    calls = []
    make = level_product.make_matrix
    monkeypatch.setattr(
        level_product,
        'make_matrix',
        lambda *args: calls.append(1) or make(*args),
    )
    model, batch = Net(lambda: pyg.GraphConv(F, F)), make_batch()
    for _ in range(3):
        run(model, copy.copy(batch))
    assert len(calls) == 2
    num_batches = len(level_product.matrices)
    del batch
    assert len(level_product.matrices) == num_batches - 1
    monkeypatch.setattr(level_product, 'MIN_EDGES', 1000)
    batch = make_batch()
    run(model, batch)  # Small ones do not pay.
    assert len(calls) == 2


def test_edges_that_are_not_sorted(products, monkeypatch):
    model, batch = Net(lambda: pyg.GraphConv(F, F)), make_batch()
    expected = run(model, batch)
    num = batch.num_sampled_edges[0]
    perm = torch.arange(batch.edge_index.size(1))
    perm[:num] = perm[:num].flip(0)
    batch.edge_index = batch.edge_index[:, perm]
    products.clear()
    assert_close(run(model, batch), expected)
    assert len(products) == 1


@pytest.mark.parametrize('row', [0, 1])
@pytest.mark.parametrize('value', [-1, 1000])
def test_edges_out_of_range(row, value):
    model, batch = Net(lambda: pyg.GraphConv(F, F)), make_batch()
    run(model, batch)
    batch.edge_index = batch.edge_index.clone()
    batch.edge_index[row, -1 if value > 0 else 0] = value
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        run(model, batch)


def test_forward_is_replaced_in_blocks_only(products):
    model, batch = Net(lambda: pyg.GraphConv(F, F)), make_batch()
    with shared_batch(batch):
        out = model(batch, batch.x)
        with shared_batch(batch):
            model(batch, batch.x)
        assert torch.equal(model(batch, batch.x), out)
    assert len(products) == 6
    assert all('forward' not in vars(conv) for conv in model.convs)
    model.convs[0].forward = own = model.convs[0].forward
    with shared_batch(batch):
        model(batch, batch.x)
    assert vars(model.convs[0])['forward'] is own
    assert len(products) == 7


def test_second_derivatives(products):
    model, batch = Net(lambda: pyg.GINConv(mlp())), make_batch()
    x = batch.x.clone().requires_grad_()

    def loss(x):
        with shared_batch(batch):
            return model(batch, x)

    assert torch.autograd.gradgradcheck(loss, (x,))
    assert len(products) > 2


@pytest.mark.parametrize('size', [0, 100, 10000, 40000])
def test_argsort_padded(size):
    index = torch.randint(50, (size,))
    out = level_product.argsort_padded(index)
    assert torch.equal(out, index.argsort(stable=True))


@withDevice
def test_device(device, products, monkeypatch):
    model = Net(lambda: pyg.SAGEConv(F, F)).to(device)
    batch = make_batch().to(device)
    out = run(model, batch)
    assert len(products) == (2 if device.type == 'cpu' else 0)
    assert_close(out, by_messages(model, batch, monkeypatch))
