import math
from typing import Dict

import torch
from torch import Tensor

from torch_geometric_ext.ops.check_state_dict import Check, check_state_dict


class ForgettingCounter:
    r"""Counter of the forgetting events of each graph, from the `"An Empirical
    Study of Example Forgetting during Deep Neural Network Learning"
    <https://arxiv.org/abs/1812.05159>`_ paper.

    A graph is forgotten if it is classified wrongly, but was classified
    correctly when the model last visited it in training. Graphs that are never
    forgotten can be pruned first.

    .. code-block:: python

        counter = ForgettingCounter(len(dataset))
        for epoch in range(20):
            for batch in loader:
                ...
                correct = out.argmax(dim=-1) == batch.y
                counter.update(correct, batch.graph_idx)
        index = select_graphs(counter.scores(), keep_ratio=0.5)

    Args:
        num_graphs (int): The number of graphs :math:`N`.

    Raises:
        ValueError: If :obj:`num_graphs` is not positive.

    .. code-block:: python

        >>> counter = ForgettingCounter(3)
        >>> graph_idx = torch.tensor([0, 1])
        >>> for correct in [[True, False], [False, False]]:
        ...     counter.update(torch.tensor(correct), graph_idx)
        >>> counter.scores()
        tensor([1., inf, nan])

    .. rubric:: Details

    The state is on the device of the first mini-batch. :meth:`update` does not
    synchronize with that device. In distributed training, pass the
    predictions of all ranks to each counter.
    """

    def __init__(self, num_graphs: int) -> None:
        if num_graphs < 1:
            raise ValueError(
                f"'num_graphs' of '{self.__class__.__name__}' needs to be at "
                f'least one (got {num_graphs})'
            )
        self.num_graphs = num_graphs
        self._count = torch.zeros(num_graphs, dtype=torch.int32)
        self._visited = torch.zeros(num_graphs, dtype=torch.bool)
        self._learned = torch.zeros(num_graphs, dtype=torch.bool)
        self._correct = torch.zeros(num_graphs, dtype=torch.bool)

    def update(self, correct: Tensor, graph_idx: Tensor) -> None:
        r"""Count the forgetting events of a mini-batch.

        A graph that occurs several times is visited once, and is correct if
        all of its copies are.

        Args:
            correct (torch.Tensor): Whether each graph is classified correctly,
                of shape :math:`(B)` (bool).
            graph_idx (torch.Tensor): The positions of the graphs in the data
                set, of shape :math:`(B)` (int64).

        Raises:
            ValueError: If a shape or type is invalid, or a position is not in
                :math:`[0, N)` (checked on the CPU only).
        """
        self._check(correct, graph_idx)
        if graph_idx.numel() == 0:
            return
        if self._count.device != graph_idx.device:
            self._load(self._state(), graph_idx.device)
        graph_idx, perm = graph_idx.sort()
        # Number the distinct graphs of the mini-batch:
        segment = torch.zeros_like(graph_idx)
        segment[1:] = (graph_idx[1:] != graph_idx[:-1]).cumsum(0)
        wrong = torch.zeros_like(graph_idx)
        wrong.index_add_(0, segment, (~correct[perm]).long())
        correct = wrong[segment] == 0

        forgotten = self._correct[graph_idx] & ~correct
        # Copies of a graph write the same values:
        self._count[graph_idx] = self._count[graph_idx] + forgotten
        self._learned[graph_idx] = self._learned[graph_idx] | correct
        self._correct[graph_idx] = correct
        self._visited[graph_idx] = torch.ones_like(correct)

    def scores(self) -> Tensor:
        r"""Return the number of forgetting events of each graph.

        Returns:
            The scores of shape :math:`(N)` (float), for
            :func:`select_graphs`. Graphs that were never classified correctly
            have infinite scores, as in the paper, and graphs that were never
            visited have NaN.
        """
        score = self._count.float().masked_fill(~self._learned, math.inf)
        return score.masked_fill(~self._visited, math.nan)

    def state_dict(self) -> Dict[str, Tensor]:
        r"""Return a copy of the state of the counter."""
        return {key: value.clone() for key, value in self._state().items()}

    def load_state_dict(self, state_dict: Dict[str, Tensor]) -> None:
        r"""Load the state of a counter.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete or damaged, or is that of
                another number of graphs. The counter is not changed in these
                cases.
            TypeError: If the state is not a dictionary.
        """
        checks = {key: _is_like(x) for key, x in self._state().items()}
        check_state_dict(self, state_dict, {}, checks)
        self._load(state_dict, state_dict['count'].device)

    def _load(self, state: Dict[str, Tensor], device: torch.device) -> None:
        for key in self._state():
            setattr(self, f'_{key}', state[key].to(device, copy=True))

    def _state(self) -> Dict[str, Tensor]:
        return {
            'count': self._count,
            'visited': self._visited,
            'learned': self._learned,
            'correct': self._correct,
        }

    def _check(self, correct: Tensor, graph_idx: Tensor) -> None:
        name = self.__class__.__name__
        if graph_idx.dim() != 1 or graph_idx.dtype != torch.int64:
            raise ValueError(
                f"'graph_idx' of '{name}' needs to be of shape [B] and type "
                f'torch.int64 (got {list(graph_idx.shape)} and '
                f'{graph_idx.dtype})'
            )
        if correct.shape != graph_idx.shape or correct.dtype != torch.bool:
            raise ValueError(
                f"'correct' of '{name}' needs to be of shape "
                f'{list(graph_idx.shape)} and type torch.bool (got '
                f'{list(correct.shape)} and {correct.dtype})'
            )
        if graph_idx.device.type == 'cpu' and graph_idx.numel() > 0:
            low, high = int(graph_idx.min()), int(graph_idx.max())
            if low < 0 or high >= self.num_graphs:
                raise ValueError(
                    f"'graph_idx' of '{name}' needs to be in [0, "
                    f'{self.num_graphs}) (got {low} to {high})'
                )

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.num_graphs})'


def _is_like(own: Tensor) -> Check:
    """Return the check of a tensor that replaces another one."""
    return lambda x: (
        isinstance(x, Tensor)
        and x.shape == own.shape
        and x.dtype == own.dtype
        and bool((x >= 0).all())
    )
