from typing import Any

import torch

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader.check import require


def check_types(sampler: Any, dataset: Any, prototypes: Any) -> None:
    """Check the types of the first arguments of GDeR.

    Args:
        sampler (GDeRSampler): The sampler, for errors.
        dataset (IndexedDataset or int): The data set, or its number of graphs.
        prototypes (torch.nn.Module): The prototypes.

    Raises:
        TypeError: If an argument is of another type.
    """
    name = sampler.__class__.__name__
    if not isinstance(dataset, (IndexedDataset, int)):
        raise TypeError(
            f"'dataset' of '{name}' needs to be an 'IndexedDataset' or "
            f'its number of graphs (got {type(dataset)}). Pass '
            f"'IndexedDataset(dataset)' to the sampler and the loader"
        )
    if not isinstance(prototypes, torch.nn.Module):
        raise TypeError(
            f"'prototypes' of '{name}' needs to be a module such as "
            f"'HypersphericalPrototypes' (got {type(prototypes)})"
        )


def check_draw(
    sampler: Any, draw: str, retention: float, retention_decay: float
) -> None:
    """Check the arguments of the draws of GDeR.

    Args:
        sampler (GDeRSampler): The sampler, for errors.
        draw (str): The draw.
        retention (float): The fraction to draw from the previous subset.
        retention_decay (float): The decay exponent of that fraction.

    Raises:
        ValueError: If an argument is out of its range.
    """
    draws = "be 'trusted' or 'paper'"
    require(sampler, draw in ('trusted', 'paper'), 'draw', draws, draw)
    in_range = 0 <= retention <= 1
    require(sampler, in_range, 'retention', 'be in [0, 1]', retention)
    require(
        sampler,
        retention_decay >= 0,
        'retention_decay',
        'be at least zero',
        retention_decay,
    )


def check_unset(sampler: Any, reason: str, **kwargs: Any) -> None:
    """Check that the arguments of the draw by weights are not set.

    Args:
        sampler (GDeRSampler): The sampler, for errors.
        reason (str): The argument for which they have no effect.
        **kwargs (optional): The arguments of the sampler.

    Raises:
        ValueError: If an argument has no effect.
    """
    for name in ('balance', 'replacement', 'min_per_class'):
        value = kwargs.get(name)
        require(sampler, not value, name, f'be unset for {reason}', value)
