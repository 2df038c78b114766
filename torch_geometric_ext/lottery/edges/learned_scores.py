from typing import Any, List, Tuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import is_sparse

from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.edge_selection import spread_penalty
from torch_geometric_ext.lottery.task import LossFunction
from torch_geometric_ext.lottery.weights.weight_masks import clear_caches


class LearnedScores(Module):
    r"""Scores of edge pairs that multiply the messages of a model and are
    trained with it.

    Messages along self-loops, which a layer may add, are not multiplied.
    Scores are initialized to one, with noise to break ties.

    Args:
        pairs (EdgePairs): The pairs of all edges.
        mask (torch.Tensor): The pairs of the pruned graph.
        generator (torch.Generator): The generator of the noise.
        l1 (float, optional): Weight of the mean magnitude of scores in the
            loss. (default: :obj:`1e-4`)
        spread (float, optional): Weight of
            :func:`~torch_geometric_ext.lottery.edges.edge_selection.spread_penalty`
            in the loss. (default: :obj:`0.1`)
    """

    def __init__(
        self,
        pairs: EdgePairs,
        mask: Tensor,
        generator: torch.Generator,
        l1: float = 1e-4,
        spread: float = 0.1,
    ) -> None:
        super().__init__()
        self.l1 = l1
        self.spread = spread
        self.mask = mask
        self.pair = pairs.pair
        self.edge_mask = pairs.edge_mask(mask)
        noise = torch.randn(pairs.num_pairs, generator=generator)
        self.score = Parameter(1 + 1e-4 * noise.to(mask.device))

    def loss(self, loss_fn: LossFunction, model: Module, batch: Any) -> Tensor:
        """Return the loss of a model with multiplied messages, and penalties
        of the scores.
        """
        clear_caches(model)  # They may hold messages of earlier scores.
        handles = self._attach(model, batch)
        try:
            loss = loss_fn(model, batch)
        finally:
            for handle in handles:
                handle.remove()
            clear_caches(model)
        score = self.score[self.mask]
        if score.numel() > 1:
            loss = loss + self.l1 * score.abs().mean()
            loss = loss + self.spread * spread_penalty(score)
        return loss

    def _attach(self, model: Module, batch: Any) -> List[RemovableHandle]:
        if 'e_id' in batch:
            pair = self.pair[batch.e_id.to(self.pair.device)]
        else:
            pair = self.pair[self.edge_mask]
        between = pair >= 0
        edge_index = batch.edge_index[:, between]
        hook = _Hook(edge_index, self.score[pair[between]])
        handles: List[RemovableHandle] = []
        for module in model.modules():
            if isinstance(module, MessagePassing):
                handles += [
                    module.register_propagate_forward_pre_hook(hook.enter),
                    module.register_message_forward_hook(hook.multiply),
                ]
        return handles


class _Hook:
    """Multiply the messages of layers by the weights of their edges."""

    def __init__(self, edge_index: Tensor, weight: Tensor) -> None:
        self.edge_index = edge_index
        self.weight = weight
        self.scale = weight

    def enter(self, module: MessagePassing, inputs: Tuple[Any, ...]) -> None:
        """Match the edges that a layer propagates along with their weights:
        layers may add and remove self-loops, but no other edges.
        """
        edge_index = inputs[0]
        if is_sparse(edge_index):
            raise NotImplementedError(
                f"'edge_index' of '{module}' needs to be a dense tensor to "
                f'learn scores of edges (got {type(edge_index)})'
            )
        between = edge_index[0] != edge_index[1]
        if not torch.equal(edge_index[:, between], self.edge_index):
            raise NotImplementedError(
                f"'{module}' needs to pass messages along all edges of the "
                f'graph, in their order, to learn scores of edges (got other '
                f'edges)'
            )
        scale = self.weight.new_ones(between.numel())
        self.scale = scale.masked_scatter(between, self.weight)

    def multiply(
        self, module: MessagePassing, inputs: Tuple[Any, ...], out: Tensor
    ) -> Tensor:
        """Multiply the messages."""
        size = [1] * out.dim()
        size[module.node_dim] = -1
        return out * self.scale.view(size)
