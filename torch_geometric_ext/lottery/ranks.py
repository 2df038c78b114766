"""Collectives of a search on several ranks of :mod:`torch.distributed`. On one
rank, and without :mod:`torch.distributed`, nothing is communicated.
"""

import io
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable, Dict, List, Optional

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_geometric_ext.data.digest import digest
from torch_geometric_ext.nn.named_seed import named_seed
from torch_geometric_ext.sparsity.weight_scheduler import is_distributed


def get_rank() -> int:
    """Return the rank of this process, zero if it is the only one."""
    return dist.get_rank() if is_distributed() else 0


def gather(value: Any) -> List[Any]:
    """Return the values of all ranks, which need to be picklable."""
    if not is_distributed():
        return [value]
    values: List[Any] = dist.get_world_size() * [None]
    dist.all_gather_object(values, value)
    return values


def mean(value: float) -> float:
    """Return the mean over all ranks, bit for bit equal on all of them."""
    values = gather(value)
    return sum(values) / len(values)


def own_seed(seed: int, name: str) -> int:
    """Derive a seed of this rank, such that dropout and shuffled loaders
    differ between ranks.
    """
    rank = get_rank()
    return named_seed(seed, f'{name} on rank {rank}' if rank > 0 else name)


def from_first(value: Any, device: Any) -> Any:
    """Return the value of the first rank, with its tensors on a device."""
    if not is_distributed():
        return value
    content = [b'']
    if dist.get_rank() == 0:
        file = io.BytesIO()
        torch.save(value, file)
        content = [file.getvalue()]
    dist.broadcast_object_list(content, src=0)
    if dist.get_rank() == 0:
        return value
    # Ranks of one job trust each other:
    return torch.load(io.BytesIO(content[0]), device, weights_only=False)


def share_state(model: Module) -> None:
    """Load the state of the model of the first rank."""
    if not is_distributed():
        return
    for x in model.state_dict().values():
        out = x.contiguous()
        dist.broadcast(out, src=0)
        if out is not x:
            x.copy_(out)


@contextmanager
def raise_together() -> Iterator[None]:
    """Raise on all ranks if a block raises on one of them, since others would
    wait for this rank for ever.
    """
    error: Optional[Exception] = None
    try:
        yield
    except Exception as caught:
        error = caught
    own = None if error is None else f'{type(error).__name__}: {error}'
    messages = gather(own)
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(
                f"'fit' of 'GraphLotteryPruner' stops on all ranks, since "
                f'rank {rank} raised {message}'
            )


def check_same(named_values: Callable[[], Dict[str, Any]]) -> None:
    """Raise on all ranks if a named value differs between ranks."""
    if not is_distributed():
        return
    hashes: Dict[str, str] = {}
    with raise_together():
        hashes = {key: digest(x) for key, x in named_values().items()}
    others = gather(hashes)
    for rank, other in enumerate(others):
        names = [key for key in hashes if other[key] != others[0][key]]
        if names:
            raise ValueError(
                f"'fit' of 'GraphLotteryPruner' needs the same {names[0]} on "
                f'all ranks (got others on rank {rank} than on rank 0)'
            )


def in_step(batches: Collection[Any]) -> Iterable[Optional[Any]]:
    """Yield the mini-batches of this rank, and then :obj:`None` until the rank
    with most mini-batches has no more.
    """
    if not is_distributed():
        return batches
    return _in_step(batches)


def _in_step(batches: Collection[Any]) -> Iterator[Optional[Any]]:
    sizes = gather(len(batches))
    iterator = iter(batches)
    for _ in range(max(sizes)):
        yield next(iterator, None)
    if next(iterator, None) is not None:
        raise ValueError(
            f"a loader as 'data' needs to yield as many mini-batches as its "
            f'length on several ranks (got more than {sizes[dist.get_rank()]})'
        )


def average_gradients(optimizer: Optimizer, has_batch: bool) -> None:
    """Average gradients over the ranks that have a mini-batch in this step.

    Parameters without a gradient on all ranks remain without one. Hosts wait
    for their device only if this rank lacks a gradient.
    """
    if not is_distributed():
        return
    groups = [group['params'] for group in optimizer.param_groups]
    params = [x for group in groups for x in group if x.requires_grad]
    count = params[0].new_ones(len(params) + 1, dtype=torch.float)
    if not has_batch:
        count[-1] = 0
    missing, grads = [], []
    for i, param in enumerate(params):
        if param.grad is None:
            missing.append(i)
            count[i] = 0
            param.grad = torch.zeros_like(param)
        param.grad = param.grad.contiguous()
        grads.append(param.grad)
    _all_reduce([count, *grads], dist.ReduceOp.SUM)
    for grad in grads:
        grad.div_(count[-1].clamp(min=1))
    if missing:
        for i, is_used in zip(missing, (count[missing] > 0).tolist()):
            if not is_used:
                params[i].grad = None


@torch.no_grad()
def average_buffers(model: Module) -> None:
    """Average buffers over all ranks, such as the running statistics of
    normalization layers. Counters take their maximum.
    """
    if not is_distributed():
        return
    buffers = list(model.buffers())
    floats = [x for x in buffers if x.is_floating_point()]
    _all_reduce(floats, dist.ReduceOp.SUM)
    for x in floats:
        x.div_(dist.get_world_size())
    integers = [torch.int32, torch.int64]
    counters = [x for x in buffers if x.dim() == 0 and x.dtype in integers]
    _all_reduce(counters, dist.ReduceOp.MAX)


def _all_reduce(tensors: List[Tensor], op: Any) -> None:
    works = [dist.all_reduce(x, op, async_op=True) for x in tensors]
    for work in works:
        work.wait()
