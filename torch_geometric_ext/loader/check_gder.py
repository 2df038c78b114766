import math
import warnings
from typing import Any, Dict, List

import torch
from torch import Tensor

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader.check import require
from torch_geometric_ext.loader.draw import UNKNOWN
from torch_geometric_ext.ops.check_state_dict import Check

MAX_CLASSES = 1 << 20  # A bound for prototypes of an unknown number.


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


def copy_parameters(module: torch.nn.Module) -> List[Tensor]:
    """Return copies of the parameters of a module on the CPU."""
    return [x.detach().cpu().clone() for x in module.parameters()]


def warn_first_epoch(
    sampler: Any, num_graphs: int, initial: List[Tensor]
) -> None:
    """Warn after the first epoch if there was no feedback, or the prototypes
    were not trained.

    Args:
        sampler (GDeRSampler): The sampler.
        num_graphs (int): The number of graphs with feedback.
        initial (List[torch.Tensor]): The initial parameters of the prototypes.
    """
    pairs = list(zip(initial, copy_parameters(sampler.prototypes)))
    if num_graphs == 0:
        problem = (
            f'got no feedback in epoch {sampler.epoch} and draws uniformly. '
            f"Call 'update' for each mini-batch"
        )
    elif pairs and all(torch.equal(a, b) for a, b in pairs):
        problem = (
            f'found its prototypes unchanged after epoch {sampler.epoch}. '
            f"Pass 'prototypes.parameters()' to the optimizer, too, and add "
            f"the result of 'update' to the loss"
        )
    else:
        return
    warnings.warn(f"'{sampler.__class__.__name__}' {problem}", stacklevel=2)


def gder_state_checks(prototypes: Any, draw: str) -> Dict[str, Check]:
    """Return checks of the values in a state of GDeR.

    Args:
        prototypes (torch.nn.Module): The prototypes.
        draw (str): The draw.
    """
    num_classes = getattr(prototypes, 'num_classes', MAX_CLASSES)
    prototypes_per_class = getattr(prototypes, 'num_prototypes', 1)
    low, num_labels = UNKNOWN, num_classes
    if draw == 'paper':  # Feedback is the nearest prototype.
        low, num_labels = 0, num_classes * prototypes_per_class
    width = getattr(prototypes, 'in_channels', None)

    def is_embedding(x: Tensor) -> bool:
        if x.size(0) == 0:
            return True
        wide = x.size(1) > 4 and width in (None, x.size(1) - 4)
        return wide and _in_range(x[:, -1], UNKNOWN, num_classes)

    def is_recall(x: Any) -> bool:
        known = all(math.isnan(value) or 0 <= value <= 1 for value in x)
        return known and len(x) <= num_classes

    return {
        'feedback': lambda x: (
            x.size(1) == 3 and _in_range(x[:, 2], low, num_labels)
        ),
        'embedding': is_embedding,
        'group': lambda x: _in_range(x, UNKNOWN, num_classes),
        'distance': lambda x: not bool(x.isinf().any()),
        'suspicion': lambda x: bool(((x >= 0) & (x <= 1)).all()),
        'scores': lambda x: bool((x.isnan() | (x >= 0)).all()),
        'recall': is_recall,
    }


def _in_range(x: Tensor, low: int, size: int) -> bool:
    """Return whether values are integers of a range, or unknown (NaN)."""
    return bool((x.isnan() | ((x >= low) & (x < size))).all())
