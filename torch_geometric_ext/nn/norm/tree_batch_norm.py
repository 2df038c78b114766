from typing import Any

import torch
from torch import Tensor

from torch_geometric_ext.nn.shared_batch import current_context, is_inside


class TreeBatchNorm(torch.nn.BatchNorm1d):
    r"""Batch normalization over the nodes of a mini-batch, also where each
    distinct computation tree occurs once.

    Within :func:`~torch_geometric_ext.nn.shared_batch`, where it has to be in
    training, a tree counts as often as it occurs in the mini-batch: outputs,
    gradients and running statistics are those of
    :class:`torch.nn.BatchNorm1d` on the plain graphs, up to rounding. With
    mini-batches of plain graphs, and in evaluation, it is
    :class:`torch.nn.BatchNorm1d`.

    .. note::
        It normalizes nodes. Leave a normalization of graphs, after pooling,
        as it is: the statistics of graphs are what they are. Do not normalize
        messages with it: edges occur in other numbers than nodes.

    Args:
        num_features (int): The number of channels.
        **kwargs (optional): Other arguments of
            :class:`torch.nn.BatchNorm1d`, and the same meaning.

    Shapes:
        - **input:** :math:`(M, F)`
        - **output:** :math:`(M, F)`
    """

    @classmethod
    def convert(cls, module: torch.nn.Module) -> torch.nn.Module:
        r"""Replaces each :class:`torch.nn.BatchNorm1d` in a module (also those
        in :class:`torch_geometric.nn.BatchNorm`), in place, with parameters,
        statistics and hooks kept, and returns the module.

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
        """Returns the normalized nodes.

        Raises:
            RuntimeError: In training, outside of
                :func:`~torch_geometric_ext.nn.shared_batch`.
            ValueError: If :obj:`x` has not the rows of the mini-batch.
        """
        context = current_context()
        use_batch_stats = self.training or self.running_mean is None
        if use_batch_stats and not is_inside():
            raise RuntimeError(
                f"'{self.__class__.__name__}' cannot tell trees from nodes "
                f"(put 'with shared_batch(batch):' around the layers)"
            )
        if context is None or not use_batch_stats:
            return super().forward(x)
        if x.dim() != 2 or not context.is_nodes(x.size(0)):
            raise ValueError(
                f"'x' of '{self.__class__.__name__}' needs one row for each "
                f'tree of the mini-batch (got {list(x.shape)}, expected '
                f'{context.size(context.level)} rows of the highest level, '
                f'and those of levels below)'
            )
        with torch.autocast(x.device.type, enabled=False):
            # As in plain batch normalization, statistics are never in half
            # precision, which does not hold large counts, either:
            dtype = torch.promote_types(x.dtype, torch.float)
            return self._normalize(x.to(dtype), context.count).to(x.dtype)

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
        if momentum is None:  # A cumulative average.
            momentum = 1 / self.num_batches_tracked
        unbiased = var * (size / (size - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)
