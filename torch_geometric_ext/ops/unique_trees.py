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
    """The output of :func:`unique_trees`."""

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
    r"""Assign ids to trees, such that equal trees have equal ids.

    A label and the multiset of children define a tree. The children of tree
    :math:`i` are :obj:`child[ptr[i]:ptr[i + 1]]`, and the same slice of
    :obj:`edge_label` holds the labels of the edges to them. Two trees are
    equal if and only if their labels and their multisets of (edge label,
    child) are equal.

    Ids rank the distinct trees by label, number of children, and sorted
    children. The first :obj:`num_known` trees need to be distinct and keep
    their positions as ids; all other distinct trees are ranked behind them.

    Takes :math:`O(N + E \log d + T \log T)` time for trees of at most
    :math:`d` children and :math:`8 (N + E)` bytes on CPU, on all threads of
    :obj:`torch`. The result does not depend on the number of threads.

    Args:
        label (torch.Tensor): The labels of the trees, in
            :math:`[0, 2^{31})`.
        ptr (torch.Tensor): The row pointers of trees to children.
        child (torch.Tensor): The ids of the children, in
            :math:`[0, 2^{31})`.
        edge_label (torch.Tensor, optional): The labels of the edges to the
            children, in :math:`[0, 2^{31})`. (default: :obj:`None`)
        num_known (int, optional): The number of trees whose ids are their
            positions. (default: :obj:`0`)

    Shapes:
        - **input:** :obj:`label` :math:`(N)`, :obj:`ptr` :math:`(N + 1)`,
          :obj:`child` and :obj:`edge_label` :math:`(E)`, all
          :obj:`torch.int64`
        - **output:** :obj:`ids` :math:`(N)`, the first tree
          :obj:`representative` of each id :math:`(T)`, and the distinct trees
          in the order of their ids: :obj:`ptr` :math:`(T + 1)`, sorted
          :obj:`child` :math:`(C)` and :obj:`edge_label` :math:`(C)` (empty
          without :obj:`edge_label`), all :obj:`torch.int64`

    Raises:
        ValueError: If a shape, dtype or value is invalid, if
            :obj:`num_known` is not in :math:`[0, N]`, or if known trees are
            equal.

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
    """Compute :func:`unique_trees` in plain PyTorch."""
    _check(label, ptr, child, edge_label)
    item = child if edge_label is None else edge_label << 32 | child
    order = item.argsort()
    order = order[row_index(ptr)[order].argsort(stable=True)]
    item, degree = item[order], ptr.diff()

    # Trees with the same number of children are the rows of a matrix. There
    # are at most sqrt(2E) distinct numbers of children.
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
    ids, index = known_first('unique_trees', ids, index, num_known)
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
