from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import check_num_layers
from torch_geometric_ext.ops.ragged import row_ptr
from torch_geometric_ext.ops.unique_rows import unique_rows
from torch_geometric_ext.ops.unique_trees import unique_trees

# A fractional feature counts as categorical up to this many distinct rows, or
# if at most a tenth of its rows are distinct. Both bounds are choices.
MAX_CATEGORIES = 32


class TreeLevel(NamedTuple):
    """The distinct trees of one depth.

    Tree :obj:`own[i]` of the level below is tree :obj:`i` without its deepest
    nodes. The trees :obj:`child[ptr[i]:ptr[i + 1]]` of the level below are the
    children of tree :obj:`i`, and the same slice of :obj:`edge_label` holds
    the labels of the edges to them.
    """

    own: Tensor
    ptr: Tensor
    child: Tensor
    edge_label: Tensor


class ComputationTrees(NamedTuple):
    """The output of :func:`computation_tree_ids`."""

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
    r"""Assign ids to the computation trees of all nodes, such that equal trees
    have equal ids, for every depth up to :obj:`num_layers`.

    The tree of depth :math:`0` of a node is its row of :obj:`x`. The tree of
    depth :math:`k` is this row and the multiset of pairs (row of
    :obj:`edge_attr`, tree of depth :math:`k - 1` of the neighbor) over the
    incoming edges. Two nodes have the same id if and only if their trees are
    isomorphic as labeled rooted trees. A message-passing network of :math:`k`
    layers computes the same embedding for both. The `"Mirage: Model-Agnostic
    Graph Distillation for Graph Classification"
    <https://arxiv.org/abs/2310.09486>`_ paper condenses data sets to their
    frequent computation trees.

    Ids are exact: a hash finds candidates, a comparison decides. Ids are
    canonical ranks: they depend on the set of trees only, not on the order of
    nodes, edges or graphs, nor on the number of threads. The ids of depth
    :math:`k` refine the order of the ids of depth :math:`k - 1`.

    No tree is built. Each level is a refinement of the level below, as in the
    Weisfeiler-Lehman test, in :math:`O(L (N + E \log d))` time for in-degrees
    up to :math:`d`, and :math:`8 (L + 2) N + 48 E` bytes.

    Args:
        x (torch.Tensor, optional): The categorical node features, of any
            numeric dtype. Equal rows are the same label.
        edge_index (torch.Tensor): The edges, from neighbor to node.
        num_layers (int): The depth :math:`L` of the trees, equal to the
            number of message-passing layers.
        edge_attr (torch.Tensor, optional): The categorical edge features, of
            any numeric dtype. (default: :obj:`None`)
        degree_labels (bool, optional): If set to :obj:`True`, in-degrees
            replace a missing :obj:`x`. (default: :obj:`False`)
        num_nodes (int, optional): The number of nodes. It is required without
            :obj:`x`. (default: :obj:`None`)

    Shapes:
        - **input:** :obj:`x` :math:`(N, F)` or :math:`(N)`,
          :obj:`edge_index` :math:`(2, E)` of :obj:`torch.int64`,
          :obj:`edge_attr` :math:`(E, D)` or :math:`(E)`
        - **output:** for each depth :math:`k \in [0, L]`, :obj:`ids`
          :math:`(N)` and the first node :obj:`representative` of each id
          :math:`(T_k)`; for each depth :math:`k \in [1, L]`, the distinct
          trees :obj:`levels`; the first edge :obj:`edge_label_index` of each
          edge label (:obj:`None` without :obj:`edge_attr`); all
          :obj:`torch.int64`

    Raises:
        ValueError: If a shape or dtype is invalid, :obj:`num_layers` is not in
            :math:`[0, 1000]`, :obj:`edge_index` refers to missing nodes,
            :obj:`x` is missing, or features are continuous.

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
    """Refine the labels of nodes level by level.

    Args:
        label (torch.Tensor): The label of each node.
        label_index (torch.Tensor): The first node of each label.
        edge_index (torch.Tensor): The edges, from neighbor to node.
        num_layers (int): The number of levels.
        edge_label (torch.Tensor, optional): The label of each edge.
            (default: :obj:`None`)
        edge_label_index (torch.Tensor, optional): The first edge of each edge
            label, which is returned unchanged. (default: :obj:`None`)
    """
    check_num_layers('', num_layers)
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
    """Return the label of each row, and the first row of each label."""
    if x.dim() not in (1, 2):
        raise ValueError(
            f"'{name}' needs to have one or two dimensions (got {x.dim()})"
        )
    return unique_rows(x.view(-1, 1) if x.dim() == 1 else x)


def check_categorical(distinct: Tensor, num_rows: int, name: str) -> None:
    """Raise an error for continuous features, whose rows rarely repeat."""
    if (
        distinct.is_floating_point()
        and distinct.size(0) > max(MAX_CATEGORIES, num_rows // 10)
        and bool((distinct != distinct.round()).any())
    ):
        raise ValueError(
            f"'{name}' is continuous, hence few computation trees are equal "
            f'(got {distinct.size(0)} distinct rows in {num_rows}). '
            f"Discretize '{name}', or pass '{name}=unique_rows({name})[0]' to "
            f'accept as many labels as there are distinct rows'
        )


def check_edges(edge_index: Tensor, edge_attr: Optional[Tensor]) -> None:
    """Check the shapes and the dtype of the edges."""
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
    """Check that edges connect nodes of the graph."""
    if edge_index.numel() == 0:
        return
    low, high = (int(i) for i in edge_index.aminmax())
    if low < 0 or high >= num_nodes:
        raise ValueError(
            f"'edge_index' needs to be in [0, {num_nodes}) (got values in "
            f'[{low}, {high}])'
        )
