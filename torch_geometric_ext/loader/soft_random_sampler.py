from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler


class SoftRandomSampler(DynamicSampler):
    r"""Sampler that draws a new random subset of graphs in each epoch.

    Draws are uniform, need no feedback and cover all graphs over the epochs.
    The sampler is the baseline of dynamic data pruning. See
    :class:`~torch_geometric_ext.loader.DynamicSampler` for arguments,
    distributed training and checkpoints. Planning takes :math:`O(N)` time.

    .. code-block:: python

        >>> sampler = SoftRandomSampler(6, keep_ratio=0.5, num_epochs=2)
        >>> list(sampler)
        [2, 3, 5]
        >>> list(sampler)
        [1, 5, 3]
    """
