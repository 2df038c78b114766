from typing import Optional

import torch
from torch import Tensor

from torch_geometric_ext.ops.register import register_operator


def weighted_sample(
    weight: Tensor,
    num_samples: int,
    generator: Optional[torch.Generator] = None,
) -> Tensor:
    r"""Sample :obj:`num_samples` positions without replacement, each with
    probability proportional to its weight among the remaining positions.

    Implements the exponential race: position :math:`i` arrives at time
    :math:`E_i / w_i` with :math:`E_i \sim \mathrm{Exp}(1)`, and the first
    :obj:`num_samples` arrivals are the sample. Up to a logarithm, the race is
    the Gumbel top-:math:`k` trick of the `"Stochastic Beams and Where to Find
    Them: The Gumbel-Top-k Trick for Sampling Sequences Without Replacement"
    <https://arxiv.org/abs/1903.06059>`_ paper.

    Takes :math:`O(N)` time and 16 bytes for each position on CPU, on all
    threads of :obj:`torch`. The result does not depend on the number of
    threads. Positions of weight zero are drawn after all other positions, in
    ascending order.

    Args:
        weight (torch.Tensor): The non-negative weights, of any scale.
        num_samples (int): The number of positions :math:`k` to draw.
        generator (torch.Generator, optional): The generator on the device of
            :obj:`weight`. (default: the global generator)

    Shapes:
        - **input:** :obj:`weight` :math:`(N)`, floating point
        - **output:** positions :math:`(k)`, :obj:`torch.int64`, ascending

    Raises:
        ValueError: If :obj:`weight` is not one-dimensional or not floating
            point, holds a negative or not finite value (checked on CPU only),
            or if :obj:`num_samples` is not in :math:`[0, N]`.

    .. code-block:: python

        >>> generator = torch.Generator().manual_seed(0)
        >>> weight = torch.tensor([0.0, 5.0, 0.0, 1.0])
        >>> weighted_sample(weight, num_samples=2, generator=generator)
        tensor([1, 3])
    """
    _check(weight, num_samples)
    if weight.dtype not in (torch.float32, torch.float64):
        weight = weight.float()
    # In double precision, ties have probability zero in practice.
    noise = torch.empty_like(weight, dtype=torch.float64)
    noise.exponential_(generator=generator)
    return _weighted_sample(weight, noise, num_samples)


def _check(weight: Tensor, num_samples: int) -> None:
    if weight.dim() != 1 or not weight.is_floating_point():
        raise ValueError(
            f"weighted_sample: 'weight' needs to be a one-dimensional "
            f'floating point tensor (got {weight.dtype} of shape '
            f'{list(weight.shape)})'
        )
    if not 0 <= num_samples <= weight.numel():
        raise ValueError(
            f"weighted_sample: 'num_samples' needs to be in "
            f'[0, {weight.numel()}] (got {num_samples})'
        )


def weighted_sample_reference(
    weight: Tensor,
    noise: Tensor,
    num_samples: int,
) -> Tensor:
    """Compute :func:`weighted_sample` from exponential noise in plain
    PyTorch.
    """
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"weighted_sample: 'weight' needs to be a float32 or float64 "
            f'tensor (got {weight.dtype})'
        )
    if noise.dtype != torch.double or noise.shape != weight.shape:
        raise ValueError(
            f"weighted_sample: 'noise' needs to be a float64 tensor of shape "
            f'{list(weight.shape)} (got {noise.dtype} of shape '
            f'{list(noise.shape)})'
        )
    _check(weight, num_samples)
    if weight.device.type == 'cpu':
        valid = (weight >= 0) & weight.isfinite() & (noise > 0)
        if not bool((valid & noise.isfinite()).all()):
            raise ValueError(
                "weighted_sample: 'weight' needs to be non-negative and "
                "'noise' positive, both finite"
            )
    arrival = noise / weight.abs()
    # Tiny weights arrive before those of zero, at infinity:
    arrival = torch.where(
        weight > 0, arrival.clamp(max=torch.finfo(noise.dtype).max), arrival
    )
    order = torch.sort(arrival, stable=True).indices
    return order[:num_samples].sort().values


def _fake(weight: Tensor, noise: Tensor, num_samples: int) -> Tensor:
    return weight.new_empty(num_samples, dtype=torch.long)


_weighted_sample = register_operator(
    'weighted_sample', weighted_sample_reference, _fake
)
