from typing import Any

from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler


class BalancedSampler(DynamicSampler):
    r"""Sampler that draws all classes equally often in each epoch.

    By default, graphs of small classes are drawn several times. The number of
    draws of each class is its expectation rounded up or down, which varies
    less than independent draws, as of
    :class:`torch_geometric.loader.ImbalancedSampler`. See
    :class:`~torch_geometric_ext.loader.DynamicSampler` for all arguments,
    distributed training and checkpoints. Planning takes :math:`O(N)` time.

    .. code-block:: python

        >>> import torch
        >>> y = torch.tensor([0] * 90 + [1] * 10)
        >>> sampler = BalancedSampler(100, 0.4, num_epochs=1, y=y)
        >>> y[list(sampler)].bincount()
        tensor([20, 20])

    Args:
        dataset (Dataset or int): The data set, or its number of graphs
            :math:`N`.
        keep_ratio (float): Fraction of graphs to draw in each epoch, in
            :math:`(0, 1]`.
        num_epochs (int): Number of epochs of the whole training.
        balance (float, optional): The exponent :math:`\beta` of the class
            weights, in :math:`[0, 1]`. (default: :obj:`1.0`)
        replacement (bool, optional): If set to :obj:`False`, a graph is drawn
            at most once in an epoch, and small classes are drawn completely.
            (default: :obj:`True`)
        **kwargs (optional): Arguments of
            :class:`~torch_geometric_ext.loader.DynamicSampler`.

    Raises:
        ValueError: If an argument is out of its range, or the data set has no
            classes and :obj:`y` is not given.
    """

    def __init__(
        self,
        dataset: Any,
        keep_ratio: float,
        num_epochs: int,
        *,
        balance: float = 1.0,
        replacement: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dataset,
            keep_ratio,
            num_epochs,
            balance=balance,
            replacement=replacement,
            **kwargs,
        )
