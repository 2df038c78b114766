import pytest
import torch
import torch.nn.functional as F
from torch.nn import Linear

from devices import withDevice
from torch_geometric_ext.utils import el2n_scores, grand_scores


@withDevice
def test_el2n_scores(device):
    logits = torch.randn(7, 3, device=device)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0], device=device)
    out = el2n_scores(logits, y)
    for i in range(7):
        error = logits[i].exp() / logits[i].exp().sum()
        error[y[i]] -= 1
        torch.testing.assert_close(out[i], (error**2).sum().sqrt())

    other = torch.randn(7, 3, device=device)
    torch.testing.assert_close(
        el2n_scores(torch.stack([logits, other]), y),
        (out + el2n_scores(other, y)) / 2,
    )
    # Half precision does not lose the scores of easy graphs:
    logits = torch.tensor([[9.0, 0.0]], device=device, requires_grad=True)
    out = el2n_scores(logits.bfloat16(), torch.tensor([0], device=device))
    assert not out.requires_grad and out.dtype == torch.float
    assert 1.7e-4 < float(out) < 1.8e-4


@withDevice
@pytest.mark.parametrize('bias', [True, False])
def test_grand_scores(device, bias):
    lin = Linear(5, 3, bias=bias).to(device)
    h = torch.randn(7, 5, device=device)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0], device=device)
    out = grand_scores(h, lin(h), y, bias=bias)
    for i in range(7):
        loss = F.cross_entropy(lin(h[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, list(lin.parameters()))
        norm = torch.cat([grad.view(-1) for grad in grads]).norm()
        torch.testing.assert_close(out[i], norm)

    averaged = grand_scores(
        torch.stack([h, h]), torch.stack([lin(h), lin(h)]), y, bias=bias
    )
    torch.testing.assert_close(averaged, out)


def test_errors():
    logits, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"'logits' .* \(got \[8\]\)"):
        el2n_scores(logits.view(-1), y)
    with pytest.raises(ValueError, match=r'shape \[4\] .* torch.float32'):
        el2n_scores(logits, y.float())
    with pytest.raises(ValueError, match=r'in \[0, 2\) \(got 1 to 2\)'):
        el2n_scores(logits, y + 1)
    with pytest.raises(ValueError, match=r"'h' .* \(got \[3, 5\]"):
        grand_scores(torch.randn(3, 5), logits, y)
