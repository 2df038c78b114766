"""Decisions that all ranks of :mod:`torch.distributed` share."""

from typing import Any, Callable, Dict, List, TypeVar

import torch.distributed as dist

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.digest import digest
from torch_geometric_ext.transforms.collated import read_chunks

T = TypeVar('T')


def check_initialized(name: str) -> None:
    """Raise an error without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"'distributed' of '{name}' needs an initialized process group "
            f"(call 'torch.distributed.init_process_group' first)"
        )


def check_same_on_ranks(values: Dict[str, Any], name: str) -> None:
    """Raise an error on all ranks if a value differs between ranks."""
    ranks: List[Any] = dist.get_world_size() * [None]
    dist.all_gather_object(ranks, {k: repr(v) for k, v in values.items()})
    for rank, other in enumerate(ranks):
        for key, value in other.items():
            if value != ranks[0][key]:
                raise ValueError(
                    f"'{key}' of '{name}' needs to be the same on all ranks "
                    f'(got {ranks[0][key]} on rank 0 and {value} on rank '
                    f'{rank})'
                )


def from_first_rank(function: Callable[[], T]) -> T:
    """Return the result of a function that the first rank calls. All ranks
    raise its error.
    """
    result: List[Any] = [None]
    if dist.get_rank() == 0:
        try:
            result[0] = function()
        except Exception as error:  # All ranks raise it below.
            result[0] = error
    dist.broadcast_object_list(result)
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def outline(dataset: Any) -> Dict[str, Any]:
    """Return the size of a data set, and a hash of its first and last graph,
    which are quick to read.
    """
    size = len(dataset)
    if isinstance(dataset, SharedTrees):
        return {'len(dataset)': size, 'dataset': dataset.num_trees}
    parts = []
    for start in [0, size - 1]:
        chunk = next(read_chunks(dataset, 1, start))
        parts.append([{**chunk.attrs, **chunk.texts}, chunk.node_ptr])
    return {'len(dataset)': size, 'dataset': digest(size, parts)[:16]}
