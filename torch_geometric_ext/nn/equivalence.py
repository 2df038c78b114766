"""Check whether two ways to compute a model are equivalent."""

import copy
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

NOISE = 0.02  # Standard deviation; zero-initialized parameters hide faults.
DROPOUTS = [
    F.dropout,
    F.alpha_dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.alpha_dropout,
    torch.feature_dropout,
    torch.feature_alpha_dropout,
]
RANDOM_RELUS = [F.rrelu, torch.rrelu, torch.rrelu_]

Results = Dict[str, Optional[Tensor]]


class NoDropout(TorchFunctionMode):
    """Run functional and module dropout as the identity, and randomized
    activations as in evaluation.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs['input']
        if func in RANDOM_RELUS:
            args, kwargs = args[:3], {**kwargs, 'training': False}
        return func(*args, **kwargs)


class DropoutSpy(TorchFunctionMode):
    """Note whether dropout drops anything, in :obj:`found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Tuple[Any, ...] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            named = {**dict(zip(['input', 'p', 'training'], args)), **kwargs}
            default = 'alpha' not in func.__name__  # As PyTorch has it.
            is_on = named.get('training', named.get('train', default))
            self.found |= is_on and named.get('p', 0.5) > 0
        return func(*args, **kwargs)


@contextmanager
def fork_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random generators for a while, then restore them."""
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def perturb_parameters(model: Module) -> Module:
    """Add noise to all parameters of a model, in place."""
    for param in model.parameters():
        if param.is_floating_point():
            param.data += NOISE * torch.randn_like(param)
    return model


def run(
    model: Module,
    forward: Callable[[Module], Tensor],
    *,
    training: bool,
    seed: int = 0,
) -> Results:
    """Return the output of a model and its gradients by parameter name.

    The model is copied and the random generators are restored. Dropout is the
    identity. Gradients are those of a weighted sum of the output; they are
    left out in evaluation mode.

    Args:
        model (torch.nn.Module): The model.
        forward (Callable): Computes the output from a copy of the model.
        training (bool): Whether the copy is in training mode.
        seed (int, optional): Seed of models that draw random numbers.
            (default: :obj:`0`)
    """
    model = copy.deepcopy(model).train(training)
    device = next((x.device for x in model.parameters()), torch.device('cpu'))
    with fork_rng(seed, device), NoDropout():
        out = forward(model)
        if not training or not out.requires_grad:
            return {'': out.detach()}
        weight = torch.linspace(1, 2, out.numel(), device=out.device)
        loss = (out * weight.to(out.dtype).view_as(out)).sum()
        params = {
            name: param
            for name, param in model.named_parameters()
            if param.requires_grad
        }
        grads = torch.autograd.grad(
            loss, list(params.values()), allow_unused=True
        )
    return {'': out.detach(), **dict(zip(params, grads))}


def is_close(
    found: Results,
    expected: Mapping[str, Optional[Tensor]],
    zero: float = 0.0,
) -> bool:
    r"""Return whether all tensors agree up to the order of their sums.

    The tolerance is :math:`\sqrt{\epsilon}` of the largest magnitude of each
    tensor, half of the digits of its data type (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, Sec. 3.1): reordered sums of
    :math:`n` terms differ by about :math:`\sqrt{n} \epsilon`, other formulas
    by more. A gradient below :math:`100 \epsilon`, or :obj:`zero`, of the
    largest tensor may be the rounding error of a zero.
    """
    if found.keys() != expected.keys():
        return False
    scales = {key: _magnitude(x) for key, x in expected.items()}
    largest = max(scales.values(), default=0.0)
    return all(
        _agree(x, expected[key], scales[key], largest, zero)
        for key, x in found.items()
    )


def _agree(
    a: Optional[Tensor],
    b: Optional[Tensor],
    scale: float,
    largest: float,
    zero: float,
) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    eps = torch.finfo(a.dtype).eps
    atol = eps**0.5 * scale + max(100 * eps, zero) * largest
    return torch.allclose(a, b, rtol=0, atol=atol)


def _magnitude(x: Optional[Tensor]) -> float:
    return 0.0 if x is None or x.numel() == 0 else float(x.abs().max())
