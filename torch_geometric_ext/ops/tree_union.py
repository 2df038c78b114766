"""Trees of all levels as the nodes of one graph."""

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from torch_geometric_ext.ops.computation_tree_ids import TreeLevel
from torch_geometric_ext.ops.ragged import row_ptr


class TreeUnion(NamedTuple):
    """Trees of all levels as one graph, the highest level first.

    The trees :obj:`child[ptr[i]:ptr[i + 1]]` are the children of tree
    :obj:`i`, tree :obj:`own[i]` is tree :obj:`i` of one depth less, and
    :obj:`label[i]` is the label of its root.
    """

    ptr: Tensor  # [M + 1]
    child: Tensor  # [C], in the order of the edge labels of the levels.
    own: Tensor  # [M]
    label: Tensor  # [M]


def unite_levels(num_labels: int, levels: Sequence[TreeLevel]) -> TreeUnion:
    """Number the trees of all levels consecutively, the highest level first.

    Args:
        num_labels (int): The number of trees of depth 0.
        levels (Sequence[TreeLevel]): The trees of depth 1 and more.
    """
    device = levels[0].own.device
    num_trees = [level.own.numel() for level in levels[::-1]] + [num_labels]
    offset = row_ptr(torch.tensor(num_trees)).tolist()
    # From the lowest level to the highest:
    labels = [torch.arange(num_labels, dtype=torch.int, device=device)]
    owns = [labels[0] + offset[-2]]
    children, sizes = [], [labels[0].long() * 0]
    for below, level in zip(offset[-2::-1], levels):
        labels.append(labels[-1][level.own])
        owns.append(level.own + below)
        children.append(level.child + below)
        sizes.append(level.ptr.diff())
    return TreeUnion(
        row_ptr(torch.cat(sizes[::-1])),
        torch.cat([labels[0][:0], *children[::-1]]),
        torch.cat(owns[::-1]),
        torch.cat(labels[::-1]),
    )
