from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.ragged import row_ptr
from torch_geometric_ext.ops.unique_rows import unique_rows
from torch_geometric_ext.ops.unique_trees import unique_trees

MAX_CATEGORIES = 32  # So many fractional values are never continuous.


class TreeLevel(NamedTuple):
    """The distinct trees of one depth: tree :obj:`i` has the label (and
    shape, one level less deep) of tree :obj:`own[i]` of the level below, and
    the children :obj:`child[ptr[i]:ptr[i + 1]]` there.
    """

    own: Tensor
    ptr: Tensor
    child: Tensor
    edge_label: Tensor


class ComputationTrees(NamedTuple):
    """What :func:`computation_tree_ids` returns."""

    ids: List[Tensor]
    representative: List[Tensor]
    levels: List[TreeLevel]
    edge_label_index: Optional[Tensor]


def computation_tree_ids(
    x: Optional[Tensor],
    edge_index: Tensor,
    num_layers: int,
    edge_attr: Optional[Tensor] = None,
    *,
    degree_labels: bool = False,
    num_nodes: Optional[int] = None,
) -> ComputationTrees:
    r"""Tells which nodes have the same computation tree, of every depth up to
    :obj:`num_layers`.

    The tree of depth :math:`0` of a node is its row of :obj:`x`. The tree of
    depth :math:`k` is that row and the multiset of (row of :obj:`edge_attr`,
    tree of depth :math:`k - 1` of the neighbor) over the incoming edges. Two
    nodes get the same id if and only if their trees are isomorphic as labelled
    rooted trees: what a message-passing network of :math:`k` layers computes
    for them is then the same.

    Ids are exact (a hash routes, equality decides) and canonical ranks: they
    depend on the set of trees only, not on the order of nodes, edges or
    graphs, nor on threads. A tree of lower rank has no higher rank one level
    less deep.

    Trees are never built: each level is a refinement of the one below, in
    :math:`O(L (N + E \log d))` time for in-degrees up to :math:`d`, and
    :math:`8 (L + 2) N + 48 E` bytes.

    Args:
        x (torch.Tensor, optional): Categorical node features, of any numeric
            type: equal rows are the same label.
        edge_index (torch.Tensor): The edges, from neighbor to node.
        num_layers (int): The depth :math:`L` of the trees, which is the number
            of message-passing layers.
        edge_attr (torch.Tensor, optional): Categorical edge features.
            (default: :obj:`None`)
        degree_labels (bool, optional): If set to :obj:`True`, a missing
            :obj:`x` is replaced by the in-degrees. (default: :obj:`False`)
        num_nodes (int, optional): The number of nodes, which is needed if
            there is no :obj:`x`. (default: :obj:`None`)

    Shapes:
        - **input:** :obj:`x` :math:`(N, F)` or :math:`(N)`,
          :obj:`edge_index` :math:`(2, E)` of :obj:`torch.int64`,
          :obj:`edge_attr` :math:`(E, D)` or :math:`(E)`
        - **output:** for each depth :math:`k \in [0, L]`, :obj:`ids`
          :math:`(N)` and the first node :obj:`representative` of each id
          :math:`(T_k)`; for each depth :math:`k \in [1, L]`, the distinct
          trees as :obj:`levels`; for each edge label, the first edge
          :obj:`edge_label_index` (:obj:`None` without :obj:`edge_attr`)

    Raises:
        ValueError: If a shape or type is off, :obj:`edge_index` points
            outside, :obj:`x` is missing, or features are continuous.

    .. code-block:: python

        >>> x = torch.tensor([6, 6, 6, 8])  # The heavy atoms of propanol.
        >>> edge_index = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
        >>> trees = computation_tree_ids(x, edge_index, num_layers=2)
        >>> trees.ids[1]  # C-C, C-C-C, C-C-O, O-C
        tensor([0, 1, 2, 3])
        >>> trees.levels[1].child  # Trees of depth 1 below those of depth 2.
        tensor([1, 0, 2, 1, 3, 2])
    """
    check_edges(edge_index, edge_attr)
    if x is None:
        if not degree_labels or num_nodes is None:
            raise ValueError(
                "'x' of 'computation_tree_ids' is missing (set "
                "'degree_labels=True' and 'num_nodes' to use the in-degrees)"
            )
        check_range(edge_index, num_nodes)
        x = edge_index[1].bincount(minlength=num_nodes)
    else:
        check_range(edge_index, x.size(0) if x.dim() > 0 else 0)
    label, label_index = row_labels(x, 'x')
    check_categorical(x[label_index], x.size(0), 'x')
    edges: Tuple[Optional[Tensor], Optional[Tensor]] = (None, None)
    if edge_attr is not None:
        edges = row_labels(edge_attr, 'edge_attr')
        distinct = edge_attr[edges[1]]
        check_categorical(distinct, edge_attr.size(0), 'edge_attr')
    return refine(label, label_index, edge_index, num_layers, *edges)


def refine(
    label: Tensor,
    label_index: Tensor,
    edge_index: Tensor,
    num_layers: int,
    edge_label: Optional[Tensor] = None,
    edge_label_index: Optional[Tensor] = None,
) -> ComputationTrees:
    """The levels above given labels."""
    if num_layers < 0:
        raise ValueError(
            f"'num_layers' needs to be non-negative (got {num_layers})"
        )
    target, order = edge_index[1].sort()
    source = edge_index[0, order]
    ptr = row_ptr(target.bincount(minlength=label.numel()))
    if edge_label is not None:
        edge_label = edge_label[order]

    ids, representative, levels = [label], [label_index], []
    for _ in range(num_layers):
        own = ids[-1]
        out = unique_trees(own, ptr, own[source], edge_label)
        ids.append(out.ids)
        representative.append(out.representative)
        levels.append(TreeLevel(own[out.representative], *out[2:]))
    return ComputationTrees(ids, representative, levels, edge_label_index)


def row_labels(x: Tensor, name: str) -> Tuple[Tensor, Tensor]:
    """Labels of rows, and the first row of each."""
    if x.dim() not in (1, 2):
        raise ValueError(
            f"'{name}' needs to have one or two dimensions (got {x.dim()})"
        )
    return unique_rows(x.view(-1, 1) if x.dim() == 1 else x)


def check_categorical(distinct: Tensor, num_rows: int, name: str) -> None:
    """Refuses values that hardly ever repeat, given the distinct ones."""
    if (
        distinct.is_floating_point()
        and distinct.size(0) > max(MAX_CATEGORIES, num_rows // 10)
        and bool((distinct != distinct.round()).any())
    ):
        raise ValueError(
            f"'{name}' is continuous, few computation trees are equal (got "
            f'{distinct.size(0)} distinct rows in {num_rows}). Discretize it, '
            f'or label its rows yourself if there are few: '
            f"'{name}=unique_rows({name})[0]'"
        )


def check_edges(edge_index: Tensor, edge_attr: Optional[Tensor]) -> None:
    """Shapes and types of the edges."""
    if (
        edge_index.dim() != 2
        or edge_index.size(0) != 2
        or edge_index.dtype != torch.long
    ):
        raise ValueError(
            f"'edge_index' needs to be an int64 tensor of shape [2, E] (got "
            f'{edge_index.dtype} of shape {list(edge_index.shape)})'
        )
    if edge_attr is not None and (
        edge_attr.dim() == 0 or edge_attr.size(0) != edge_index.size(1)
    ):
        raise ValueError(
            f"'edge_attr' needs one row for each of {edge_index.size(1)} "
            f'edges (got {list(edge_attr.shape)})'
        )


def check_range(edge_index: Tensor, num_nodes: int) -> None:
    """Whether the edges stay inside the graph."""
    if edge_index.numel() == 0:
        return
    low, high = (int(i) for i in edge_index.aminmax())
    if low < 0 or high >= num_nodes:
        raise ValueError(
            f"'edge_index' needs to be in [0, {num_nodes}) (got values in "
            f'[{low}, {high}])'
        )
