import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear

SHAPES = [(8,), (5, 8), (2, 3, 8), (0, 8), (2, 0, 8), (1, 2, 1, 8)]


def build(*size, **kwargs):
    torch.manual_seed(12345)
    return SparseLinear(*(size or (8, 4)), **{'sparsity': 0.5, **kwargs})


def state_of(layer):
    return {key: x.clone() for key, x in layer.state_dict().items()}


def assert_equal(layer, other):
    assert is_lazy(layer.values) == is_lazy(other.values)
    state, expected = layer.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert torch.equal(layer.row, other.row)
    assert torch.equal(layer.perm, other.perm)
    x = torch.randn(3, layer.in_channels, dtype=layer.values.dtype)
    assert torch.equal(layer(x), other(x))
    assert layer.sparsity == other.sparsity


@withDevice
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_sparse_linear(device, ext, shape, bias, dtype):
    layer = build(bias=bias).to(device, dtype)
    x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    out = layer(x)
    expected = F.linear(x, layer.weight, layer.bias)
    assert out.dtype == dtype and out.shape == (*shape[:-1], 4)
    torch.testing.assert_close(out, expected)

    inputs = [x, *layer.parameters()]
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, grad)
    for a, b in zip(grads, torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(a, b)


def test_repr(ext):
    crossover = '0.25' if ext else '0'  # Without a calibration.
    assert str(SparseLinear(512, 256, bias=False)) == (
        f'SparseLinear(512, 256, bias=False, sparsity=0.9, '
        f'dense_above={build(512, 256).crossover():.2g})'
    )
    assert str(SparseLinear(-1, 4, sparsity=0.75)) == (
        f'SparseLinear(-1, 4, bias=True, sparsity=0.75, '
        f'dense_above={crossover})'
    )


def test_sizes_have_the_names_of_both_dense_classes():
    layer = SparseLinear(8, 4)
    assert (layer.in_channels, layer.out_channels) == (8, 4)
    assert (layer.in_features, layer.out_features) == (8, 4)


def test_number_of_weights():
    for sparsity, num_weights in [(0.0, 32), (0.9, 3), (0.99, 0), (0.6, 13)]:
        layer = build(sparsity=sparsity)
        assert layer.values.shape == layer.col.shape == (num_weights,)
        assert layer.sparsity == 1 - num_weights / 32
        assert layer.mask.sum() == num_weights
        assert torch.equal(layer.mask.flatten().nonzero()[:, 0], layer.index)
        assert sum(p.numel() for p in layer.parameters()) == num_weights + 4


def test_equal_to_linear_at_sparsity_0(ext):
    layer = build(64, 32, sparsity=0.0)
    torch.manual_seed(12345)
    assert layer.weight.grad_fn is not None
    linear = torch.nn.Linear(64, 32)
    with torch.no_grad():
        linear.weight.copy_(layer.weight)
        linear.bias.copy_(layer.bias)
    x = torch.randn(600, 64)
    torch.testing.assert_close(layer(x), linear(x))
    layer(x).square().sum().backward()
    linear(x).square().sum().backward()
    grad = layer.values.grad.view(32, 64)
    torch.testing.assert_close(grad, linear.weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.bias.grad, linear.bias.grad)


@pytest.mark.parametrize('sparsity', [0.0, 0.5, 0.95])
def test_variance_of_a_fresh_layer(sparsity):
    layer = build(800, 400, sparsity=sparsity)
    x = torch.randn(200, 800)
    expected = torch.nn.Linear(800, 400)(x).var()
    torch.testing.assert_close(layer(x).var(), expected, rtol=0.05, atol=0)


def test_initial_values():
    layer = build(200, 40, sparsity=0.8)
    bound = layer.mask.sum(1, keepdim=True).float().rsqrt()
    assert (layer.weight.abs() <= bound).all()
    assert layer.weight.abs().max() > 0.9 * bound.min()
    assert layer.bias.abs().max() <= 200**-0.5
    layer = build(200, 40, weight_initializer='glorot', sparsity=0.8)
    assert layer.values.abs().max() <= (6 / 48) ** 0.5
    assert layer.values.abs().max() > 0.95 * (6 / 48) ** 0.5
    assert build(bias_initializer='zeros').bias.eq(0).all()


def test_seed():
    first, second = (SparseLinear(16, 16, seed=1) for _ in range(2))
    assert torch.equal(first.index, second.index)
    assert not torch.equal(first.values, second.values)  # As in any module.
    other = SparseLinear(16, 16, seed=2)
    assert not torch.equal(first.index, other.index)
    assert_equal(build(), build())
    lazy = SparseLinear(-1, 16, seed=1)
    lazy(torch.randn(2, 16))
    assert torch.equal(lazy.index, first.index)


def test_reset():
    layer = build(16, 16)
    values, bias = (x.clone() for x in layer.parameters())
    index = layer.index
    pointers = [x.data_ptr() for x in [*layer.parameters(), *layer.buffers()]]
    layer.reset_parameters()
    assert torch.equal(layer.index, index)
    assert not (layer.values == values).any()
    assert not (layer.bias == bias).any()

    layer.reset_mask(seed=1)
    assert not torch.equal(layer.index, index)
    assert layer.values.shape == values.shape
    assert torch.equal(layer.index, build(16, 16, seed=1).index)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert [x.data_ptr() for x in tensors] == pointers


def test_weight_is_differentiable():
    layer = build()
    assert torch.equal(layer.weight != 0, layer.mask)
    layer.weight.square().sum().backward()
    torch.testing.assert_close(layer.values.grad, 2 * layer.values.detach())


def test_large_layer():
    layer = SparseLinear(2**15, 2**14, sparsity=1 - 1e-6)
    for name in ['weight', 'mask']:
        message = f"'{name}' of .* 268,435,456 .* 536,870,912.*'to_dense"
        with pytest.raises(ValueError, match=message):
            getattr(layer, name)
    with pytest.raises(ValueError, match='fewer than 2,147,483,647 rows'):
        SparseLinear(2**31, 2**31)
    assert build(2**20, 2**20, sparsity=1 - 1e-9).values.numel() == 1100


@pytest.mark.parametrize('cls', [torch.nn.Linear, pyg.Linear])
@pytest.mark.parametrize('bias', [True, False])
def test_from_and_to_dense(cls, bias):
    torch.manual_seed(12345)
    linear = cls(8, 4, bias=bias).double().eval()
    linear.weight.requires_grad_(False)
    mask = torch.rand(4, 8) < 0.5
    layer = SparseLinear.from_dense(linear, mask=mask)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight, linear.weight * mask)

    by_index = SparseLinear.from_dense(linear, index=layer.index)
    assert_equal(by_index, layer)
    linear.weight.mul_(mask)
    assert_equal(SparseLinear.from_dense(linear), layer)

    state = torch.get_rng_state()
    dense = layer.to_dense()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(dense) is cls and not dense.training
    assert not dense.weight.requires_grad
    assert not bias or dense.bias.requires_grad
    assert torch.equal(dense.weight, linear.weight)
    x = torch.randn(3, 8).double()
    torch.testing.assert_close(dense(x), layer(x))
    assert torch.equal(dense(x), linear(x))
    assert str(dense) == str(linear)


def test_from_dense_by_magnitude():
    linear = torch.nn.Linear(8, 4)
    layer = SparseLinear.from_dense(linear, sparsity=0.75)
    bound = linear.weight.abs().flatten().sort().values[-8]
    assert torch.equal(layer.mask, linear.weight.abs() >= bound)
    with torch.no_grad():  # Values are a copy.
        layer.values.zero_()
    assert linear.weight.ne(0).all()


def test_from_dense_errors():
    linear = torch.nn.Linear(8, 4)
    mask = torch.ones(8, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"'mask' .* \[4, 8\] .* \[8, 4\]"):
        SparseLinear.from_dense(linear, mask)
    with pytest.raises(ValueError, match=r"'mask' .* \(got torch.float32"):
        SparseLinear.from_dense(linear, mask.t().float())
    with pytest.raises(ValueError, match='At most one of'):
        SparseLinear.from_dense(linear, mask.t(), sparsity=0.5)
    with pytest.raises(ValueError, match=r"'sparsity' .* \(got 1.0\)"):
        SparseLinear.from_dense(linear, sparsity=1.0)
    with pytest.raises(ValueError, match="'linear' needs to be initialized"):
        SparseLinear.from_dense(pyg.Linear(-1, 4))
    for index in [[3, 2], [2, 2], [-1, 2], [2, 32]]:
        with pytest.raises(ValueError, match=r"'index' .* in \[0, 32\)"):
            SparseLinear.from_dense(linear, index=torch.tensor(index))
    with pytest.raises(ValueError, match="'index' .* vector of torch.int64"):
        SparseLinear.from_dense(linear, index=mask.flatten())


def test_set_weights():
    layer = build()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for index in [[0, 31], [1, 2, 3], [4, 5, 6], []]:
        index = torch.tensor(index, dtype=torch.long)
        values, before = torch.randn(index.shape), layer.values
        layer.set_weights(index, values)
        assert layer.values is before  # Keeps the parameter.
        assert torch.equal(layer.index, index)
        assert torch.equal(layer.values, values)
        assert layer.sparsity == 1 - index.numel() / 32
        layer(torch.randn(3, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(ValueError, match=r'one length \(got \[2\] and \[3\]'):
        layer.set_weights(torch.tensor([1, 2]), torch.randn(3))


def test_errors():
    for args, kwargs, message in [
        ((8, 4), dict(sparsity=1.0), r"'sparsity' .* \[0, 1\) \(got 1.0\)"),
        ((8, 4), dict(sparsity=-0.1), r"'sparsity' .* \(got -0.1\)"),
        ((8, 4), dict(sparsity=float('nan')), r"'sparsity' .* \(got nan\)"),
        ((-2, 4), {}, r"'in_channels' .* \(got -2 and 4\)"),
        ((8, -1), {}, r"'out_channels' .* \(got 8 and -1\)"),
        ((8, 4), dict(weight_initializer='x'), r"'weight_in.* \(got 'x'\)"),
        ((8, 4), dict(bias_initializer='x'), r"'bias_init.* \(got 'x'\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            SparseLinear(*args, **kwargs)


def test_wrong_inputs(ext):
    layer = build()
    for shape in [(3, 7), (3, 9), (9,), (2, 3, 4), (8, 0), ()]:
        with pytest.raises(ValueError, match="8 features, the 'in_channels'"):
            layer(torch.randn(shape))
    x = torch.ones(3, 8)
    for dtype in [torch.long, torch.bool, torch.double, torch.cfloat]:
        with pytest.raises(ValueError, match=rf'float32 \(got {dtype}\)'):
            layer(x.to(dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        for dtype in [torch.long, torch.double]:
            with pytest.raises(ValueError, match=rf'\(got {dtype}\)'):
                layer(x.to(dtype))
        with pytest.raises(ValueError, match=r'float64 \(got torch.float32'):
            build().double()(x)


@pytest.mark.parametrize('size', [(0, 4), (8, 0), (0, 0)])
def test_without_channels(ext, size):
    layer = build(*size)
    assert layer.values.numel() == 0 and layer.sparsity == 0.5
    assert layer.weight.shape == layer.mask.shape == size[::-1]
    if size[0] == 0:  # As in `torch.nn.Linear`.
        assert layer.bias.eq(0).all()
    for shape in [(3,), (2, 3), (0,), ()]:
        x = torch.randn(*shape, size[0], requires_grad=True)
        out = layer(x)
        assert out.shape == (*shape, size[1])
        out.sum().backward()
        assert x.grad.eq(0).all() and x.grad.shape == x.shape
        assert layer.values.grad.shape == (0,)
    lazy = SparseLinear(-1, size[1])
    assert lazy(torch.randn(3, size[0])).shape == (3, size[1])
    torch.testing.assert_close(layer.to_dense()(x), layer(x))


def test_strides(ext):
    layer = build().double()
    weight = layer.weight.detach()
    x = torch.randn(8, 8).double()
    for y in [x.t(), x[::2], x[:, :1].expand(8, 8), x[:1].expand(3, 8)]:
        torch.testing.assert_close(layer(y), y @ weight.t() + layer.bias)
    y = torch.randn(3, 8, 5).double().transpose(1, 2)
    torch.testing.assert_close(layer(y), y @ weight.t() + layer.bias)

    x.requires_grad_()
    for grad in [torch.ones(()).expand(8, 4), torch.randn(4, 8).t()]:
        out = torch.autograd.grad(layer(x), x, grad.double())[0]
        torch.testing.assert_close(out, grad.double() @ weight)


@pytest.mark.parametrize(
    'needs', [(v, b, x) for v in [0, 1] for b in [0, 1] for x in [0, 1]]
)
def test_gradients_that_are_needed(ext, needs):
    layer, x = build(), torch.randn(3, 8)
    tensors = [layer.values, layer.bias, x]
    for tensor, needed in zip(tensors, needs):
        tensor.requires_grad_(bool(needed))
    out = layer(x)
    assert out.requires_grad == any(needs)
    if out.requires_grad:
        out.sum().backward()
    for tensor, needed in zip(tensors, needs):
        assert (tensor.grad is not None) == needed


def test_without_gradients(ext):
    layer, x = build(), torch.randn(3, 8)
    expected = layer(x).detach()
    with torch.no_grad():
        out = layer(x)
        assert torch.equal(out, expected) and not out.requires_grad
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
        lazy = SparseLinear(-1, 4)  # Initialized for inference.
        lazy(x)
    lazy, x = SparseLinear(-1, 4, sparsity=0.5), x.requires_grad_()
    with torch.inference_mode():
        lazy(x.detach())
    lazy(x).sum().backward()
    assert torch.equal(x.grad, lazy.weight.sum(0).detach().expand(3, 8))


def test_half_precision(ext):
    x = torch.randn(64, 8)
    for dtype in [torch.half, torch.bfloat16]:
        layer = build()
        expected = layer(x)
        layer.to(dtype)
        out = layer(x.to(dtype))
        out.sum().backward()
        assert out.dtype == layer.values.grad.dtype == dtype
        assert layer.bias.grad.dtype == dtype
        assert layer.col.dtype == torch.int32
        torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
        layer.reset_mask()
        assert layer.weight.dtype == layer.to_dense().weight.dtype == dtype


def test_lazy(ext):
    lazy = build(-1, 4)
    assert is_lazy(lazy.values) and lazy.sparsity == 0.5
    lazy.reset_parameters()  # Has no effect.
    for name in ['index', 'mask', 'weight']:
        with pytest.raises(ValueError, match='run one forward pass first'):
            getattr(lazy, name)
    for func in [lazy.reset_mask, lazy.to_dense]:
        with pytest.raises(ValueError, match=r'\(got SparseLinear\(-1, 4'):
            func()

    twin, other = copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))
    optimizer = torch.optim.SGD(lazy.parameters(), lr=0.1)
    lazy(x=torch.randn(3, 8)).sum().backward()
    before = lazy.values.clone()
    optimizer.step()
    assert not torch.equal(lazy.values, before)
    assert lazy.in_channels == 8 and lazy.values.numel() == 16
    assert len(lazy._forward_pre_hooks) == 0
    for layer in [twin, other]:
        assert is_lazy(layer.values)
        assert layer.double()(torch.randn(6).double()).dtype == torch.double
        assert layer.in_channels == 6 and not is_lazy(layer.values)


def test_copies(ext):
    layer = build().double()
    twin = copy.deepcopy(layer)
    assert_equal(twin, layer)
    assert_equal(pickle.loads(pickle.dumps(layer)), layer)
    with torch.no_grad():
        twin.values.zero_()
    assert layer.values.ne(0).all()
    layer.share_memory()
    assert layer.values.is_shared() and layer.col.is_shared()


@pytest.mark.parametrize('swap', [False, True])
@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('size', [(8, 4), (-1, 4)])
@pytest.mark.parametrize('sparsity', [0.5, 0.8])
def test_state_dict(swap, assign, size, sparsity):
    layer = build(seed=1)
    assert list(layer.state_dict()) == [
        'values',
        'bias',
        'rowptr',
        'col',
        'colptr',
    ]
    other = build(*size, sparsity=sparsity)
    values = other.values
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        other.load_state_dict(state, strict=True, assign=assign)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert (other.values is values) == (swap or not assign)
    assert (other.values.data_ptr() == state['values'].data_ptr()) == assign
    assert_equal(other, layer)
    other(torch.randn(3, 8)).sum().backward()


def test_state_dict_of_a_lazy_layer():
    lazy = build(-1, 4)
    for layer in [build().double(), build(-1, 4)]:
        layer.load_state_dict(lazy.state_dict())
        assert is_lazy(layer.values) and layer.in_channels == -1
        assert layer.sparsity == 0.5 and layer.col.numel() == 0
        dtype = layer.values.dtype
        out = layer(torch.randn(3, 6, dtype=dtype))
        assert out.shape == (3, 4) and layer.values.numel() == 12
        assert layer.values.dtype == layer.bias.dtype


def test_state_dict_of_other_precision():
    layer, other = build(), build(sparsity=0.2).double()
    layer.load_state_dict(other.state_dict())
    assert layer.values.dtype == torch.float
    torch.testing.assert_close(layer.weight, other.weight.float())
    layer.load_state_dict(other.state_dict(), assign=True)
    assert_equal(layer, other)


def test_state_dict_that_does_not_fit():
    model = torch.nn.Sequential(build(), build())
    before, state = state_of(model), state_of(model)
    for key, value, match in [
        ('1.values', torch.randn(3), "1: 'values' .* shape of 'col'"),
        ('1.rowptr', torch.zeros(6).int(), "1: 'rowptr' .* hold 5"),
        ('1.col', state['1.col'] + 8, r"1: 'col' .* \[0, 8\)"),
        ('1.colptr', torch.zeros(8).int(), "1: 'colptr' .* 8 columns"),
        ('1.colptr', 10**6 * state['1.colptr'], "1: 'colptr' .* 8 columns"),
    ]:
        with pytest.raises(RuntimeError, match=match):
            model.load_state_dict({**state, key: value})
        after = model.state_dict()
        assert all(torch.equal(after[key], before[key]) for key in before)
    values = {'values': torch.ones(16)}
    assert len(model[0].load_state_dict(values, strict=False)[0]) == 4
    assert model[0].values.eq(1).all()


def test_meta_device():
    layer = build()
    for size in [(8, 4), (-1, 4)]:
        for sparsity in [0.5, 0.8]:
            with torch.device('meta'):
                other = build(*size, sparsity=sparsity)
            assert other.values.is_meta and other.bias.is_meta
            assert all(x.is_meta for x in other.buffers())
            other.load_state_dict(layer.state_dict(), assign=True)
            assert_equal(other, layer)
    with torch.device('meta'):
        other = build(4096, 4096, sparsity=0.99)
    assert other.values.numel() == 167772
    other.to_empty(device='cpu')  # Draws the pattern.
    assert other(torch.ones(3, 4096)).isfinite().all()
    with torch.device('meta'):
        other = build(seed=1)
    assert torch.equal(other.to_empty(device='cpu').mask, build(seed=1).mask)


@pytest.mark.parametrize('swap', [False, True])
def test_conversions(swap):
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        layer = build()
        layer(torch.randn(3, 8)).sum().backward()
        layer = layer.double()
        assert layer.values.grad.dtype == torch.double
        assert layer.col.dtype == torch.int32
        x = torch.randn(3, 8).double()
        torch.testing.assert_close(
            layer(x), F.linear(x, layer.weight, layer.bias)
        )
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_tools_of_torch(ext):
    layer, x = build(), torch.randn(3, 8)
    expected = layer(x)
    vector = parameters_to_vector(layer.parameters())
    assert vector.shape == (20,)
    state = {key: 2 * value for key, value in layer.named_parameters()}
    out = functional_call(layer, state, (x,))
    torch.testing.assert_close(out, 2 * expected)
    vector_to_parameters(2 * vector.detach(), layer.parameters())
    torch.testing.assert_close(layer(x), 2 * expected)

    layer = build()
    bias = layer.bias.detach().clone()
    register_parametrization(layer, 'bias', Double())
    torch.testing.assert_close(layer(x), expected + bias)


@pytest.mark.parametrize('name', ['SGD', 'Adam', 'AdamW', 'Adagrad'])
def test_trains_as_a_masked_layer(ext, name):
    layer = build()
    dense, mask = layer.to_dense(), layer.mask
    x, y = torch.randn(64, 8), torch.randn(64, 4)
    for model in [layer, dense]:
        optimizer = getattr(torch.optim, name)(
            model.parameters(), lr=0.1, weight_decay=0.01
        )
        for _ in range(5):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            if model is dense:
                dense.weight.grad.mul_(mask)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    torch.testing.assert_close(layer.weight, dense.weight)
    torch.testing.assert_close(layer.bias, dense.bias)


def test_mixed_precision(ext):
    layer, x = build(), torch.randn(64, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**16)
    y, losses = torch.randn(64, 4), []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = layer(x)
            assert out.dtype == torch.bfloat16
        loss = F.mse_loss(out.float(), y)
        scaler.scale(loss).backward()
        assert layer.values.grad.dtype == torch.float
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_compile(ext):
    layer, num_graphs = build(), []

    def backend(graph, inputs):
        num_graphs.append(1)
        return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for num_rows in [5, 7, 9, 600, 64]:
        x = torch.randn(num_rows, 8, requires_grad=True)
        inputs = [x, *layer.parameters()]
        out, expected = compiled(x), layer(x)
        torch.testing.assert_close(out, expected)
        grads = torch.autograd.grad(out.square().sum(), inputs)
        others = torch.autograd.grad(expected.square().sum(), inputs)
        for a, b in zip(grads, others):
            torch.testing.assert_close(a, b)
        layer.reset_mask()  # Moves weights in-place.
    assert len(num_graphs) == 2  # Fixed and dynamic number of rows.
    for shape in [(8,), (2, 3, 8)]:
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), layer(x))


def sparse_features(*size, **kwargs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator)
    x *= torch.rand(size, generator=generator) < 0.3
    return x.to(**kwargs), x.to(**kwargs).to_sparse_csr()


@withDevice
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_sparse_features(device, ext, bias, dtype):
    layer = build(bias=bias).to(device, dtype)
    x, rows = sparse_features(20, 8, device=device, dtype=dtype)
    out, expected = layer(rows), layer(x)
    torch.testing.assert_close(out, expected)
    params = list(layer.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), params),
        torch.autograd.grad(expected.square().sum(), params),
    )


def test_sparse_features_of_lazy_layers(ext):
    x, rows = sparse_features(20, 8)
    layer = build(-1, 4)
    torch.testing.assert_close(layer(rows), layer(x))
    assert layer.in_channels == 8


def test_sparse_features_in_checkpoints(ext):
    layer, (x, rows) = build(), sparse_features(20, 8)
    checkpoint(layer, rows, use_reentrant=False).square().sum().backward()
    expected = torch.autograd.grad(layer(x).square().sum(), layer.values)[0]
    torch.testing.assert_close(layer.values.grad, expected)


def test_sparse_features_compiled(ext):
    layer, (x, rows) = build(), sparse_features(20, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend='aot_eager')
    for inputs in [rows, x, rows]:
        out = compiled(inputs)
        torch.testing.assert_close(out, layer(x))
        grad = torch.autograd.grad(out.square().sum(), layer.values)[0]
        expected = torch.autograd.grad(layer(x).square().sum(), layer.values)
        torch.testing.assert_close(grad, expected[0])


def test_sparse_features_of_other_layouts(ext):
    layer, (x, _) = build(), sparse_features(20, 8)
    with pytest.raises(ValueError, match="Call 'x.to_sparse_csr"):
        layer(x.to_sparse())
    with pytest.raises(ValueError, match="Call 'x.to_sparse_csr"):
        layer(x.to_sparse_csc())


@pytest.mark.parametrize('shape', [(5, 8), (5, 6, 8)])
def test_export(ext, shape):
    layer = build()
    dims = {i: torch.export.Dim(f'd{i}') for i in range(len(shape) - 1)}
    program = torch.export.export(
        layer, (torch.randn(shape),), dynamic_shapes=(dims,)
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(*[size + 3 for size in shape[:-1]], 8)
    for out in [program, torch.export.load(file)]:
        torch.testing.assert_close(out.module()(x), layer(x))


def run_rank(path):
    rank = dist.get_rank()
    torch.manual_seed(rank)
    layer = SparseLinear(8, 4, sparsity=0.5)  # Differs between ranks.
    model = torch.nn.parallel.DistributedDataParallel(layer)
    states = [state_of(layer)]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(7))
    # Broadcasting buffers in a second pass must not affect the first one.
    loss = model(x[2 * rank : 2 * rank + 1]).square().sum()
    loss = loss + model(x[2 * rank + 1 : 2 * rank + 2]).square().sum()
    loss.backward()
    optimizer.step()
    torch.save([*states, state_of(layer)], f'{path}/{rank}.pt')


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    first, second = (torch.load(tmp_path / f'{r}.pt') for r in range(2))
    for a, b in zip(first, second):
        assert all(torch.equal(a[key], b[key]) for key in a)

    layer = SparseLinear(8, 4)
    layer.load_state_dict(first[0])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(7))
    (layer(x).square().sum() / 2).backward()
    optimizer.step()
    torch.testing.assert_close(state_of(layer), first[1])
