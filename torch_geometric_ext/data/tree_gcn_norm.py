from typing import Tuple

import torch
from torch import Tensor

from torch_geometric_ext.data.shared_trees import SharedTrees
from torch_geometric_ext.ops.ragged import row_index, row_ptr


def tree_gcn_norm(
    shared: SharedTrees,
    label: Tensor,
    ptr: Tensor,
    child: Tensor,
    num_self_loops: int,
) -> Tuple[Tensor, Tensor, Tensor]:
    r"""Append self-loops to the children of trees and return GCN weights.

    Weights are :math:`1 / \sqrt{(1 + d_i)(1 + d_j)}` with the in-degrees
    :math:`d` of the original graphs, as
    :class:`~torch_geometric.nn.conv.GCNConv` computes them.

    Args:
        shared (SharedTrees): The trees, found with :obj:`gcn_norm=True`.
        label (torch.Tensor): The row of :obj:`shared.node_attrs` of each tree.
        ptr (torch.Tensor): The boundaries of the children of each tree.
        child (torch.Tensor): The children, as positions in :obj:`label`.
        num_self_loops (int): The number of trees that get a self-loop, as
            their last child. The first ones do.

    Shapes:
        - **input:** :obj:`label` :math:`(M)`, :obj:`ptr` :math:`(M + 1)`,
          :obj:`child` :math:`(C)`
        - **output:** :obj:`ptr` :math:`(M + 1)`, :obj:`child`
          :math:`(C + S)` and :obj:`edge_weight` :math:`(C + S)`, of the type
          of :obj:`x` (of the default type, if that is no floating point)
    """
    size = ptr.diff()
    size[:num_self_loops] += 1
    ptr = row_ptr(size)
    loop = ptr[1 : num_self_loops + 1] - 1
    out = child.new_empty(int(ptr[-1]))
    is_loop = torch.zeros(out.numel(), dtype=torch.bool, device=out.device)
    is_loop[loop] = True
    out[~is_loop] = child
    out[is_loop] = torch.arange(
        num_self_loops, dtype=out.dtype, device=out.device
    )

    degree = shared.node_attrs['degree'][label]
    scale = (degree + 1).to(torch.double).rsqrt()
    dtype = shared.node_attrs['x'].dtype
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    weight = (scale[row_index(ptr)] * scale[out]).to(dtype)
    return ptr, out, weight
