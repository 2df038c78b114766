"""Refuse weights without data."""

from typing import Mapping

from torch import Tensor
from torch.nn.parameter import is_lazy


def check_initialized(owner: str, weights: Mapping[str, Tensor]) -> None:
    """Raise a :class:`ValueError` that names lazy layers, if any.

    Args:
        owner (str): The name of the argument, for the error.
        weights (Mapping[str, torch.Tensor]): The weights of layers.
    """
    lazy = [name for name, weight in weights.items() if is_lazy(weight)]
    if len(lazy) > 0:
        raise ValueError(
            f"'{owner}' needs to be initialized; run one forward pass first "
            f'(got lazy layers {lazy})'
        )


def check_materialized(owner: str, weights: Mapping[str, Tensor]) -> None:
    """Raise a :class:`ValueError` that names lazy layers and layers on the
    meta device, if any.

    See :func:`check_initialized`.
    """
    check_initialized(owner, weights)
    meta = [name for name, weight in weights.items() if weight.is_meta]
    if len(meta) > 0:
        raise ValueError(
            f"'{owner}' needs to hold data to select weights; call "
            f"'to_empty(device=...)' and initialize its parameters first "
            f'(got layers {meta} on the meta device)'
        )
