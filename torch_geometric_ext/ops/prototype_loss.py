import functools
import math
from typing import Any, Callable, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.ops.check_prototypes import (
    check_labels,
    check_tensors,
)
from torch_geometric_ext.ops.register import is_transformed, register_operator

# `csrc/cpu/prototype_loss_kernel.cpp` holds the same constants.
EPS = 1e-6  # Bounds norms and sums of angles from below.
SHRINKAGE = 0.5  # The weight of I / D in the covariance of Eq. (8).

Gradients = Tuple[Tensor, Tensor, Tensor, Tensor]


def prototype_loss(
    h: Tensor,
    y: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    prototypes: Tensor,
    temperature: float,
    compactness_weight: float,
    separation_weight: float,
    nearest_only: bool = False,
) -> Tuple[Tensor, Tensor]:
    r"""Compute the losses and scores of
    :class:`~torch_geometric_ext.nn.HypersphericalPrototypes` as one operator
    with an analytic gradient.

    Implements Eq. (6) to (9) of the `"GDeR: Safeguarding Efficiency,
    Balancing, and Robustness via Prototypical Graph Pruning"
    <https://arxiv.org/abs/2410.13761>`_ paper.
    :class:`~torch_geometric_ext.nn.HypersphericalPrototypes` documents the
    formulas and the deviations from the paper.

    Takes :math:`O(B (E H + H D + CKD) + (CK)^2 D)` time and
    :math:`O(B (H + D + CK) + (CK)^2)` memory. The operator ignores autocast.

    Args:
        h (torch.Tensor): The graph embeddings.
        y (torch.Tensor): The labels, in :math:`[0, C)`.
        weight1 (torch.Tensor): The weight of the first projection.
        weight2 (torch.Tensor): The weight of the second projection.
        prototypes (torch.Tensor): The prototypes. The operator normalizes
            them.
        temperature (float): The temperature :math:`\tau`.
        compactness_weight (float): The weight :math:`\lambda_1`.
        separation_weight (float): The weight :math:`\lambda_2`.
        nearest_only (bool, optional): If set to :obj:`True`, Eq. (8) and (9)
            are not computed, and their scores are zero.
            (default: :obj:`False`)

    Shapes:
        - **input:** :obj:`h` :math:`(B, E)`, :obj:`y` :math:`(B)` of
          :obj:`torch.int64`, :obj:`weight1` :math:`(H, E)`, :obj:`weight2`
          :math:`(D, H)`, :obj:`prototypes` :math:`(C, K, D)`, all but
          :obj:`y` of the same floating point dtype (single or double
          precision)
        - **output:** the weighted loss :math:`()`, and the scores
          :math:`(B, 3)`: outlier risk, unfamiliarity, and the position
          :math:`cK + k` of the nearest prototype; scores have no gradient

    Raises:
        ValueError: If a shape or dtype is invalid, :obj:`temperature` is not
            positive, or :obj:`y` holds a label outside :math:`[0, C)` (checked
            on CPU, and not under transforms of :mod:`torch.func`).
    """
    loss, scores, _, _ = _prototype_loss(
        h,
        y,
        weight1,
        weight2,
        prototypes,
        temperature,
        compactness_weight,
        separation_weight,
        nearest_only,
    )
    return loss, scores


def in_full_precision(func: Callable) -> Callable:
    """Disable autocast on the device of the first argument."""

    @functools.wraps(func)
    def wrapper(x: Tensor, *args: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return func(x, *args)

    return wrapper


@in_full_precision
def prototype_loss_reference(
    h: Tensor,
    y: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    prototypes: Tensor,
    temperature: float,
    compactness_weight: float,
    separation_weight: float,
    nearest_only: bool = False,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute :func:`prototype_loss` in plain PyTorch, and return the hidden
    features and embeddings of the projector, too.
    """
    check_tensors(h, y, weight1, weight2, prototypes, temperature)
    # Neither compiled code nor `vmap` can branch on labels:
    if not (torch.compiler.is_compiling() or is_transformed()):
        check_labels(y, prototypes.size(0))
    hidden = F.linear(h, weight1).relu()
    embedding = F.linear(hidden, weight2)
    z = F.normalize(embedding, dim=-1, eps=EPS)
    p = F.normalize(prototypes, dim=-1, eps=EPS)
    cosine = torch.einsum('bd,ckd->bck', z, p)  # [B, C, K]

    # Eq. (6):
    logit = cosine / temperature
    own = _of_class(logit, y)
    compactness = logit.flatten(1).logsumexp(-1) - own.logsumexp(-1)
    loss = compactness_weight * compactness.sum() / max(h.size(0), 1)

    loss = loss + separation_weight * separation_loss(p, temperature)
    scores = prototype_scores(z, p, cosine, y, nearest_only)
    return loss, scores, hidden, embedding


def separation_loss(p: Tensor, temperature: float) -> Tensor:
    """Compute Eq. (7) between normalized prototypes of shape [C, K, D]."""
    logit = _across_classes(p) / temperature
    return logit.logsumexp(-1).mean() - math.log(logit.size(1))


@torch.no_grad()
def prototype_scores(
    z: Tensor, p: Tensor, cosine: Tensor, y: Tensor, nearest_only: bool
) -> Tensor:
    """Compute the scores of :func:`prototype_loss`.

    Args:
        z (torch.Tensor): The normalized embeddings, of shape [B, D].
        p (torch.Tensor): The normalized prototypes, of shape [C, K, D].
        cosine (torch.Tensor): Their cosines, of shape [B, C, K].
        y (torch.Tensor): The labels, of shape [B].
        nearest_only (bool): If set to :obj:`True`, only the last column is
            computed.
    """
    nearest = cosine.flatten(1).argmax(-1).to(z.dtype)
    if nearest_only:
        return F.pad(nearest.view(-1, 1), (2, 0))
    return torch.stack(
        [
            _outlier_risk(z, p, _of_class(cosine, y), y),
            _unfamiliarity(cosine, y),
            nearest,
        ],
        dim=-1,
    )


@in_full_precision
def prototype_loss_backward_reference(
    grad_loss: Tensor,
    h: Tensor,
    y: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    prototypes: Tensor,
    hidden: Tensor,
    embedding: Tensor,
    temperature: float,
    compactness_weight: float,
    separation_weight: float,
) -> Gradients:
    """Compute the analytic gradient of :func:`prototype_loss` in plain
    PyTorch.
    """
    check_tensors(h, y, weight1, weight2, prototypes, temperature)
    check_labels(y, prototypes.size(0))
    if (
        grad_loss.numel() != 1
        or hidden.shape != (h.size(0), weight1.size(0))
        or embedding.shape != (h.size(0), weight2.size(0))
        or len({x.dtype for x in [grad_loss, h, hidden, embedding]}) > 1
    ):
        raise ValueError(
            f"prototype_loss_backward: 'grad_loss', 'hidden' and 'embedding' "
            f'need to come from the same forward pass (got '
            f'{list(grad_loss.shape)}, {list(hidden.shape)} and '
            f'{list(embedding.shape)})'
        )
    args = (weight1, weight2, prototypes, hidden, embedding)
    scales = (temperature, compactness_weight, separation_weight)
    return _backward(grad_loss, h, y, *args, *scales)


def _backward(
    grad_loss: Tensor,
    h: Tensor,
    y: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    prototypes: Tensor,
    hidden: Tensor,
    embedding: Tensor,
    temperature: float,
    compactness_weight: float,
    separation_weight: float,
) -> Gradients:
    z = F.normalize(embedding, eps=EPS)
    p = F.normalize(prototypes.flatten(0, 1), eps=EPS)
    logit = z @ p.t() / temperature

    # Gradient of Eq. (6) by the cosines between graphs and prototypes:
    num_classes, num_prototypes, _ = prototypes.shape
    label = torch.arange(num_classes, device=y.device)
    other = (y.view(-1, 1) != label).repeat_interleave(num_prototypes, dim=1)
    own = logit.masked_fill(other, float('-inf')).softmax(-1)
    scale = grad_loss * compactness_weight / temperature / max(h.size(0), 1)
    grad_cosine = (logit.softmax(-1) - own) * scale

    # Gradient of Eq. (7) by the cosines between prototypes:
    scale = grad_loss * separation_weight / temperature / p.size(0)
    logit = _across_classes(p.view_as(prototypes)) / temperature
    columns = _columns_across_classes(prototypes)
    grad_gram = p.new_zeros(p.size(0), p.size(0))
    grad_gram = grad_gram.scatter(1, columns, logit.softmax(-1) * scale)

    # Backpropagate through the normalizations and the projector:
    grad_embedding = _normalize_backward(grad_cosine @ p, embedding, z)
    grad_p = grad_cosine.t() @ z + (grad_gram + grad_gram.t()) @ p
    grad_p = _normalize_backward(grad_p, prototypes.flatten(0, 1), p)
    grad_hidden = (grad_embedding @ weight2).masked_fill(hidden <= 0, 0)
    return (
        grad_hidden @ weight1,
        grad_hidden.t() @ h,
        grad_embedding.t() @ hidden,
        grad_p.view_as(prototypes),
    )


def _of_class(x: Tensor, y: Tensor) -> Tensor:
    """Select :obj:`x[i, y[i]]` for every :obj:`i`."""
    index = y.view(-1, 1, 1).expand(-1, 1, x.size(-1))
    return x.gather(1, index).squeeze(1)


def _columns_across_classes(p: Tensor) -> Tensor:
    """Return the positions of the prototypes of other classes."""
    size, num_prototypes = p.size(0) * p.size(1), p.size(1)
    row = torch.arange(size, device=p.device)
    begin = (row // num_prototypes + 1) * num_prototypes
    offset = torch.arange(size - num_prototypes, device=p.device)
    return (begin.view(-1, 1) + offset) % size


def _across_classes(p: Tensor) -> Tensor:
    """Compute cosines between prototypes of different classes.

    The output has the shape [CK, (C - 1)K].
    """
    gram = p.flatten(0, 1) @ p.flatten(0, 1).t()
    return gram.gather(1, _columns_across_classes(p))


def _outlier_risk(z: Tensor, p: Tensor, cosine: Tensor, y: Tensor) -> Tensor:
    # Eq. (8). X holds the centered prototypes of a class. The Woodbury
    # identity inverts a K x K instead of the D x D matrix
    # (1 - s) X'X / K + s I / D.
    center = p - p.mean(dim=1, keepdim=True)
    ridge = p.size(1) * SHRINKAGE / ((1 - SHRINKAGE) * p.size(2))
    eye = torch.eye(p.size(1), dtype=p.dtype, device=p.device)
    gram = center @ center.transpose(1, 2) + ridge * eye
    precision = torch.linalg.inv_ex(gram).inverse[y]  # [B, K, K]

    own, center = p[y], center[y]
    offset = z.unsqueeze(1) - own  # [B, K, D]
    along = offset @ center.transpose(1, 2)  # [B, K, K]
    explained = ((along @ precision) * along).sum(-1)
    distance = z.square().sum(-1, keepdim=True) + 1 - 2 * cosine - explained
    return distance.amax(-1).clamp(min=0) * p.size(2) / SHRINKAGE


def _unfamiliarity(cosine: Tensor, y: Tensor) -> Tensor:
    # Eq. (9):
    angle = cosine.clamp(-1, 1).acos()
    own = _of_class(angle, y).sum(-1)
    return own / (angle.sum(dim=(1, 2)) - own).clamp(min=EPS)


def _normalize_backward(grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
    norm = x.norm(dim=-1, keepdim=True)
    along = (grad * out).sum(-1, keepdim=True) * (norm > EPS)
    return (grad - out * along) / norm.clamp(min=EPS)


@in_full_precision
def _double_backward(
    grad_loss: Tensor,
    h: Tensor,
    y: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    *args: Any,
) -> Gradients:
    # Saved tensors are detached, hence recompute the forward pass.
    prototypes, _, _, *loss_args = args
    hidden = F.linear(h, weight1).relu()
    embedding = F.linear(hidden, weight2)
    inputs = (h, y, weight1, weight2, prototypes, hidden, embedding)
    # A check of the labels would stop tracing.
    return _backward(grad_loss, *inputs, *loss_args)


def _fake(h: Tensor, y: Tensor, *args: Any) -> Tuple[Tensor, ...]:
    weight1, weight2 = args[:2]
    return (
        h.new_empty(()),
        h.new_empty(h.size(0), 3),
        h.new_empty(h.size(0), weight1.size(0)),
        h.new_empty(h.size(0), weight2.size(0)),
    )


def _fake_backward(
    grad: Tensor, h: Tensor, y: Tensor, *args: Any
) -> Gradients:
    out = [x.new_empty(x.shape) for x in [h, *args[:3]]]
    return out[0], out[1], out[2], out[3]


_prototype_loss = register_operator(
    'prototype_loss',
    prototype_loss_reference,
    _fake,
    composite=prototype_loss_reference,
)
register_operator(
    'prototype_loss_backward',
    prototype_loss_backward_reference,
    _fake_backward,
    autograd=_double_backward,
)
