import copy
import pickle

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import GCNConv
from torch_geometric.testing import withPackage
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_dense_adj, to_torch_csr_tensor

import accelerator
from devices import withDevice
from torch_geometric_ext.nn import MaskedGCNConv, densify
from torch_geometric_ext.nn.conv import masked_gcn_conv

# With a self-loop at node 2:
EDGE_INDEX = torch.tensor(
    [[0, 1, 2, 3, 4, 5, 0, 2, 2, 4], [1, 2, 3, 4, 5, 0, 3, 5, 2, 1]]
)
EDGE_MASK = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)

OPTIONS = [
    dict(),
    dict(improved=True, bias=False),
    dict(add_self_loops=False),
    dict(normalize=False),
    dict(flow='target_to_source'),
    dict(aggr='mean'),
    dict(decomposed_layers=2),
]


@pytest.fixture
def x():
    torch.manual_seed(12345)
    return torch.randn(6, 16)


def make_pair(**kwargs):
    """A layer, and a dense one of equal weights."""
    sparse = {
        key: kwargs.pop(key)
        for key in ['sparsity', 'normalize_masked']
        if key in kwargs
    }
    conv = MaskedGCNConv(16, 8, **kwargs, **{'sparsity': 0.5, **sparse})
    dense = GCNConv(16, 8, **kwargs)
    dense.lin.weight.data = conv.lin.weight.detach()
    if conv.bias is not None:
        torch.nn.init.normal_(conv.bias)
        dense.bias.data = conv.bias.detach().clone()
    return conv, dense


def test_masked_gcn_conv(x):
    conv, dense = make_pair()
    assert str(conv) == 'MaskedGCNConv(16, 8, sparsity=0.5)'
    assert [name for name, _ in conv.named_parameters()] == [
        'bias',
        'lin.values',
    ]
    out = conv(x, EDGE_INDEX)
    assert out.size() == (6, 8)
    torch.testing.assert_close(out, dense(x, EDGE_INDEX))


@pytest.mark.parametrize('sparsity', [0.0, 0.7])
@pytest.mark.parametrize('kwargs', OPTIONS)
def test_equals_gcn_conv(x, kwargs, sparsity):
    conv, dense = make_pair(sparsity=sparsity, **kwargs)
    weight = torch.rand(10)
    for args in [(EDGE_INDEX,), (EDGE_INDEX, weight)]:
        out, expected = conv(x, *args), dense(x, *args)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
        (grad,) = torch.autograd.grad(out.sum(), conv.lin.values)
        (other,) = torch.autograd.grad(expected.sum(), dense.lin.weight)
        other = other[conv.lin.mask]
        torch.testing.assert_close(grad, other, atol=1e-5, rtol=1e-5)


def make_grads(conv, x, *args, **kwargs):
    """Outputs, gradients and gradients of gradients."""
    x = x.clone().requires_grad_()
    params = [x, *conv.parameters()]
    out = conv(x, *args, **kwargs)
    grads = torch.autograd.grad(out.sin().sum(), params, create_graph=True)
    return out, *grads, *torch.autograd.grad(grads[0].square().sum(), params)


@pytest.fixture
def messages(monkeypatch):
    """The layers that pass messages, a call each."""
    calls = []
    check = MaskedGCNConv._check_input

    def count(self, *args):
        calls.append(self)
        return check(self, *args)

    monkeypatch.setattr(MaskedGCNConv, '_check_input', count)
    return calls


@pytest.mark.parametrize('mode', ['cached', 'large'])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('sizes', [(16, 8), (4, 16), (8, 8), (6, 4)])
@pytest.mark.parametrize('kwargs', [*OPTIONS[:3], *OPTIONS[4:]])
def test_products(kwargs, sizes, masked, mode, messages, monkeypatch):
    if mode == 'large':
        monkeypatch.setattr(masked_gcn_conv, 'MIN_CHANNELS', 1)
        least = {True: 1, False: 1}
        monkeypatch.setattr(masked_gcn_conv, 'MIN_MESSAGES', least)
    cached = mode == 'cached'
    conv = MaskedGCNConv(*sizes, cached=cached, sparsity=0.3, **kwargs)
    plain = MaskedGCNConv(*sizes, sparsity=0.3, **kwargs)
    plain.register_message_forward_hook(lambda *args: None)
    plain.load_state_dict(conv.state_dict())
    conv, plain = conv.double(), plain.double()
    x, weight = torch.randn(6, sizes[0]).double(), torch.rand(10).double()
    args, mask = (EDGE_INDEX, weight), EDGE_MASK if masked else None
    expected = make_grads(plain, x, *args, edge_mask=mask)
    assert plain in messages
    messages.clear()
    for _ in range(2):
        found = make_grads(conv, x, *args, edge_mask=mask)
        torch.testing.assert_close(found, expected)
    out = conv(x, *args, edge_mask=mask)  # Without gradients of features.
    torch.testing.assert_close(out, expected[0])
    with torch.no_grad():
        out = conv(x, *args, edge_mask=mask)
    torch.testing.assert_close(out, expected[0])
    assert messages == []


def test_products_are_not_messages(x, messages):
    conv, dense = make_pair(cached=True)
    expected = dense(x, EDGE_INDEX)
    mask = torch.ones(EDGE_INDEX.size(1) + 5)

    def check(other, num_calls):
        torch.testing.assert_close(other(x, EDGE_INDEX), expected)
        assert len(messages) == num_calls
        messages.clear()

    check(conv, 0)
    handle = conv.register_propagate_forward_hook(lambda *args: None)
    check(conv, 1)
    handle.remove()
    check(conv, 0)
    set_masks(conv, mask, EDGE_INDEX, apply_sigmoid=False)
    check(conv, 1)
    clear_masks(conv)
    check(conv, 0)
    conv.message = lambda x_j, edge_weight: MaskedGCNConv.message(
        conv, x_j, edge_weight
    )
    check(conv, 1)
    del conv.message
    conv.aggr = 'mean'  # Outside of the cache:
    conv._cached_edge_index = None
    assert not torch.equal(conv(x, EDGE_INDEX), expected)
    assert messages == []


def test_subclass_passes_messages(x):
    class Doubled(MaskedGCNConv):
        def message(self, x_j, edge_weight):
            return 2 * super().message(x_j, edge_weight)

    conv = Doubled(16, 8, cached=True, sparsity=0.5, bias=False)
    plain = MaskedGCNConv(16, 8, cached=True, sparsity=0.5, bias=False)
    plain.load_state_dict(conv.state_dict())
    expected = 2 * plain(x, EDGE_INDEX)
    torch.testing.assert_close(conv(x, EDGE_INDEX), expected)


def test_products_in_other_modes(x, messages):
    conv, dense = make_pair(cached=True)
    params = dict(conv.named_parameters())

    def loss(values):
        new = {**params, 'lin.values': values}
        out = torch.func.functional_call(conv, new, (x, EDGE_INDEX))
        return out.square().sum()

    conv(x, EDGE_INDEX).square().sum().backward()
    grad = torch.func.grad(loss)(conv.lin.values.detach())
    torch.testing.assert_close(grad, conv.lin.values.grad)
    assert len(messages) == 1

    with torch.autocast('cpu', torch.bfloat16):
        out, expected = conv(x, EDGE_INDEX), dense(x, EDGE_INDEX)
        assert out.dtype == expected.dtype == torch.float
        torch.testing.assert_close(out, expected, rtol=0.03, atol=0.03)
        out.sum().backward()
    assert len(messages) == 1

    traced = torch.jit.trace(conv, (x, EDGE_INDEX), check_trace=False)
    torch.testing.assert_close(traced(x, EDGE_INDEX), dense(x, EDGE_INDEX))

    stack = torch.stack([x, 2 * x])
    torch.testing.assert_close(conv(stack, EDGE_INDEX)[0], conv(x, EDGE_INDEX))
    for dtype in [torch.double, torch.bfloat16]:
        conv, dense = conv.to(dtype), dense.to(dtype)
        out = conv(x.to(dtype), EDGE_INDEX)
        expected = GCNConv.forward(dense, x.to(dtype), EDGE_INDEX)
        torch.testing.assert_close(
            out.double(), expected.double(), rtol=0.05, atol=0.05
        )


def test_copies_of_cached_layers(x):
    conv, _ = make_pair(cached=True)
    keys = list(conv.state_dict())
    expected = conv(x, EDGE_INDEX)
    assert conv._cached_matrix is not None
    assert list(conv.state_dict()) == keys
    for other in [copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))]:
        assert other._cached_matrix is None
        assert torch.equal(other(x, EDGE_INDEX), expected)
        assert other._cached_matrix is not None


def test_edge_weights_with_gradients(x, messages):
    conv, dense = make_pair(cached=True)
    weight = torch.rand(10, requires_grad=True)
    grads = [
        torch.autograd.grad(layer(x, EDGE_INDEX, weight).sum(), weight)[0]
        for layer in [conv, dense]
    ]
    torch.testing.assert_close(*grads)
    assert len(messages) == 1


def test_cache_of_another_size(x):
    conv, dense = make_pair(cached=True)
    handle = conv.register_message_forward_hook(lambda *args: None)
    conv(x, EDGE_INDEX)
    handle.remove()
    with pytest.raises(IndexError, match=r'\[0, 3\) \(got 5\)'):
        conv(x[:3], EDGE_INDEX)
    for size in [6, 8, 6]:  # New nodes have no edges.
        features = torch.cat([x, torch.ones(2, x.size(1))])[:size]
        expected = dense(features, EDGE_INDEX)
        torch.testing.assert_close(conv(features, EDGE_INDEX), expected)
    with pytest.raises(IndexError, match=r'\[0, 3\) \(got 5\)'):
        conv(x[:3], EDGE_INDEX)


@pytest.mark.parametrize('cached', [False, True])
def test_layouts(x, cached):
    weight = torch.rand(10)
    adj_t = to_torch_csr_tensor(EDGE_INDEX, weight, size=(6, 6))
    adj_t = adj_t.t().to_sparse_csr()
    index, perm = EdgeIndex(EDGE_INDEX, sparse_size=(6, 6)).sort_by('col')
    for args in [(adj_t,), (adj_t.to_sparse_coo(),), (index, weight[perm])]:
        conv, dense = make_pair(cached=cached)
        for _ in range(2):
            torch.testing.assert_close(conv(x, *args), dense(x, *args))
    out = conv(x, index, weight[perm], edge_mask=EDGE_MASK[perm])
    expected = conv(x, EDGE_INDEX, weight, edge_mask=EDGE_MASK)
    torch.testing.assert_close(out, expected)


@withPackage('torch_sparse')
def test_sparse_tensor(x):
    conv, dense = make_pair()
    adj = SparseTensor.from_edge_index(EDGE_INDEX, sparse_sizes=(6, 6))
    torch.testing.assert_close(conv(x, adj.t()), dense(x, adj.t()))
    with pytest.raises(ValueError, match=r"'edge_mask' .*SparseTensor"):
        conv(x, adj.t(), edge_mask=EDGE_MASK)


@pytest.mark.parametrize('kwargs', OPTIONS)
def test_edge_mask(x, kwargs):
    conv, dense = make_pair(**kwargs)
    weight = torch.rand(10, requires_grad=True)
    for w in [None, weight]:
        out = conv(x, EDGE_INDEX, w, edge_mask=EDGE_MASK)
        part = None if w is None else w[EDGE_MASK]
        expected = dense(x, EDGE_INDEX[:, EDGE_MASK], part)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    out.sum().backward()
    assert torch.equal(weight.grad == 0, ~EDGE_MASK)

    mask = torch.ones_like(EDGE_MASK)
    out = conv(x, EDGE_INDEX, weight, edge_mask=mask)
    torch.testing.assert_close(out, conv(x, EDGE_INDEX, weight))


@pytest.mark.parametrize('add_self_loops', [False, True])
@pytest.mark.parametrize('improved', [False, True])
def test_normalization_of_the_whole_graph(x, improved, add_self_loops):
    kwargs = dict(improved=improved, add_self_loops=add_self_loops)
    conv, _ = make_pair(normalize_masked=False, **kwargs)
    weight = torch.rand(10)
    out = conv(x, EDGE_INDEX, weight, edge_mask=EDGE_MASK)

    adj = to_dense_adj(EDGE_INDEX, None, weight, max_num_nodes=6)[0].t()
    mask = to_dense_adj(EDGE_INDEX[:, EDGE_MASK], max_num_nodes=6)[0].t()
    if add_self_loops:  # The graph has a self-loop at node 2.
        loop = torch.full((6,), 2.0 if improved else 1.0)
        loop[2] = weight[8]
        adj = adj - adj.diag().diag() + loop.diag()
        mask = torch.maximum(mask, torch.eye(6))
    norm = adj.sum(dim=1).rsqrt()
    adj = mask * norm.view(-1, 1) * adj * norm
    expected = adj @ x @ conv.lin.weight.t() + conv.bias
    torch.testing.assert_close(out, expected)


def test_masked_edges_send_no_messages(x):
    conv, _ = make_pair()
    sizes = []
    conv.register_message_forward_hook(
        lambda module, args, out: sizes.append(out.size(0))
    )
    conv(x, EDGE_INDEX, edge_mask=EDGE_MASK)
    conv.normalize_masked = False
    conv(x, EDGE_INDEX, edge_mask=EDGE_MASK)
    assert sizes == [7 + 6, 7 + 6]  # Remaining edges and self-loops.


@pytest.mark.parametrize('normalize_masked', [False, True])
def test_cached(x, normalize_masked):
    plain, _ = make_pair(normalize_masked=normalize_masked)
    conv = copy.deepcopy(plain)
    conv.cached = True
    mask, other = EDGE_MASK.clone(), ~EDGE_MASK

    def check(edge_mask):
        expected = plain(x, EDGE_INDEX, edge_mask=edge_mask)
        torch.testing.assert_close(
            conv(x, EDGE_INDEX, edge_mask=edge_mask), expected
        )
        cache = conv._cached_edge_index
        # As in PyG, cached layers ignore the edges:
        out = conv(x, EDGE_INDEX[:, :0], edge_mask=edge_mask)
        torch.testing.assert_close(out, expected)
        assert conv._cached_edge_index is cache

    for edge_mask in [None, mask, other, None, other]:
        check(edge_mask)
    other[0] = ~other[0]  # In-place changes renew the cache.
    check(other)
    conv.reset_parameters()
    assert conv._cached_edge_index is conv._cached_edge_mask is None


@torch.inference_mode()
def test_in_place_changes_in_inference_mode(x):
    conv, _ = make_pair(cached=True)
    edge_mask = EDGE_MASK.clone()
    out = conv(x, EDGE_INDEX, edge_mask=edge_mask)
    assert torch.equal(conv(x, EDGE_INDEX, edge_mask=edge_mask), out)
    edge_mask[:] = True
    out = conv(x, EDGE_INDEX, edge_mask=edge_mask)
    torch.testing.assert_close(out, conv(x, EDGE_INDEX))


def test_cached_without_normalization(x):
    conv, _ = make_pair(cached=True, normalize=False)
    a, b = torch.rand(10), torch.rand(10)
    out = conv(x, EDGE_INDEX, a, edge_mask=EDGE_MASK)
    assert not torch.equal(out, conv(x, EDGE_INDEX, b, edge_mask=EDGE_MASK))


def test_lazy(x):
    conv = MaskedGCNConv(-1, 8, sparsity=0.5, seed=1)
    assert str(conv) == 'MaskedGCNConv(-1, 8, sparsity=0.5)'
    out = conv(x, EDGE_INDEX)
    other = MaskedGCNConv(16, 8, sparsity=0.5, seed=1)
    assert torch.equal(conv.lin.mask, other.lin.mask)
    other.load_state_dict(conv.state_dict())
    assert torch.equal(other(x, EDGE_INDEX), out)


def test_state(x):
    conv = MaskedGCNConv(16, 8, sparsity=0.8)
    for other in [MaskedGCNConv(16, 8), MaskedGCNConv(-1, 8)]:
        other.load_state_dict(conv.state_dict())
        assert torch.equal(other(x, EDGE_INDEX), conv(x, EDGE_INDEX))
        assert torch.equal(other.lin.mask, conv.lin.mask)


def test_reset_parameters():
    conv = MaskedGCNConv(16, 8, seed=1)
    assert torch.equal(MaskedGCNConv(16, 8, seed=1).lin.col, conv.lin.col)
    mask, values = conv.lin.mask, conv.lin.values.detach().clone()
    torch.nn.init.ones_(conv.bias)
    conv.reset_parameters()
    assert torch.equal(conv.lin.mask, mask)
    assert not torch.equal(conv.lin.values, values)
    assert (conv.bias == 0).all()
    # The Glorot bound for a tenth of the weights:
    assert conv.lin.values.abs().max() <= (6 / (24 * 13 / 128)) ** 0.5


@pytest.mark.parametrize('cached', [False, True])
@pytest.mark.parametrize('normalize_masked', [False, True])
def test_compile(x, cached, normalize_masked):
    conv, _ = make_pair(normalize_masked=normalize_masked, cached=cached)
    plain, _ = make_pair(normalize_masked=normalize_masked)
    plain.load_state_dict(conv.state_dict())

    torch._dynamo.reset()
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    for edge_mask in [None, EDGE_MASK, ~EDGE_MASK, None]:
        expected = plain(x, EDGE_INDEX, edge_mask=edge_mask)
        out = compiled(x, EDGE_INDEX, edge_mask=edge_mask)
        torch.testing.assert_close(out, expected)
        grads = [
            torch.autograd.grad(y.square().sum(), layer.lin.values)[0]
            for y, layer in [(out, conv), (expected, plain)]
        ]
        torch.testing.assert_close(*grads)


def test_errors(x):
    conv = MaskedGCNConv(16, 8)
    for mask in [EDGE_MASK.float(), EDGE_MASK[1:], EDGE_MASK.view(-1, 1)]:
        with pytest.raises(
            ValueError, match=r"'edge_mask' of 'Mas.* shape \[10\] \(got"
        ):
            conv(x, EDGE_INDEX, edge_mask=mask)
    adj_t = to_torch_csr_tensor(EDGE_INDEX, size=(6, 6))
    with pytest.raises(ValueError, match=r"'edge_mask' .* edge indices"):
        conv(x, adj_t, edge_mask=EDGE_MASK)
    for edge_mask in [None, EDGE_MASK]:
        with pytest.raises(ValueError, match='received a tuple'):
            conv((x, x), EDGE_INDEX, edge_mask=edge_mask)
    with pytest.raises(ValueError, match=r"'sparsity' .* \(got 1.0\)"):
        MaskedGCNConv(16, 8, sparsity=1.0)
    with pytest.raises(ValueError, match="'MaskedGCNConv' does not support"):
        MaskedGCNConv(16, 8, normalize=False, add_self_loops=True)


@withDevice
@pytest.mark.parametrize('cached', [False, True])
@pytest.mark.parametrize('normalize_masked', [False, True])
def test_device(x, device, normalize_masked, cached):
    conv, _ = make_pair(normalize_masked=normalize_masked, cached=cached)
    expected = conv(x, EDGE_INDEX, edge_mask=EDGE_MASK)
    conv, x, mask = conv.to(device), x.to(device), EDGE_MASK.to(device)
    out = conv(x, EDGE_INDEX.to(device), edge_mask=mask)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)
    out.sum().backward()
    assert conv.lin.values.grad.device == x.device


def test_masked_gcn_conv_densified():
    conv = densify(MaskedGCNConv(16, 8, sparsity=0.5))
    assert str(conv) == 'MaskedGCNConv(16, 8, sparsity=0)'


@withDevice
@pytest.mark.parametrize('with_mask', [True, False])
def test_sparse_features(x, device, with_mask):
    x = (x * (x > 0.5)).to(device)
    with device:
        conv = MaskedGCNConv(-1, 8, sparsity=0.5)
    mask = EDGE_MASK.to(device) if with_mask else None
    args = (EDGE_INDEX.to(device), None, mask)
    out = conv(x.to_sparse_csr(), *args)
    expected = conv(x, *args)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), conv.lin.values),
        torch.autograd.grad(expected.square().sum(), conv.lin.values),
    )


@withDevice
@pytest.mark.parametrize('improved', [True, False])
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('flow', ['source_to_target', 'target_to_source'])
def test_self_loops(device, improved, weighted, flow):
    edge_index = torch.tensor([[0, 1, 2, 2, 3, 1], [1, 0, 2, 3, 2, 1]])
    edge_weight = torch.arange(1.0, 7.0) if weighted else None
    x = torch.randn(5, 8)
    args = dict(improved=improved, flow=flow)
    conv = MaskedGCNConv(8, 16, sparsity=0.0, **args)
    expected = GCNConv(8, 16, **args)
    expected.lin.weight.data = conv.lin.to_dense().weight.data
    expected = expected(x, edge_index, edge_weight)
    weight = None if edge_weight is None else edge_weight.to(device)
    inputs = (x.to(device), edge_index.to(device), weight)
    conv = conv.to(device)
    with accelerator.record_syncs() as syncs:
        out = conv(*inputs)
    assert syncs == []
    torch.testing.assert_close(out.cpu(), expected)
