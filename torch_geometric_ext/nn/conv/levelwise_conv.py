from contextlib import nullcontext
from typing import Any, Dict

import torch
from torch.compiler import is_compiling
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.nn.level_product import level_forward
from torch_geometric_ext.nn.shared_batch import current_context


class LevelwiseConv(torch.nn.Module):
    r"""Run a convolution on one level of shared computation trees.

    :func:`~torch_geometric_ext.nn.shared_batch` runs convolutions level by
    level by default, without this wrapper. Wrap a convolution if it reads one
    hop and

    * it does not pass the equivalence check of
      :func:`~torch_geometric_ext.nn.shared_batch`,
    * its first call has to run on one level (by default, it runs on all levels
      if no module calls the convolution, or if parameters are lazy),
    * the block sets :obj:`levelwise=False`, or
    * :func:`torch.compile` compiles the model.

    The wrapper does not check that the convolution reads one hop. Outside of
    :func:`~torch_geometric_ext.nn.shared_batch`, it is the convolution it
    wraps. The keys of a :obj:`state_dict()` gain a :obj:`conv.`, until
    :meth:`revert`.

    .. code-block:: python

        model = LevelwiseConv.convert(model)  # All convolutions, unchecked.

        with shared_batch(batch):
            h = model(batch.x, batch.edge_index)
        out = aggr(h, batch)

    Args:
        conv (MessagePassing): The convolution.
    """

    def __init__(self, conv: MessagePassing) -> None:
        super().__init__()
        self.conv = conv

    @classmethod
    def convert(cls, module: torch.nn.Module) -> torch.nn.Module:
        r"""Wrap each convolution in a model, in-place.

        Returns the model, or the wrapped convolution.

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
        r"""Unwrap each convolution in a model, in-place.

        Returns the model, or the convolution.

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
        """Reset the parameters of the convolution."""
        self.conv.reset_parameters()

    def forward(
        self, x: Any, edge_index: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return the output of the convolution, for its level."""
        context = current_context()
        if context is None or context.call is not None:
            return self.conv(x, edge_index, *args, **kwargs)
        # Compiled convolutions pass messages.
        product = nullcontext() if is_compiling() else level_forward(self.conv)
        with product:
            return context.run(self.conv, (x, edge_index, *args), kwargs)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.conv})'
