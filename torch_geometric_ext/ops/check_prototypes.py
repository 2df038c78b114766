"""Checks of arguments for the reference of `prototype_loss`.

`csrc/cpu/prototype_loss_kernel.cpp` checks the same conditions.
"""

import torch
from torch import Tensor


def check_tensors(
    h: Tensor,
    y: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    prototypes: Tensor,
    temperature: float,
) -> None:
    """Check shapes and dtypes, and that the temperature is positive."""
    op, size = 'prototype_loss', prototypes.shape
    if h.dim() != 2 or h.dtype not in [torch.float, torch.double]:
        raise ValueError(
            f"{op}: 'h' needs to be a float or double tensor of shape "
            f'[batch_size, in_channels] (got {h.dtype} of shape '
            f'{list(h.shape)})'
        )
    if len(size) != 3 or size[0] < 2 or 0 in size:
        raise ValueError(
            f"{op}: 'prototypes' needs to be of shape [num_classes, "
            f'num_prototypes, embedding_dim] with at least two classes of at '
            f'least one prototype and one dimension each (got {list(size)})'
        )
    hidden = weight1.shape[:1]
    if weight1.shape != (*hidden, h.size(1)) or (
        weight2.shape != (size[2], *hidden)
    ):
        raise ValueError(
            f"{op}: 'weight1' and 'weight2' need to lead from in_channels "
            f'({h.size(1)}) to embedding_dim ({size[2]}) (got '
            f'{list(weight1.shape)} and {list(weight2.shape)})'
        )
    for name, x in [
        ('weight1', weight1),
        ('weight2', weight2),
        ('prototypes', prototypes),
    ]:
        if x.dtype != h.dtype:
            raise ValueError(
                f"{op}: '{name}' needs to be of the type of 'h', {h.dtype} "
                f'(got {x.dtype})'
            )
    if not temperature > 0:
        raise ValueError(
            f"{op}: 'temperature' needs to be positive (got {temperature})"
        )
    if y.dtype != torch.long or y.shape != h.shape[:1]:
        raise ValueError(
            f"{op}: 'y' needs to be an int64 tensor of shape [{h.size(0)}] "
            f'(got {y.dtype} of shape {list(y.shape)})'
        )


def check_labels(y: Tensor, num_classes: int) -> None:
    """Check that labels are classes of the prototypes."""
    # On other devices, the check would wait for the device.
    if y.device.type != 'cpu' or ((y >= 0) & (y < num_classes)).all():
        return
    raise ValueError(
        f"prototype_loss: 'y' needs to hold labels in [0, {num_classes}), the "
        f'classes of the prototypes'
    )
