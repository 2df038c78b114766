"""Prototype losses of graphs without labels."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_ext.ops.prototype_loss import (
    EPS,
    in_full_precision,
    prototype_scores,
    separation_loss,
)

SMOOTHING = 10.0  # The constant of PCL in the concentration of a prototype.
MAX_RATIO = 2.0  # Of concentrations to the temperature, and the inverse.
SINKHORN_EPS = 0.05  # Entropy of the balanced assignment, as in SwAV.


@in_full_precision
def virtual_class_loss(
    h: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    prototypes: Tensor,
    temperature: float,
    compactness_weight: float,
    separation_weight: float,
    num_steps: int,
    nearest_only: bool = False,
) -> Tuple[Tensor, Tensor]:
    r"""Compute the loss and the scores of
    :class:`~torch_geometric_ext.nn.HypersphericalPrototypes` without labels.

    Takes :math:`O(B (E H + H D + CKD) + (CK)^2 D)` time.

    Args:
        h (torch.Tensor): The graph embeddings, of shape :math:`(B, E)`.
        weight1 (torch.Tensor): The weight of the first projection, of shape
            :math:`(H, E)`.
        weight2 (torch.Tensor): The weight of the second projection, of shape
            :math:`(D, H)`.
        prototypes (torch.Tensor): The prototypes, of shape :math:`(C, K, D)`.
        temperature (float): The temperature :math:`\tau`.
        compactness_weight (float): The weight :math:`\lambda_1`.
        separation_weight (float): The weight :math:`\lambda_2`.
        num_steps (int): The number of Sinkhorn steps.
        nearest_only (bool, optional): If set to :obj:`True`, Eq. (8) and (9)
            are not computed, and their scores are zero.
            (default: :obj:`False`)

    Returns:
        The scalar loss, and the scores of shape :math:`(B, 3)`.
    """
    hidden = F.linear(h, weight1).relu()
    z = F.normalize(F.linear(hidden, weight2), dim=-1, eps=EPS)
    p = F.normalize(prototypes, dim=-1, eps=EPS)
    cosine = torch.einsum('bd,ckd->bck', z, p)  # [B, C, K]

    with torch.no_grad():
        fixed = cosine.detach()
        evidence = (fixed / temperature).logsumexp(-1)  # [B, C]
        label = evidence.argmax(-1)  # Eq. (15).
        target = label
        if num_steps > 0 and h.size(0) >= prototypes.size(0):
            scale = temperature / SINKHORN_EPS
            target = balanced_assignment(evidence * scale, num_steps)
        index = target.view(-1, 1, 1).expand(-1, 1, p.size(1))
        nearest = fixed.gather(1, index).squeeze(1).argmax(-1)
        nearest = target * p.size(1) + nearest  # [B]
        phi = concentration(fixed.flatten(1), nearest, temperature)

    # Eq. (16). It is the cross-entropy of the assigned prototypes:
    logit = cosine.flatten(1) / phi
    compactness = logit.logsumexp(-1) - logit.gather(
        1, nearest.view(-1, 1)
    ).squeeze(1)
    loss = compactness_weight * compactness.sum() / max(h.size(0), 1)
    loss = loss + separation_weight * separation_loss(p, temperature)
    return loss, prototype_scores(z, p, cosine, label, nearest_only)


def balanced_assignment(logit: Tensor, num_steps: int) -> Tensor:
    r"""Assign the graphs of a mini-batch to classes of similar size.

    Steps of the algorithm of Sinkhorn and Knopp scale classes and graphs in
    turn to equal total probability (`"Unsupervised Learning of Visual Features
    by Contrasting Cluster Assignments" <https://arxiv.org/abs/2006.09882>`_).

    Args:
        logit (torch.Tensor): The log-likelihood of each class, of shape
            :math:`(B, C)`.
        num_steps (int): The number of steps.

    Returns:
        The most probable class of each graph, of shape :math:`(B)` (int64).
    """
    for _ in range(num_steps):
        logit = logit.log_softmax(0)
        logit = logit.log_softmax(1)
    return logit.argmax(-1)


def concentration(
    cosine: Tensor, nearest: Tensor, temperature: float
) -> Tensor:
    r"""Estimate the concentration of the graphs around each prototype.

    The estimate is

    .. math::
        \phi = \frac{\sum_{i \in P} {\| \mathbf{z}_i - \mathbf{p} \|}_2}
        {|P| \log(|P| + \alpha)}

    for the graphs :math:`P` of a prototype, and scaled to the mean
    :math:`\tau` (`"Prototypical Contrastive Learning of Unsupervised
    Representations" <https://arxiv.org/abs/2005.04966>`_).

    Args:
        cosine (torch.Tensor): The cosines between graphs and prototypes, of
            shape :math:`(B, CK)`.
        nearest (torch.Tensor): The prototype of each graph, of shape
            :math:`(B)` (int64).
        temperature (float): The temperature :math:`\tau`.

    Returns:
        The concentrations, in :math:`[\tau / 2, 2 \tau]`, of shape
        :math:`(CK)`. They are :math:`\tau` for prototypes without graphs.
    """
    own = cosine.gather(1, nearest.view(-1, 1)).squeeze(1)
    distance = (2 - 2 * own).clamp(min=0).sqrt()
    size = cosine.new_zeros(cosine.size(1))
    count = size.index_add(0, nearest, torch.ones_like(own))
    total = size.index_add(0, nearest, distance)
    phi = total / (count.clamp(min=1) * (count + SMOOTHING).log())
    used = count > 0
    mean = phi.sum() / used.sum().clamp(min=1)
    ratio = (phi / mean.clamp(min=EPS)).clamp(1 / MAX_RATIO, MAX_RATIO)
    return torch.where(used, ratio, 1.0) * temperature
