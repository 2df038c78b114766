import copy
import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from devices import withDevice
from torch_geometric_ext.nn import HypersphericalPrototypes


@withDevice
def test_hyperspherical_prototypes(device, ext):
    prototypes = HypersphericalPrototypes(16, num_classes=3).to(device)
    assert str(prototypes) == (
        'HypersphericalPrototypes(16, num_classes=3, num_prototypes=2, '
        'embedding_dim=32)'
    )
    assert prototypes.prototypes.size() == (3, 2, 32)
    norm = prototypes.prototypes.norm(dim=-1)
    torch.testing.assert_close(norm, torch.ones_like(norm))

    h = torch.randn(5, 16, device=device, requires_grad=True)
    y = torch.tensor([0, 1, 1, 0, 0], device=device)
    loss, scores = prototypes(h, y)
    assert loss.size() == () and scores.size() == (5, 3)
    assert (scores[:, :2] >= 0).all() and (scores[:, 2] < 6).all()

    loss.backward()
    for x in [h, *prototypes.parameters()]:
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_hyperspherical_prototypes_ignore_scales(ext):
    prototypes = HypersphericalPrototypes(8, num_classes=2)
    h, y = torch.randn(6, 8), torch.randint(2, (6,))
    loss, scores = prototypes(h, y)
    with torch.no_grad():
        prototypes.prototypes.mul_(3.0)
    for out, expected in zip(prototypes(7 * h, y), (loss, scores)):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_hyperspherical_prototypes_learn(ext):
    torch.manual_seed(12345)
    prototypes = HypersphericalPrototypes(
        8, num_classes=3, compactness_weight=1.0, separation_weight=1.0
    )
    y = torch.arange(60) % 3
    h = torch.randn(3, 8)[y] + 0.1 * torch.randn(60, 8)
    optimizer = torch.optim.Adam(prototypes.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss, scores = prototypes(h, y)
        loss.backward()
        optimizer.step()
    assert torch.equal(
        scores[:, 2].long() // 2, y
    )  # The class of the nearest prototype.
    assert scores[:, 1].max() < 0.3  # 0.5 at equal angles.


def test_hyperspherical_prototypes_state(ext):
    prototypes = HypersphericalPrototypes(8, num_classes=2)
    h, y = torch.randn(6, 8), torch.randint(2, (6,))
    other = HypersphericalPrototypes(8, num_classes=2)
    assert not torch.equal(other(h, y)[0], prototypes(h, y)[0])
    other.load_state_dict(prototypes.state_dict())
    assert torch.equal(other(h, y)[0], prototypes(h, y)[0])
    assert torch.equal(copy.deepcopy(other)(h, y)[0], prototypes(h, y)[0])


def test_hyperspherical_prototypes_precision(ext):
    prototypes = HypersphericalPrototypes(8, num_classes=2)
    h, y = torch.randn(6, 8), torch.randint(2, (6,))
    expected = prototypes(h, y)[0]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss, scores = prototypes(h, y)
        assert loss.dtype == scores.dtype == torch.float
        if ext:  # The kernel computes in full precision.
            assert torch.equal(loss, expected)
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.1)
    assert prototypes(h.bfloat16(), y)[0].dtype == torch.float
    assert prototypes.double()(h, y)[0].dtype == torch.double


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize(
    'input_dtype', [torch.half, torch.bfloat16, torch.float]
)
@pytest.mark.parametrize('with_labels', [True, False])
@pytest.mark.parametrize('autocast', [None, torch.half, torch.bfloat16])
def test_hyperspherical_prototypes_half_precision(
    dtype, input_dtype, with_labels, autocast, ext
):
    prototypes = HypersphericalPrototypes(8, num_classes=2).to(dtype)
    h = torch.randn(6, 8, dtype=input_dtype, requires_grad=True)
    y = torch.randint(2, (6,)) if with_labels else None
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        loss, scores = prototypes(h, y)
    loss.backward()
    assert loss.dtype == scores.dtype == torch.float
    single = copy.deepcopy(prototypes).float()
    inputs = h.detach().float().requires_grad_()
    expected = single(inputs, y)
    expected[0].backward()
    torch.testing.assert_close((loss, scores), expected)
    tensors = [h, *prototypes.parameters()]
    for a, b in zip(tensors, [inputs, *single.parameters()]):
        assert a.grad.dtype == a.dtype
        torch.testing.assert_close(a.grad, b.grad.to(a.dtype))


@pytest.mark.parametrize('with_labels', [True, False])
def test_hyperspherical_prototypes_compile(with_labels, ext):
    prototypes = HypersphericalPrototypes(8, num_classes=2)
    h = torch.randn(6, 8, requires_grad=True)
    y = torch.randint(2, (6,)) if with_labels else None
    expected = prototypes(h, y)
    (grad,) = torch.autograd.grad(expected[0], h)

    torch._dynamo.reset()
    compiled = torch.compile(prototypes, fullgraph=True, backend='aot_eager')
    out = compiled(h, y)
    for a, b in zip(out, expected):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.autograd.grad(out[0], h)[0], grad)


def test_hyperspherical_prototypes_errors():
    for kwargs, message in [
        (dict(num_classes=1), r"'num_classes' .* at least 2 \(got 1\)"),
        (dict(num_prototypes=0), r"'num_prototypes' .* at least 1 \(got 0\)"),
        (dict(embedding_dim=1), r"'embedding_dim' .* at least 2 \(got 1\)"),
        (dict(in_channels=0), r"'in_channels' .* at least 1 \(got 0\)"),
        (dict(num_balance_steps=-1), r"'num_balance_steps' .* \(got -1\)"),
        (dict(temperature=0), r"'temperature' .* positive \(got 0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            HypersphericalPrototypes(
                **{'in_channels': 8, 'num_classes': 2, **kwargs}
            )

    prototypes = HypersphericalPrototypes(8, num_classes=2)
    h, y = torch.randn(4, 8), torch.randint(2, (4,))
    with pytest.raises(
        ValueError, match=r'\[batch_size, 8\].* \(got \[4, 7\]'
    ):
        prototypes(h[:, :7], y)
    with pytest.raises(ValueError, match=r"'y' .* shape \[4\], .* \[4, 1\]"):
        prototypes(h, y.view(-1, 1))
    with pytest.raises(TypeError, match=r"'y' .* \(got torch.float32\)"):
        prototypes(h, y.float())
    with pytest.raises(
        ValueError, match=r"'y' needs to hold labels in \[0, 2"
    ):
        prototypes(h, y + 2)


def phi_of(distance, temperature):
    """Return concentrations by a loop over prototypes."""
    phi = [
        x.sum() / (len(x) * math.log(len(x) + 10)) if len(x) > 0 else None
        for x in distance
    ]
    used = [x for x in phi if x is not None]
    mean = sum(used) / len(used)
    ratio = [1.0 if x is None else float(x / mean) for x in phi]
    return torch.tensor([temperature * min(max(x, 0.5), 2.0) for x in ratio])


@torch.no_grad()
def test_virtual_classes_equal_formulas(ext):
    torch.manual_seed(12345)
    prototypes = HypersphericalPrototypes(
        5, num_classes=3, num_balance_steps=0, separation_weight=0.0
    ).double()
    h = torch.randn(9, 5, dtype=torch.double)
    loss, scores = prototypes(h)

    z = F.linear(h, prototypes.lin1.weight).relu()
    z = F.normalize(F.linear(z, prototypes.lin2.weight), dim=-1)
    p = F.normalize(prototypes.prototypes, dim=-1)
    posterior = (p @ z.t() / 0.1).exp().sum(dim=1)  # [C, B]
    label = posterior.argmax(dim=0)
    torch.testing.assert_close(prototypes(h, label)[1], scores)

    own = [
        2 * c + int((p[c] @ z[i]).argmax())
        for i, c in enumerate(label.tolist())
    ]
    p = p.flatten(0, 1)
    distance = [
        torch.stack([(z[i] - p[j]).norm() for i in range(9) if own[i] == j])
        if j in own
        else torch.empty(0)
        for j in range(6)
    ]
    phi = phi_of(distance, 0.1).double()
    logit = p @ z.t() / phi.view(-1, 1)
    expected = F.cross_entropy(logit.t(), torch.tensor(own))
    torch.testing.assert_close(loss, 0.1 * expected)


def test_virtual_classes_gradcheck(ext):
    prototypes = HypersphericalPrototypes(5, num_classes=3).double()
    h = torch.randn(9, 5, dtype=torch.double, requires_grad=True)
    params = dict(prototypes.named_parameters())

    # Concentrations have no gradient, hence they are kept fixed:
    fixed = {}

    def loss(h, *values):
        weights = dict(zip(params, values))
        return torch.func.functional_call(prototypes, weights, (h,))[0]

    module = importlib.import_module('torch_geometric_ext.nn.virtual_classes')
    original = module.concentration
    try:
        module.concentration = lambda *args: fixed.setdefault(
            'phi', original(*args)
        )
        assert torch.autograd.gradcheck(loss, (h, *params.values()))
    finally:
        module.concentration = original


@withDevice
@pytest.mark.parametrize('temperature', [1e-3, 0.1])
@pytest.mark.parametrize('batch_size', [0, 1, 2, 40])
def test_virtual_classes(temperature, batch_size, device):
    prototypes = HypersphericalPrototypes(
        8, num_classes=4, temperature=temperature
    ).to(device)
    h = torch.randn(batch_size, 8, device=device, requires_grad=True)
    loss, scores = prototypes(h)
    loss.backward()
    assert loss.isfinite() and scores.isfinite().all()
    assert scores.size() == (batch_size, 3) and not scores.requires_grad
    for x in [h, *prototypes.parameters()]:
        assert x.grad.isfinite().all()
    out = prototypes(h, nearest_only=True)
    assert torch.equal(out[0], loss)
    assert torch.equal(out[1][:, 2], scores[:, 2])
    assert (out[1][:, :2] == 0).all()


def test_virtual_classes_of_degenerate_input():
    prototypes = HypersphericalPrototypes(8, num_classes=4)
    for h in [torch.zeros(6, 8), torch.ones(6, 8)]:
        prototypes.zero_grad()
        loss = prototypes(h)[0]
        loss.backward()
        assert loss.isfinite()
        for x in prototypes.parameters():
            assert x.grad.isfinite().all()


def virtual_class_sizes(num_balance_steps):
    """Train on nearly equal embeddings, with an encoder."""
    torch.manual_seed(12345)
    encoder = torch.nn.Linear(8, 8)
    prototypes = HypersphericalPrototypes(
        8, num_classes=4, num_balance_steps=num_balance_steps
    )
    x = 3.0 + torch.randn(256, 8)
    params = [*encoder.parameters(), *prototypes.parameters()]
    optimizer = torch.optim.Adam(params, lr=0.01)
    for i in range(80):
        optimizer.zero_grad()
        prototypes(encoder(x[torch.arange(i, i + 32) * 7 % 256]))[0].backward()
        optimizer.step()
    label = prototypes(encoder(x))[1][:, 2].long() // 2
    return label.bincount(minlength=4)


def test_virtual_classes_do_not_collapse():
    assert virtual_class_sizes(num_balance_steps=0).min() < 5
    assert virtual_class_sizes(num_balance_steps=3).min() > 30
