import copy

import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_geometric_ext.nn import HypersphericalPrototypes


@withCUDA
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


def test_hyperspherical_prototypes_compile(ext):
    prototypes = HypersphericalPrototypes(8, num_classes=2)
    h, y = torch.randn(6, 8, requires_grad=True), torch.randint(2, (6,))
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
