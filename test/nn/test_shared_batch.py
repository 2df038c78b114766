"""Models run level by level within `shared_batch`, and stay exact."""

import copy
import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data

from devices import withDevice
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import (
    LevelwiseConv,
    RootAggregation,
    TreeBatchNorm,
    shared_batch,
)
from torch_geometric_ext.transforms import ShareComputationTrees

F = 4  # Channels of all layers.


def make_graphs(num_graphs=6, seed=0):
    """Connected graphs of a few nodes, with multi-edges."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for i in range(num_graphs):
        num_nodes = 3 + i
        row = torch.arange(num_nodes - 1)
        chord = torch.randint(num_nodes, (2, 3), generator=generator)
        edge_index = torch.cat([torch.stack([row, row + 1]), chord], dim=1)
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        x = torch.randint(2, (num_nodes, F), generator=generator)
        size = (edge_index.size(1) // 2, 2)
        attr = torch.randint(2, size, generator=generator)
        graphs.append(
            Data(
                x=x.double(),
                edge_index=edge_index,
                edge_attr=attr.repeat(2, 1).double(),
            )
        )
    return graphs


def make_batch(num_layers=2, graphs=None, **kwargs):
    graphs = make_graphs() if graphs is None else graphs
    shared = ShareComputationTrees(num_layers, **kwargs)(graphs)
    # All but one graph, lest the batch is that of the whole data set:
    index = list(range(len(graphs) - 1))
    return SharedTreeLoader(shared).dataset.__getitems__(index)


def plain_batch(graphs=None):
    graphs = make_graphs() if graphs is None else graphs
    return Batch.from_data_list(graphs[:-1])


class Counter(pyg.SAGEConv):
    """A convolution that counts the rows it works on."""

    def __init__(self):
        super().__init__(F, F)
        self.num_rows = []

    def forward(self, x, edge_index):
        self.num_rows.append(x.size(0))
        return super().forward(x, edge_index)


class Base(torch.nn.Module):
    num_convs = 2

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(
            self.make() for _ in range(self.num_convs)
        )

    def make(self):
        return Counter()

    def forward(self, x, edge_index):
        for conv in self.convs:
            x = conv(x, edge_index).tanh()
        return x


class Residual(Base):
    def forward(self, x, edge_index):
        for conv in self.convs:
            x = x + conv(x, edge_index).relu()
        return x


class Encoded(Base):
    def forward(self, x, edge_index):
        start = (2 * x).tanh()
        for conv in self.convs:
            x = 0.5 * start + conv(x, edge_index).sigmoid()
        return x


class InPlace(Base):
    def forward(self, x, edge_index):
        first, *others = self.convs
        start, x = x, x.clone()
        old = x
        x += first(start, edge_index)
        for conv in others:
            x = x + conv(x, edge_index)
        return x * old


class Dense(Base):
    def forward(self, x, edge_index):
        xs = [x]
        for conv in self.convs:
            xs.append(conv(xs[-1], edge_index).tanh())
        out = torch.stack([torch.cat(xs[:2], -1), torch.cat(xs[1:3], -1)])
        return out.amax(0) + torch.cat(xs, dim=1)[:, F:]


class Masked(Base):
    def forward(self, x, edge_index):
        mask = x[:, 0] > 0
        for conv in self.convs:
            x = conv(x, edge_index)
            x = torch.where(mask.view(-1, 1), x, -x)
        x[mask] = 2 * x[mask]
        return x


class Parallel(Base):
    num_convs = 4

    def forward(self, x, edge_index):
        a, b, c, d = self.convs
        left = b(a(x, edge_index).tanh(), edge_index)
        return left * d(c(x, edge_index).tanh(), edge_index)


class Twice(Base):
    num_convs = 1

    def forward(self, x, edge_index):
        (conv,) = self.convs
        return conv(conv(x, edge_index).tanh(), edge_index)


class ByKeyword(Base):
    def forward(self, x, edge_index):
        for conv in self.convs:
            x = conv(edge_index=edge_index, x=x).tanh()
        return x


class Deep(Base):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            pyg.DeepGCNLayer(conv, torch.nn.LayerNorm(F), torch.nn.Tanh())
            for conv in self.convs
        )

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


class Attention(Base):
    """Asks for attention weights, too."""

    def make(self):
        return pyg.GATConv(F, F)

    def forward(self, x, edge_index):
        for conv in self.convs:
            x, _ = conv(x, edge_index, return_attention_weights=True)
        return x


class Bipartite(Base):
    def make(self):
        return pyg.SAGEConv((F, F), F)

    def forward(self, x, edge_index):
        for conv in self.convs:
            x = conv((x, x), edge_index).tanh()
        return x


class TwoHops(Base):
    num_convs = 1

    def make(self):
        return pyg.TAGConv(F, F, K=2, normalize=False)


class ByHand(Base):
    """The first layer is no convolution."""

    num_convs = 1

    def forward(self, x, edge_index):
        source, target = edge_index
        x = x + torch.zeros_like(x).index_add(0, target, x[source])
        return self.convs[0](x.tanh(), edge_index)


class AnyArguments(Base):
    class Conv(pyg.SAGEConv):
        def forward(self, *args):
            return super().forward(*args)

    def make(self):
        return self.Conv(F, F)


class OtherGraph(Base):
    """Copies the edges, which then are not those of the mini-batch."""

    def forward(self, x, edge_index):
        x = self.convs[0](x, edge_index).tanh()
        return self.convs[1](x, edge_index.clone())


LEVELWISE = [
    Base,
    Residual,
    Encoded,
    InPlace,
    Dense,
    Masked,
    Parallel,
    Twice,
    ByKeyword,
    Deep,
    lambda: pyg.GraphSAGE(F, F, 2),
    lambda: pyg.GraphSAGE(F, F, 2, jk='cat'),
    lambda: pyg.GraphSAGE(F, F, 2, jk='max', act='tanh'),
    lambda: pyg.GraphSAGE(F, F, 2, jk='lstm', act='tanh'),
    lambda: pyg.GraphSAGE(F, F, 2, norm='batch_norm', act='tanh'),
    lambda: pyg.GIN(F, F, 2, norm='batch_norm', act='tanh'),
    lambda: pyg.GIN(
        F, F, 2, jk='cat', norm='layer_norm', norm_kwargs={'mode': 'node'}
    ),
    lambda: pyg.GAT(F, F, 2, heads=2, act='tanh'),
]


class WithSize(Base):
    def make(self):
        return pyg.SAGEConv(F, F)

    def forward(self, x, edge_index):
        for conv in self.convs:
            x = conv(x, edge_index, size=(x.size(0), x.size(0))).tanh()
        return x


FALLBACKS = [
    (WithSize, "reads 'size'"),
    (Attention, 'other rows'),
    (Bipartite, "'x' to be a tensor"),
    (TwoHops, 'equivalence check'),
    (ByHand, 'operations on the edges'),
    (OtherGraph, 'other edges'),
    (AnyArguments, 'any number of arguments'),
]


def gradients(model, batch, **kwargs):
    with shared_batch(batch, **kwargs) as fallbacks:
        h = model(batch.x, batch.edge_index)
    out = RootAggregation('sum')(h, batch)
    weight = torch.linspace(1, 2, out.numel()).view_as(out).to(out)
    params = list(model.parameters())
    return fallbacks, out, torch.autograd.grad((out * weight).sum(), params)


def assert_exact(model, batch, plain, **kwargs):
    """Compare with the plain graphs; return what ran on all levels."""
    state = copy.deepcopy(model.state_dict())
    _, expected, grads = gradients(model, plain)
    model.load_state_dict(state)
    fallbacks, out, others = gradients(model, batch, **kwargs)
    assert torch.allclose(out, expected, rtol=1e-9)
    for grad, other in zip(grads, others):
        assert torch.allclose(grad, other, rtol=1e-9, atol=1e-9)
    return fallbacks


@pytest.mark.parametrize('make', LEVELWISE)
def test_levelwise(make):
    torch.manual_seed(0)
    model = TreeBatchNorm.convert(make()).double()
    batch = make_batch(edge_attr=False)
    # The order of trees differs between levels, which tests can see:
    assert not batch.own[:3].equal(batch.own[:3].sort().values)
    assert assert_exact(model, batch, plain_batch()) == []
    assert assert_exact(model, batch, plain_batch(), levelwise=False) == []
    for module in model.modules():
        if isinstance(module, Counter):
            levels = set(module.num_rows) - {
                plain_batch().num_nodes,
                batch.num_nodes,
            }
            assert levels  # It worked on a part of the rows.
            sizes = batch.num_sampled_nodes
            assert levels <= {sum(sizes[:2]), sum(sizes[1:])}


@pytest.mark.parametrize('make, reason', FALLBACKS)
def test_fallbacks(make, reason, caplog):
    torch.manual_seed(0)
    model = make().double()
    batch = make_batch(edge_attr=False)
    with caplog.at_level(logging.INFO, 'torch_geometric_ext'):
        fallbacks = assert_exact(model, batch, plain_batch())
    assert reason in fallbacks[0]
    assert fallbacks[0] in caplog.text
    assert assert_exact(model, batch, plain_batch(), levelwise=False) == []


def test_called_directly():
    torch.manual_seed(0)
    convs = torch.nn.ModuleList([Counter(), Counter()]).double()
    batch, aggr = make_batch(edge_attr=False), RootAggregation('sum')

    def run(batch):
        with shared_batch(batch) as fallbacks:
            h = batch.x
            for conv in convs:
                h = h + conv(h, batch.edge_index)
        return aggr(h, batch), fallbacks

    expected, _ = run(plain_batch())
    out, first = run(batch)
    assert torch.allclose(out, expected)
    assert len(first) == 1 and 'first time' in first[0]
    out, second = run(batch)
    assert torch.allclose(out, expected)
    assert second == []
    sizes = batch.num_sampled_nodes
    assert convs[0].num_rows[1:] == [batch.num_nodes, sum(sizes[1:])]
    assert convs[1].num_rows[1:] == [batch.num_nodes, sum(sizes[:2])]


def test_known_and_unknown_convolutions():
    torch.manual_seed(0)
    first, second = Base().double(), Base().double()
    batch = make_batch(edge_attr=False)
    assert_exact(first, batch, plain_batch())

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.known, self.unknown = first.convs[0], second.convs[0]

    model = Mixed()
    for _ in range(2):
        with shared_batch(batch) as fallbacks:
            h = model.known(batch.x, batch.edge_index).tanh()
            h = model.unknown(h, batch.edge_index)
        out = RootAggregation('sum')(h, batch)
        plain = plain_batch()
        h = model.known(plain.x, plain.edge_index).tanh()
        h = model.unknown(h, plain.edge_index)
        assert torch.allclose(out, RootAggregation('sum')(h, plain))
    assert fallbacks == []


@pytest.mark.parametrize('inside', [True, False])
def test_pooling_of_each_layer(inside):
    torch.manual_seed(0)
    aggr, convs = RootAggregation('max'), Base().double().convs
    outs = []
    for batch in [plain_batch(), *2 * [make_batch(3, edge_attr=False)]]:
        hs = [batch.x]
        with shared_batch(batch):
            for conv in [*convs, convs[0]]:
                hs.append(conv(hs[-1], batch.edge_index))
            if inside:
                outs.append(sum(aggr(h, batch) for h in hs))
        if not inside:
            outs.append(sum(aggr(h, batch) for h in hs))
    for out in outs[1:]:
        assert torch.allclose(out, outs[0])


def test_edge_features():
    torch.manual_seed(0)
    model = pyg.GAT(F, F, 2, edge_dim=2, act='tanh').double()
    batch, plain = make_batch(), plain_batch()
    outs = []
    for b in [plain, batch]:
        with shared_batch(b) as fallbacks:
            h = model(b.x, b.edge_index, edge_attr=b.edge_attr)
        outs.append(RootAggregation('sum')(h, b))
    assert torch.allclose(*outs) and fallbacks == []


def test_pooled_graphs_within_the_block():
    torch.manual_seed(0)
    model, other = Base().double(), pyg.SAGEConv(F, F).double()
    edge_index, outs = torch.tensor([[0, 1], [1, 2]]), []
    for batch in [plain_batch(), make_batch(edge_attr=False)]:
        for _ in range(2):
            with shared_batch(batch) as fallbacks:
                h = model(batch.x, batch.edge_index)
                h = RootAggregation('sum')(h, batch)
                outs.append(torch.nn.Sequential(other)[0](h, edge_index))
    assert all(torch.allclose(out, outs[0]) for out in outs)
    assert fallbacks == []


def test_hooks_and_modules_stay_as_they_are():
    model, batch = Base().double(), make_batch(edge_attr=False)
    keys, calls = list(model.state_dict()), []
    handle = model.convs[0].register_forward_hook(
        lambda *args: calls.append(args[1][0].size(0))
    )
    with shared_batch(batch) as fallbacks:
        model(batch.x, batch.edge_index)
        with shared_batch(batch):  # Blocks nest.
            model(batch.x, batch.edge_index)
        model(batch.x, batch.edge_index)
    assert len(calls) == 3 and fallbacks == []
    handle.remove()
    for conv in model.convs:
        assert len(conv._forward_hooks) == len(conv._forward_pre_hooks) == 0
    assert list(model.state_dict()) == keys
    with pytest.raises(KeyError):
        with shared_batch(batch):
            raise KeyError
    assert len(model.convs[0]._forward_hooks) == 0


def test_inner_block_on_all_levels():
    model, batch = Base().double(), make_batch(edge_attr=False)
    with shared_batch(batch):
        model(batch.x, batch.edge_index)
        with shared_batch(batch, levelwise=False):
            h = model(batch.x, batch.edge_index)
    assert h.size(0) == sum(batch.num_sampled_nodes)


def test_errors_within_a_convolution():
    class Fragile(Counter):
        fails = True

        def forward(self, x, edge_index):
            if self.fails:
                raise KeyError('broken')
            return super().forward(x, edge_index)

    torch.manual_seed(0)
    model, batch = Base().double(), make_batch(edge_attr=False)
    model.convs[1] = Fragile().double()
    for _ in range(2):
        with pytest.raises(KeyError, match='broken'):
            with shared_batch(batch):
                model(batch.x, batch.edge_index)
    model.convs[1].fails = False
    (reason,) = assert_exact(model, batch, plain_batch())
    assert 'equivalence check' in reason


def test_number_of_layers():
    model = Base().double()
    deep = make_batch(3, edge_attr=False)
    with pytest.raises(ValueError, match='got 2 for trees of depth 3'):
        with shared_batch(deep):
            model(deep.x, deep.edge_index)
    assert assert_exact(model, deep, plain_batch(), levelwise=False) == []
    flat = make_batch(1, edge_attr=False)
    with pytest.raises(ValueError, match='further than trees of depth 1'):
        with shared_batch(flat):
            model(flat.x, flat.edge_index)


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_checkpoints(use_reentrant):
    class Model(Base):
        def forward(self, x, edge_index):
            for conv in self.convs:
                x = checkpoint(
                    conv, x, edge_index, use_reentrant=use_reentrant
                )
                x = x.tanh()
            return x

    torch.manual_seed(0)
    model, grads = Model().double(), []
    for batch in [plain_batch(), make_batch(edge_attr=False)]:
        model.zero_grad()
        with shared_batch(batch, levelwise=False):
            x = batch.x.clone().requires_grad_()
            h = model(x, batch.edge_index)
            RootAggregation('sum')(h, batch).square().sum().backward()
        grads.append([param.grad.clone() for param in model.parameters()])
    assert all(map(torch.allclose, *grads))


def test_compiled_models():
    torch.manual_seed(0)
    model, batch = Residual().double(), make_batch(edge_attr=False)
    model = torch.compile(model, backend='eager')
    assert_exact(model, batch, plain_batch())


def test_trimmed_layers():
    model, batch = pyg.GIN(F, F, 2).double(), make_batch(edge_attr=False)
    args = dict(
        num_sampled_nodes_per_hop=batch.num_sampled_nodes,
        num_sampled_edges_per_hop=batch.num_sampled_edges,
    )
    with pytest.raises(ValueError, match="'levelwise=False'"):
        with shared_batch(batch):
            model(batch.x, batch.edge_index, **args)
    with shared_batch(batch, levelwise=False):
        h = model(batch.x, batch.edge_index, **args)
    aggr, plain = RootAggregation('sum'), plain_batch()
    expected = aggr(model(plain.x, plain.edge_index), plain)
    assert torch.allclose(aggr(h, batch), expected)


def test_in_place_operations_on_lower_levels():
    class Model(Base):
        def forward(self, x, edge_index):
            h = self.convs[0](x, edge_index)
            h += self.convs[1](h, edge_index)
            return h

    model, batch = Model().double(), make_batch(edge_attr=False)
    with pytest.raises(NotImplementedError, match='in-place'):
        with shared_batch(batch):
            model(batch.x, batch.edge_index)


def test_explicit_wrapper_without_levelwise():
    torch.manual_seed(0)
    model, batch = Base().double(), make_batch(edge_attr=False)
    LevelwiseConv.convert(model)
    assert assert_exact(model, batch, plain_batch(), levelwise=False) == []
    sizes = batch.num_sampled_nodes
    assert model.convs[0].conv.num_rows[-1] == sum(sizes[1:])


@pytest.mark.parametrize('grad', [torch.no_grad, torch.inference_mode])
def test_without_gradients(grad):
    torch.manual_seed(0)
    model, batch = Base().double().eval(), make_batch(edge_attr=False)
    with grad():
        with shared_batch(batch) as fallbacks:
            h = model(batch.x, batch.edge_index)
    assert fallbacks == []
    assert h.size(0) == batch.num_sampled_nodes[0]


def test_random_numbers_are_those_of_the_model():
    model, batch = pyg.GIN(F, F, 2, dropout=0.5), make_batch(edge_attr=False)
    batch.x = batch.x.float()
    outs = []
    for _ in range(2):  # With and without the equivalence check.
        torch.manual_seed(0)
        with shared_batch(batch):
            outs.append(model(batch.x, batch.edge_index))
    assert torch.equal(*outs)


def test_lazy_convolutions():
    model, batch = pyg.GraphSAGE(-1, F, 2).double(), make_batch(2)
    for _ in range(2):
        with shared_batch(batch) as fallbacks:
            model(batch.x, batch.edge_index)
    assert fallbacks == []


@withDevice
def test_device(device):
    torch.manual_seed(0)
    model = Residual().double().to(device)
    batch = make_batch(edge_attr=False).to(device)
    assert assert_exact(model, batch, plain_batch().to(device)) == []
