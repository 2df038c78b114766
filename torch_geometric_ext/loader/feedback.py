from typing import Any, List, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor


class Feedback:
    """Feedback on graphs, collected over the mini-batches of an epoch.

    Args:
        owner (str): The name of the sampler, for errors.
        num_columns (int): The number of values per graph.
    """

    def __init__(self, owner: str, num_columns: int) -> None:
        self.owner = owner
        self.num_columns = num_columns
        self.unchecked = False  # Indices on other devices wait for a check.
        self.num_rows = 0  # On this rank, with repeats.
        self._pairs: List[Tuple[Tensor, ...]] = []

    def pop(self) -> Tuple[Tensor, Tensor]:
        """Return the feedback of this rank on its device, and drop it."""
        graph_idx, values = _join(self._pairs)
        self._pairs, self.num_rows = [], 0
        return graph_idx, values

    def add(self, graph_idx: Tensor, *feedback: Tensor) -> None:
        """Add the feedback of a mini-batch.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs, of shape
                :math:`(B)` (int64).
            *feedback (torch.Tensor): The feedback, of shapes
                :math:`(B, F_1)`, :math:`(B, F_2)`, ... :meth:`gather`
                concatenates them, once for all mini-batches.
        """
        # Copy, as the caller may reuse the tensor. A tensor from a worker also
        # occupies a file descriptor.
        self._pairs.append((graph_idx.clone(), *feedback))
        self.num_rows += graph_idx.size(0)

    def check(self, graph_idx: Tensor, drawn: Tensor, epoch: int) -> None:
        """Check that graphs were drawn in the current epoch.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs (int64).
            drawn (torch.Tensor): The mask of the drawn graphs.
            epoch (int): The current epoch, for the error.

        Raises:
            ValueError: If a graph was not drawn.
        """
        try:
            valid = bool(drawn.index_select(0, graph_idx).all())
        except IndexError:
            valid = False
        if not valid:
            raise ValueError(
                f"'graph_idx' of '{self.owner}' needs to hold graphs drawn in "
                f'the current epoch {epoch} (got {graph_idx.tolist()[:10]}). '
                f"Pass this sampler to the loader, and wrap the loader's data "
                f"set (or 'Subset') in an 'IndexedDataset'"
            )

    def clear(self) -> None:
        """Drop all feedback."""
        self._pairs, self.num_rows, self.unchecked = [], 0, False

    def gather(self, num_replicas: int) -> Tuple[Tensor, Tensor]:
        """Return all feedback on the CPU, from all ranks, ordered by graph."""
        if self._pairs:
            graph_idx, feedback = _join(self._pairs)
            graph_idx, feedback = graph_idx.cpu(), feedback.cpu()
        else:
            graph_idx = torch.empty(0, dtype=torch.long)
            feedback = torch.empty(0, self.num_columns)

        if num_replicas > 1 and dist.is_initialized():
            gathered: List[Any] = [None] * num_replicas
            dist.all_gather_object(gathered, (graph_idx, feedback))
            gathered = [pair for pair in gathered if pair[0].numel() > 0]
            if gathered:
                graph_idx = torch.cat([pair[0] for pair in gathered])
                feedback = torch.cat([pair[1] for pair in gathered])

        graph_idx, perm = graph_idx.sort(stable=True)
        return graph_idx, feedback.index_select(0, perm)


def average(graph_idx: Tensor, feedback: Tensor) -> Tuple[Tensor, Tensor]:
    """Average the feedback of each graph.

    Args:
        graph_idx (torch.Tensor): The positions of the graphs, in ascending
            order, with repeats.
        feedback (torch.Tensor): The feedback, one row per position.

    Returns:
        The ascending positions without repeats, and the mean of their rows.
    """
    if not _has_repeats(graph_idx):
        return graph_idx, feedback
    graph_idx, count = graph_idx.unique_consecutive(return_counts=True)
    index = torch.arange(count.numel()).repeat_interleave(count)
    total = torch.zeros(count.numel(), feedback.size(1), dtype=torch.double)
    total.index_add_(0, index, feedback.double())
    return graph_idx, (total / count.view(-1, 1)).to(feedback.dtype)


def keep_last(graph_idx: Tensor, feedback: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the last feedback on each graph, for values without a mean.

    Args:
        graph_idx (torch.Tensor): The positions of the graphs, in ascending
            order, with repeats.
        feedback (torch.Tensor): The feedback, one row per position.
    """
    if not _has_repeats(graph_idx):
        return graph_idx, feedback
    count = graph_idx.unique_consecutive(return_counts=True)[1]
    last = count.cumsum(0) - 1
    return graph_idx[last], feedback[last]


def _has_repeats(graph_idx: Tensor) -> bool:
    return bool((graph_idx[1:] == graph_idx[:-1]).any())


def _join(pairs: List[Tuple[Tensor, ...]]) -> Tuple[Tensor, Tensor]:
    """Concatenate positions, and the columns of their feedback."""
    # Feedback of a loaded state is on the CPU and in one piece, new feedback
    # may not be:
    if len({len(pair) for pair in pairs}) > 1:
        pairs = [(pair[0], _columns(pair[1:])) for pair in pairs]
    if len({pair[0].device for pair in pairs}) > 1:
        pairs = [tuple(x.cpu() for x in pair) for pair in pairs]
    graph_idx, *columns = (torch.cat(x) for x in zip(*pairs))
    return graph_idx, _columns(columns)


def _columns(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([x.float() for x in parts], dim=1)
