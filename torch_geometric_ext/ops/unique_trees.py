from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import check_integers, check_ptr
from torch_geometric_ext.ops.ragged import (
    first_occurrence,
    row_index,
    take_rows,
)
from torch_geometric_ext.ops.register import register_operator
from torch_geometric_ext.ops.unique_rows import known_first

Tensors = Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class UniqueTrees(NamedTuple):
    """What :func:`unique_trees` returns."""

    ids: Tensor
    representative: Tensor
    ptr: Tensor
    child: Tensor
    edge_label: Tensor


def unique_trees(
    label: Tensor,
    ptr: Tensor,
    child: Tensor,
    edge_label: Optional[Tensor] = None,
    num_known: int = 0,
) -> UniqueTrees:
    r"""Numbers the distinct trees, each given by its label and the multiset of
    its children.

    The children of tree :math:`i` are :obj:`child[ptr[i]:ptr[i + 1]]`, with
    :obj:`edge_label` of the same positions. Two trees get the same id if and
    only if labels and multisets of (edge label, child) are equal. Ids rank
    the trees by label, number of children, and sorted children. The ids of
    the first :obj:`num_known` trees, which need to be distinct, are their
    positions; all others are ranked behind them.

    Takes :math:`O(N + E \log d + T \log T)` time for trees of at most
    :math:`d` children and :math:`8 (N + E)` bytes on CPU, on all threads of
    :obj:`torch`, with a result that does not depend on their number.

    Args:
        label (torch.Tensor): Labels, in :math:`[0, 2^{31})`.
        ptr (torch.Tensor): The boundaries of the children of each tree.
        child (torch.Tensor): Ids of children, in :math:`[0, 2^{31})`.
        edge_label (torch.Tensor, optional): Labels of the edges to them, in
            :math:`[0, 2^{31})`. (default: :obj:`None`)
        num_known (int, optional): The number of trees whose ids are given.
            (default: :obj:`0`)

    Shapes:
        - **input:** :obj:`label` :math:`(N)`, :obj:`ptr` :math:`(N + 1)`,
          :obj:`child` and :obj:`edge_label` :math:`(E)`, all
          :obj:`torch.int64`
        - **output:** :obj:`ids` :math:`(N)`, the position
          :obj:`representative` of the first tree of each id :math:`(T)`,
          and the distinct trees in the order of their ids: :obj:`ptr`
          :math:`(T + 1)`, sorted :obj:`child` and :obj:`edge_label` (empty
          if there is none) :math:`(C)`

    Raises:
        ValueError: If a shape, type or value is off, or known trees are
            missing or equal.

    .. code-block:: python

        >>> out = unique_trees(
        ...     label=torch.tensor([0, 0, 0]),
        ...     ptr=torch.tensor([0, 2, 3, 5]),
        ...     child=torch.tensor([7, 4, 4, 4, 7]),
        ... )
        >>> out.ids
        tensor([1, 0, 1])
        >>> out.child
        tensor([4, 4, 7])
    """
    out = _unique_trees(label, ptr, child, edge_label, num_known)
    return UniqueTrees(*out)


def unique_trees_reference(
    label: Tensor,
    ptr: Tensor,
    child: Tensor,
    edge_label: Optional[Tensor] = None,
    num_known: int = 0,
) -> Tensors:
    """The operator :func:`unique_trees` in plain PyTorch."""
    _check(label, ptr, child, edge_label)
    item = child if edge_label is None else edge_label << 32 | child
    order = item.argsort()
    order = order[row_index(ptr)[order].argsort(stable=True)]
    item, degree = item[order], ptr.diff()

    # Trees with as many children are the rows of a matrix. There are at most
    # sqrt(2E) different numbers of children.
    ids, labels = torch.empty_like(label), [label[:0]]
    num_trees = 0
    for size in degree.unique().tolist():
        same = (degree == size).nonzero().view(-1)
        children = item[ptr[same, None] + torch.arange(size).to(item.device)]
        rows = torch.cat([label[same, None], children], dim=1)
        rows, inverse = torch.unique(rows, dim=0, return_inverse=True)
        ids[same] = inverse + num_trees
        labels.append(rows[:, 0])
        num_trees += rows.size(0)
    rank = torch.cat(labels).argsort(stable=True).argsort()
    ids = rank[ids]

    index = first_occurrence(ids, num_trees)
    ids, index = known_first(ids, index, num_known)
    out_ptr, position = take_rows(ptr, index)
    item = item[position]
    if edge_label is None:
        return ids, index, out_ptr, item, item[:0]
    return ids, index, out_ptr, item & 0xFFFFFFFF, item >> 32


def _check(
    label: Tensor,
    ptr: Tensor,
    child: Tensor,
    edge_label: Optional[Tensor],
) -> None:
    op = 'unique_trees'
    check_integers(op, 'label', label)
    check_integers(op, 'ptr', ptr, size=label.numel() + 1)
    check_integers(op, 'child', child)
    values = [label, child]
    if edge_label is not None:
        check_integers(op, 'edge_label', edge_label, size=child.numel())
        values.append(edge_label)
    check_ptr(op, 'ptr', ptr, child.numel())
    if any(bool(((x < 0) | (x >= 1 << 31)).any()) for x in values):
        raise ValueError(
            "unique_trees: 'label', 'child' and 'edge_label' need to be in "
            '[0, 2^31)'
        )


def _fake(
    label: Tensor,
    ptr: Tensor,
    child: Tensor,
    edge_label: Optional[Tensor] = None,
    num_known: int = 0,
) -> Tensors:
    ctx = torch.library.get_ctx()
    num_trees = ctx.new_dynamic_size()
    num_children = ctx.new_dynamic_size()
    return (
        label.new_empty(label.size(0)),
        label.new_empty(num_trees),
        label.new_empty(num_trees + 1),
        label.new_empty(num_children),
        label.new_empty(0 if edge_label is None else num_children),
    )


_unique_trees = register_operator(
    'unique_trees', unique_trees_reference, _fake
)
