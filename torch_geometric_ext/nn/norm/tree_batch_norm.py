from typing import Any

import torch
from torch import Tensor

from torch_geometric_ext.nn.current_batch import thread
from torch_geometric_ext.nn.levelwise import Levelwise
from torch_geometric_ext.nn.tree_levels import mark_rows, rows_of


class TreeBatchNorm(torch.nn.BatchNorm1d):
    r"""Batch normalization over the nodes of a mini-batch of shared trees.

    In training, it has to run within
    :func:`~torch_geometric_ext.nn.shared_batch`. A tree counts as often as it
    occurs in the mini-batch: outputs, gradients and running statistics are
    those of :class:`torch.nn.BatchNorm1d` on the plain graphs, up to rounding.
    On mini-batches of plain graphs, and in evaluation, it is
    :class:`torch.nn.BatchNorm1d`.

    .. note::
        It normalizes nodes. Leave a normalization of graphs, after pooling,
        as it is. Do not normalize messages with it: edges occur in other
        numbers than nodes.

    Args:
        num_features (int): The number of channels.
        **kwargs (optional): Other arguments of
            :class:`torch.nn.BatchNorm1d`.

    Shapes:
        - **input:** :math:`(M, F)`
        - **output:** :math:`(M, F)`
    """

    @classmethod
    def convert(cls, module: torch.nn.Module) -> torch.nn.Module:
        r"""Replace each :class:`torch.nn.BatchNorm1d` in a module, in-place.

        This includes those in :class:`torch_geometric.nn.BatchNorm`.
        Parameters, statistics and hooks stay. Returns the module.

        Args:
            module (torch.nn.Module): The layers that work on nodes.
        """
        if type(module) is torch.nn.BatchNorm1d:
            module.__class__ = cls
            return module
        for child in module.children():
            cls.convert(child)
        return module

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized nodes.

        Raises:
            RuntimeError: In training, outside of
                :func:`~torch_geometric_ext.nn.shared_batch`.
            ValueError: If the rows of :obj:`x` are not trees of the
                mini-batch.
        """
        block = thread.block
        use_batch_stats = self.training or self.running_mean is None
        if use_batch_stats and block is None:
            raise RuntimeError(
                f"'{self.__class__.__name__}' cannot tell trees from nodes "
                f"(put 'with shared_batch(batch):' around the layers)"
            )
        if block is None or block.context is None or not use_batch_stats:
            return super().forward(x)
        context: Levelwise = block.context
        count = context.count_of(x) if x.dim() == 2 else None
        if count is None:
            raise ValueError(
                f"'x' of '{self.__class__.__name__}' needs one row for each "
                f'tree of a level, and of levels below (got {list(x.shape)})'
            )
        autocast = torch.autocast(x.device.type, enabled=False)
        with context.tracker.pause(), autocast:  # Statistics are not rows.
            # Half precision is too coarse for statistics and large counts:
            dtype = torch.promote_types(x.dtype, torch.float)
            out = self._normalize(x.to(dtype), count).to(x.dtype)
        rows = rows_of(x)
        return out if rows is None else mark_rows(out, rows)

    def _normalize(self, x: Tensor, count: Tensor) -> Tensor:
        nodes, count = x[: count.numel()], count.to(x.dtype)
        size = count.sum()
        mean = (count @ nodes) / size
        var = (count @ (nodes - mean).square()) / size
        if self.training:
            self._track(mean, var, size)
        out = (x - mean) * (var + self.eps).rsqrt()
        if self.affine:
            out = out * self.weight + self.bias
        return out

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, size: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum: Any = self.momentum
        if momentum is None:  # Cumulative average:
            momentum = 1 / self.num_batches_tracked
        unbiased = var * (size / (size - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)
