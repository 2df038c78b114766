import pytest
import torch
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from torch_geometric_ext.nn import (
    HypersphericalPrototypes,
    MaskedGCNConv,
    SparseLinear,
    densify,
)

EDGE_INDEX = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])


class Sparse(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.module = SparseLinear(8, 4, sparsity=0.5)

    def forward(self, x):
        return self.module(x)


class Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.module = MaskedGCNConv(8, 4, sparsity=0.5)

    def forward(self, x):
        return self.module(x, EDGE_INDEX)


class Prototypes(torch.nn.Module):
    y = torch.tensor([0, 1, 2, 1, 1, 0])

    def __init__(self):
        super().__init__()
        self.module = HypersphericalPrototypes(8, 3, embedding_dim=4)

    def forward(self, x):
        return self.module(x, self.y)[0]


class Virtual(Prototypes):
    y = None


@pytest.fixture(params=[Sparse, Conv, Prototypes, Virtual])
def model(request, ext):
    torch.manual_seed(12345)
    return request.param().double()


def loss_of(model, x):
    return model(x).square().sum()


def test_gradients(model):
    x = torch.randn(6, 8, dtype=torch.double, requires_grad=True)
    params = dict(model.named_parameters())
    expected = torch.autograd.grad(loss_of(model, x), [x, *params.values()])

    def loss(x, params):
        return functional_call(model, params, (x,)).square().sum()

    x = x.detach()
    grad_x, grads = grad(loss, argnums=(0, 1))(x, params)
    for out, other in zip([grad_x, *grads.values()], expected):
        torch.testing.assert_close(out, other)
    out, pull = vjp(loss, x, params)
    torch.testing.assert_close(pull(torch.ones_like(out))[0], expected[0])

    tangent = torch.randn_like(x)
    _, out = jvp(lambda x: loss_of(model, x), (x,), (tangent,))
    torch.testing.assert_close(out, (tangent * expected[0]).sum())
    with forward_ad.dual_level():
        dual = loss_of(model, forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, out)


def test_jacobians(model):
    x = torch.randn(6, 8, dtype=torch.double)
    expected = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(jacrev(model)(x), expected)
    torch.testing.assert_close(jacfwd(model)(x), expected)


def test_vmap(model):
    x = torch.randn(3, 6, 8, dtype=torch.double)
    expected = torch.stack([model(row) for row in x])
    torch.testing.assert_close(vmap(model)(x), expected)

    # Gradients of each sample:
    params = dict(model.named_parameters())

    def loss(params, x):
        return functional_call(model, params, (x,)).square().sum()

    grads = vmap(grad(loss), in_dims=(None, 0))(params, x)
    for i, row in enumerate(x):
        single = torch.autograd.grad(loss_of(model, row), params.values())
        for a, b in zip(grads.values(), single):
            torch.testing.assert_close(a[i], b)


def test_ensemble_of_patterns(ext):
    models = [SparseLinear(8, 4, sparsity=0.5, seed=i) for i in range(3)]
    state = stack_module_state(models)
    x = torch.randn(6, 8)

    def call(params, buffers):
        return functional_call(models[0], (params, buffers), (x,))

    expected = torch.stack([layer(x) for layer in models])
    # Buffers that are not stored take part, too:
    torch.testing.assert_close(vmap(call)(*state), expected)


def test_hessian(ext):
    layer = SparseLinear(4, 3, sparsity=0.5).double()
    dense = densify(SparseLinear.from_dense(layer.to_dense()))
    x = torch.randn(4, dtype=torch.double)
    out = hessian(lambda x: layer(x).pow(3).sum())(x)
    expected = hessian(lambda x: dense(x).pow(3).sum())(x)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
def test_half_precision(ext, dtype):
    layer = SparseLinear(8, 4, sparsity=0.5)
    x = torch.randn(3, 6, 8)
    with torch.autocast('cpu', dtype=dtype):
        out, expected = vmap(layer)(x), layer(x)
    assert out.dtype == dtype
    tolerance = dict(rtol=0.02, atol=0.02)  # Products may round the weight.
    torch.testing.assert_close(out, expected, **tolerance)
    x, layer = x.to(dtype), layer.to(dtype)
    torch.testing.assert_close(vmap(layer)(x), layer(x), **tolerance)


def test_labels_per_sample(ext):
    prototypes = HypersphericalPrototypes(8, 3)
    h, y = torch.randn(2, 5, 8), torch.randint(3, (2, 5))
    loss, scores = vmap(prototypes)(h, y)
    for i in range(2):
        a, b = prototypes(h[i], y[i])
        torch.testing.assert_close(loss[i], a)
        torch.testing.assert_close(scores[i], b)


def test_compile(ext):
    layer = SparseLinear(8, 4, sparsity=0.5)
    x = torch.randn(6, 8)
    func = grad(lambda x: layer(x).square().sum())
    torch._dynamo.reset()
    compiled = torch.compile(func, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), func(x))


def test_csr_features_are_refused(ext):
    layer = SparseLinear(8, 4, sparsity=0.5)
    params = dict(layer.named_parameters())
    x = torch.eye(8).to_sparse_csr()
    with pytest.raises(NotImplementedError, match=r"'torch.func' .* CSR"):
        grad(lambda p: functional_call(layer, p, (x,)).sum())(params)
