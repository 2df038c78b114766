from typing import Any, Dict

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.nn.shared_batch import SharedContext, current_context


class LevelwiseConv(torch.nn.Module):
    r"""Lets a convolution compute only the level of shared computation trees
    that it is there for: layer :math:`l` the trees of depth :math:`l`.

    By default, each layer updates the trees of all levels, although those
    above are done again by later layers and those below are not read any
    more. Within :func:`~torch_geometric_ext.nn.shared_batch`, this wrapper
    hands the wrapped convolution the trees of depth :math:`l` (each as the
    tree of depth :math:`l - 1` it was) and those of depth :math:`l - 1` they
    read. Nearly all updates that are left are those of distinct trees.
    Outside of it, it is the convolution it wraps.

    .. code-block:: python

        model = LevelwiseConv.convert(GIN(in_channels, 64, num_layers=2))

        with shared_batch(batch):
            h = model(batch.x, batch.edge_index)  # Of the highest level only.
        out = aggr(h, batch)

    .. note::
        Layers have outputs of different sizes, so what adds or concatenates
        those of several layers (residual connections,
        :class:`~torch_geometric.nn.models.JumpingKnowledge`) does not work.
        The first convolution takes :obj:`batch.x`, or what was computed from
        it row by row. There need to be as many convolutions as trees are
        deep. The keys of a :obj:`state_dict()` gain a :obj:`conv.`, until
        :meth:`revert`.

    Args:
        conv (MessagePassing): The convolution.
    """

    def __init__(self, conv: MessagePassing) -> None:
        super().__init__()
        self.conv = conv

    @classmethod
    def convert(cls, module: torch.nn.Module) -> torch.nn.Module:
        r"""Wraps each convolution in a model, in place, and returns the model
        (or the wrapped convolution).

        Args:
            module (torch.nn.Module): The model.
        """
        return cls._convert(module, {})

    @classmethod
    def _convert(
        cls,
        module: torch.nn.Module,
        wrapped: Dict[MessagePassing, 'LevelwiseConv'],
    ) -> torch.nn.Module:
        if isinstance(module, cls):
            return module
        if isinstance(module, MessagePassing):
            if module not in wrapped:  # One that has several names stays one.
                wrapped[module] = cls(module)
            return wrapped[module]
        for name, child in module._modules.items():
            if child is not None:
                setattr(module, name, cls._convert(child, wrapped))
        return module

    @classmethod
    def revert(cls, module: torch.nn.Module) -> torch.nn.Module:
        r"""Unwraps each convolution in a model, in place, and returns the
        model (or the convolution).

        Args:
            module (torch.nn.Module): The model.
        """
        if isinstance(module, cls):
            return module.conv
        for name, child in module._modules.items():
            if child is not None:
                setattr(module, name, cls.revert(child))
        return module

    def reset_parameters(self) -> None:
        """Resets the parameters of the convolution."""
        self.conv.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Returns the output of the convolution, for its level."""
        context = current_context()
        if context is None:
            return self.conv(x, edge_index, *args, **kwargs)
        if context.num_convs == context.num_layers:  # A model once more.
            context.num_convs = 0
        level = context.num_convs + 1
        below = x[context.start(0) :] if level == 1 else x
        self._check(context, level, x, edge_index)

        # Trees of this level, then those they read:
        size, start = context.size(level), context.start(level)
        own = context.batch.own[start : start + size] - (start + size)
        edges = context.edges(level)
        edge_index = edge_index[:, edges] - start
        x = torch.cat([below[own], below])
        num_edges = context.batch.edge_index.size(1)

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value.size(0) == num_edges:
                return value[edges]
            return value

        args = tuple(cut(value) for value in args)
        kwargs = {key: cut(value) for key, value in kwargs.items()}
        context.enter(level)
        out = self.conv(x, edge_index, *args, **kwargs)
        if not isinstance(out, Tensor):
            raise NotImplementedError(
                f"'{self.__class__.__name__}' needs a convolution that "
                f'returns node embeddings only (got {type(out)})'
            )
        context.num_convs = level
        return out[:size]

    def _check(
        self,
        context: SharedContext,
        level: int,
        x: Tensor,
        edge_index: Any,
    ) -> None:
        name = self.__class__.__name__
        if not isinstance(x, Tensor):
            raise NotImplementedError(
                f"'x' of '{name}' needs to be a tensor (got {type(x)})"
            )
        if not isinstance(edge_index, Tensor) or (
            edge_index.shape != context.batch.edge_index.shape
        ):
            raise ValueError(
                f"'edge_index' of '{name}' needs to be that of the mini-batch"
            )
        rows = context.start(-1) if level == 1 else context.size(level - 1)
        if x.size(0) != rows:
            raise ValueError(
                f"'x' of '{name}' needs one row for each of {rows} trees in "
                f'layer {level} (got {x.size(0)})'
            )

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.conv})'
