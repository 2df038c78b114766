import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import prototype_loss
from torch_geometric_ext.ops.prototype_loss import (
    prototype_loss_backward_reference,
    prototype_loss_reference,
)

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)
LOSS = (0.1, 0.3, 0.7)  # Temperature and weights.


def make_inputs(B=7, E=5, H=6, D=4, C=3, K=2, seed=12345, **kwargs):
    kwargs = {'dtype': torch.double, **kwargs}
    torch.manual_seed(seed)
    h, weight1, weight2, prototypes = (
        torch.randn(*size, **kwargs).requires_grad_()
        for size in [(B, E), (H, E), (D, H), (C, K, D)]
    )
    y = torch.randint(C, (B,), device=h.device)
    return h, y, weight1, weight2, prototypes


def kernel(*args):
    return torch.ops.torch_geometric_ext.prototype_loss(*args)


def assert_equal_to_reference(inputs, loss=LOSS):
    out = kernel(*inputs, *loss)
    expected = prototype_loss_reference(*inputs, *loss)
    for a, b in zip(out, expected):
        torch.testing.assert_close(a, b)

    params = [x for x in inputs if x.requires_grad]
    grads = torch.autograd.grad(out[0], params)
    expected_grads = torch.autograd.grad(expected[0], params)
    for a, b in zip(grads, expected_grads):
        torch.testing.assert_close(a, b)

    analytic = prototype_loss_backward_reference(
        torch.ones_like(out[0]), *inputs, *expected[2:], *loss
    )
    for a, b in zip(analytic, expected_grads):
        torch.testing.assert_close(a, b)


@withKernels
@given(
    B=st.integers(0, 9),
    E=st.integers(1, 5),
    H=st.integers(1, 6),
    D=st.integers(2, 5),
    C=st.integers(2, 4),
    K=st.integers(1, 6),
    temperature=st.sampled_from([0.05, 0.5, 2.0]),
    seed=st.integers(0, 1000),
)
def test_prototype_loss_equals_reference(temperature, **kwargs):
    inputs = make_inputs(**kwargs)
    assert_equal_to_reference(inputs, (temperature, 0.3, 0.7))


@withKernels
@pytest.mark.parametrize('C', [2, 40])
def test_prototype_loss_equals_reference_on_large_input(C):
    # Large products and maps go to library routines:
    assert_equal_to_reference(make_inputs(B=300, E=64, H=32, D=48, C=C, K=3))


@withKernels
def test_prototype_loss_of_non_contiguous_input():
    h, y, weight1, weight2, prototypes = make_inputs(E=6, H=6, D=6)
    h = h.detach().t().contiguous().t().requires_grad_()
    y = torch.stack([y, y], dim=1)[:, 0]
    prototypes = prototypes.detach().transpose(0, 1).contiguous()
    prototypes = prototypes.transpose(0, 1).requires_grad_()
    inputs = h, y, weight1.t(), weight2.t(), prototypes
    assert not any(x.is_contiguous() for x in inputs)
    out = kernel(*inputs, *LOSS)[0]
    expected = prototype_loss_reference(*inputs, *LOSS)[0]
    torch.testing.assert_close(out, expected)
    for a, b in zip(
        torch.autograd.grad(out, [h, prototypes]),
        torch.autograd.grad(expected, [h, prototypes]),
    ):
        torch.testing.assert_close(a, b)


def test_prototype_loss_formulas(ext):
    h, y, weight1, weight2, prototypes = make_inputs(K=3)
    (C, K, D), tau = prototypes.shape, LOSS[0]
    z = F.normalize((h @ weight1.t()).relu() @ weight2.t(), dim=-1)
    p = F.normalize(prototypes, dim=-1)

    compactness, scores = torch.zeros(()), []
    for i, c in enumerate(y.tolist()):
        similarity = (p @ z[i] / tau).exp()
        compactness = compactness - (
            similarity[c].sum() / similarity.sum()
        ).log() / len(y)

        offset = z[i] - p[c]
        centered = p[c] - p[c].mean(dim=0)
        cov = 0.5 * centered.t() @ centered / K + 0.5 * torch.eye(D) / D
        risk = torch.stack([v @ cov.inverse() @ v for v in offset]).max()
        angle = (p @ z[i]).acos()
        unfamiliarity = angle[c].sum() / (angle.sum() - angle[c].sum())
        nearest = (p @ z[i]).flatten().argmax().double()
        scores.append(torch.stack([risk, unfamiliarity, nearest]))

    separation = torch.zeros(())
    for c in range(C):
        others = torch.cat([p[j] for j in range(C) if j != c])
        for k in range(K):
            similarity = (others @ p[c, k] / tau).exp()
            separation = separation + similarity.mean().log() / (C * K)

    out = prototype_loss(h, y, weight1, weight2, prototypes, *LOSS)
    expected = 0.3 * compactness + 0.7 * separation
    torch.testing.assert_close(out[0], expected)
    torch.testing.assert_close(out[1], torch.stack(scores))
    assert not out[1].requires_grad


def test_prototype_loss_of_nearest_only(ext):
    inputs = make_inputs()
    loss, scores = prototype_loss(*inputs, *LOSS)
    grads = torch.autograd.grad(loss, inputs[2:])
    out = prototype_loss(*inputs, *LOSS, nearest_only=True)
    assert torch.equal(out[0], loss)
    assert torch.equal(out[1][:, 2], scores[:, 2])
    assert (scores[:, :2] > 0).all() and (out[1][:, :2] == 0).all()
    for a, b in zip(torch.autograd.grad(out[0], inputs[2:]), grads):
        assert torch.equal(a, b)


def test_prototype_loss_gradcheck(ext):
    h, y, *params = make_inputs(H=12)

    def loss(h, *params):
        return prototype_loss(h, y, *params, *LOSS)[0]

    assert torch.autograd.gradcheck(loss, (h, *params))
    assert torch.autograd.gradgradcheck(loss, (h, *params))


@pytest.mark.parametrize('dtype', [torch.float, torch.double])
def test_prototype_loss_is_finite_at_low_temperature(dtype, ext):
    inputs = make_inputs(C=4, dtype=dtype)
    inputs[1].clamp_(max=2)  # One class is absent.
    loss, scores = prototype_loss(*inputs, 1e-3, 1.0, 1.0)
    loss.backward()
    assert loss.isfinite() and scores.isfinite().all()
    for x in [inputs[0], *inputs[2:]]:
        assert x.grad.isfinite().all()
    assert inputs[-1].grad.abs().sum() > 0


def test_prototype_loss_of_degenerate_input(ext):
    h, y, weight1, weight2, prototypes = make_inputs()
    h = torch.zeros_like(h).requires_grad_()  # Zero norm.
    prototypes = torch.ones_like(prototypes).requires_grad_()  # Equal.
    inputs = h, y, weight1, weight2, prototypes
    loss, scores = prototype_loss(*inputs, *LOSS)
    loss.backward()
    assert loss.isfinite() and scores.isfinite().all()
    for x in [h, weight1, weight2, prototypes]:
        assert x.grad.isfinite().all()


def test_prototype_loss_propagates_nan(ext):
    inputs = make_inputs()
    with torch.no_grad():
        inputs[0][2, 0] = float('nan')
    loss, scores = prototype_loss(*inputs, *LOSS)
    assert loss.isnan() and scores[2, 0].isnan()
    assert scores[[0, 1, 3]].isfinite().all()


def test_prototype_loss_double_backward_under_autocast(ext):
    h, y, *params = make_inputs(dtype=torch.float)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = prototype_loss(h, y, *params, *LOSS)[0]
        (grad,) = torch.autograd.grad(loss, h, create_graph=True)
        grad.square().sum().backward()
    assert h.grad.dtype == torch.float and h.grad.isfinite().all()


def test_prototype_loss_errors(ext):
    h, y, *params = make_inputs()
    for label in [-1, 3]:
        y[0] = label
        with pytest.raises(ValueError, match=r"'y' needs .* in \[0, 3\)"):
            prototype_loss(h, y, *params, *LOSS)


@withKernels
def test_prototype_loss_opcheck():
    op = torch.ops.torch_geometric_ext.prototype_loss
    inputs = make_inputs()
    torch.library.opcheck(op.default, (*inputs, *LOSS))
    torch.library.opcheck(op.default, (*inputs, *LOSS, True))
    h, y, *params = inputs
    _, _, hidden, embedding = op(*inputs, *LOSS)
    args = torch.ones_like(h[0, 0]), *inputs, hidden, embedding, *LOSS
    args = [x.detach() if isinstance(x, torch.Tensor) else x for x in args]
    torch.library.opcheck(
        torch.ops.torch_geometric_ext.prototype_loss_backward.default,
        tuple(args),
    )


def test_prototype_loss_input_errors(ext):
    op = kernel if ext else prototype_loss_reference
    h, y, weight1, weight2, prototypes = make_inputs()
    for inputs, message in [
        ((h, y[1:], weight1, weight2, prototypes), "'y' needs to be an int64"),
        (
            (h, y.int(), weight1, weight2, prototypes),
            "'y' needs",
        ),
        ((h[0], y, weight1, weight2, prototypes), "'h' needs to be a float"),
        ((h, y, weight1, weight2, prototypes[:1]), 'at least two classes'),
        ((h, y, weight1, weight2, prototypes[0]), 'at least two classes'),
        ((h, y, weight1, weight2, prototypes[..., 1:]), 'need to lead from'),
        ((h, y, weight1, weight2[1:], prototypes), 'need to lead from'),
        ((h, y, weight1[:, 1:], weight2, prototypes), 'need to lead from'),
        (
            (h, y, weight1, weight2.float(), prototypes),
            "'weight2' needs to be of the type of 'h'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            op(*inputs, *LOSS)
    with pytest.raises(ValueError, match="'temperature' needs to be positive"):
        op(h, y, weight1, weight2, prototypes, 0.0, *LOSS[1:])


@torch.inference_mode()  # Autograd would call the reference.
def test_prototype_loss_backward_errors(ext):
    op = prototype_loss_backward_reference
    if ext:
        op = torch.ops.torch_geometric_ext.prototype_loss_backward
    inputs = [x.detach().clone() for x in make_inputs()]
    grad, hidden, embedding = (
        torch.ones(size, dtype=torch.double) for size in [(), (7, 6), (7, 4)]
    )
    op(grad, *inputs, hidden, embedding, *LOSS)
    for args in [
        (grad, *inputs, hidden[1:], embedding),
        (grad, *inputs, hidden, embedding[:, 1:]),
        (hidden, *inputs, hidden, embedding),
    ]:
        with pytest.raises(ValueError, match='from the same forward pass'):
            op(*args, *LOSS)
    inputs[1] += 10**8
    with pytest.raises(ValueError, match="'y' needs to hold labels"):
        op(grad, *inputs, hidden, embedding, *LOSS)


@withDevice
def test_prototype_loss_device(device, ext):
    inputs = make_inputs(device=device)
    loss, scores = prototype_loss(*inputs, *LOSS)
    loss.backward()
    cpu = [x.detach().cpu().requires_grad_(x.requires_grad) for x in inputs]
    expected, expected_scores = prototype_loss(*cpu, *LOSS)
    expected.backward()
    torch.testing.assert_close(loss.cpu(), expected)
    torch.testing.assert_close(scores.cpu(), expected_scores)
    for a, b in zip(inputs, cpu):
        if a.requires_grad:
            torch.testing.assert_close(a.grad.cpu(), b.grad)
