import math
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.lottery.task import LossFunction
from torch_geometric_ext.lottery.weights.channel_selection import (
    Channels,
    channel_density,
    find_channels,
)
from torch_geometric_ext.lottery.weights.narrow_index import find_index
from torch_geometric_ext.lottery.weights.narrow_model import (
    Index,
    narrow_model,
    narrow_weights,
    widen_weights,
)
from torch_geometric_ext.lottery.weights.weight_masks import (
    Masks,
    Weights,
    build_model,
    global_masks,
    random_masks,
    weight_key,
)


class WeightPruner:
    """Choose which weights of a model remain, and build models of them.

    Args:
        template (torch.nn.Module): The dense model with initial weights.
        names (List[str]): The layers to prune, which may be none.
        sparsity (float): The fraction of their weights to prune.

    Attributes:
        initial (Dict[str, torch.Tensor]): The initial state of the model.
        target (int): Number of weights that remain in the end.
        channels (Channels, optional): The channels of these weights, or
            :obj:`None` if all remain.
        index (Index, optional): The channels of narrow models, or
            :obj:`None` if the model cannot be narrowed.
    """

    def __init__(
        self, template: Module, names: List[str], sparsity: float
    ) -> None:
        self.template = template
        self.names = names
        self.initial = {
            key: x.detach().clone() for key, x in template.state_dict().items()
        }
        weights = [self.initial[weight_key(name)] for name in names]
        self.num_weights = sum(weight.numel() for weight in weights)
        self.target = round((1 - sparsity) * self.num_weights)
        if self.target < len(names):
            raise ValueError(
                f"'weight_sparsity' of 'GraphLotteryPruner' needs to keep at "
                f'least one weight for each of {len(names)} layers; lower it, '
                f'or ignore layers (got {sparsity}, which keeps '
                f'{self.target} weights)'
            )
        self.channels: Optional[Channels] = None
        self.index: Optional[Index] = None

    def top_masks(self, weights: Weights, size: int) -> Masks:
        """Return masks of the weights of largest magnitude."""
        return global_masks(weights, self.names, size, self.channels)

    def random_masks(self, generator: torch.Generator) -> Masks:
        """Return masks of random weights."""
        return random_masks(self.initial, self.names, self.target, generator)

    def density(self, masks: Masks) -> float:
        """Return the fraction of weights that remain."""
        size = sum(int(mask.sum()) for mask in masks.values())
        return size / max(self.num_weights, 1)

    def build(self, weights: Weights) -> Module:
        """Return a model with some weights, narrow if it can be narrowed."""
        if self.index is None or not weights.masks:
            return build_model(self.template, weights)
        template = narrow_model(self.template, self.index)
        return build_model(template, narrow_weights(weights, self.index))

    def widen(self, weights: Weights) -> Weights:
        """Return the weights of the wide model from those of :meth:`build`."""
        if self.index is None or not weights.masks:
            return weights
        return widen_weights(weights, self.index, self.initial)

    def allowed(self) -> Dict[str, Tensor]:
        """Return masks of the positions where weights of a model of
        :meth:`build` may grow.
        """
        if self.channels is None:
            return {}
        channels = self.channels
        if self.index is not None:
            channels = channels.narrow()
        return {name: channels.mask(name) for name in self.names}

    def choose_channels(
        self,
        model: Module,
        trained: Weights,
        loss_fn: LossFunction,
        batch: Any,
        check_loss_fn: LossFunction,
        check_batch: Any,
        seed: int,
    ) -> None:
        """Set :attr:`channels` and :attr:`index` from a trained model.

        Args:
            model (torch.nn.Module): The model.
            trained (Weights): Its weights.
            loss_fn (Callable): The loss to probe activations with.
            batch (Any): The mini-batch of this loss.
            check_loss_fn (Callable): The loss of the equivalence check of
                narrow models.
            check_batch (Any): The mini-batch of this loss.
            seed (int): The seed of the check.
        """
        density = channel_density(self.template, self.names)
        size = math.ceil(self.target / density)
        self.channels, aligned = find_channels(
            model, loss_fn, batch, self.names, size
        )
        if sum(map(aligned.num_weights, self.names)) >= self.target:
            self.index = find_index(
                self.template,
                aligned,
                trained.state,
                check_loss_fn,
                check_batch,
                seed,
            )
        if self.index is not None:
            self.channels = aligned
