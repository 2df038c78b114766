from typing import Tuple

import torch
from torch import Tensor
from torch_geometric.typing import OptTensor


def weigh_self_loops(
    edge_index: Tensor,
    edge_weight: OptTensor,
    fill_value: float,
    num_nodes: int,
    dtype: torch.dtype,
) -> Tuple[Tensor, Tensor]:
    r"""Return a graph with the weights of
    :func:`~torch_geometric.utils.add_remaining_self_loops`, without waiting
    for the device.

    The size of the output depends on no value: self-loops of the input remain
    with weight zero, and each node gets one of the weight that it had.

    Args:
        edge_index (torch.Tensor): The edges, of shape
            :math:`(2, |\mathcal{E}|)`.
        edge_weight (torch.Tensor, optional): Their weights, of shape
            :math:`(|\mathcal{E}|)`, or :obj:`None` for weights of one.
        fill_value (float): The weight of new self-loops, if there are weights.
        num_nodes (int): The number of nodes.
        dtype (torch.dtype): The dtype of weights of one.
    """
    source, target = edge_index[0], edge_index[1]
    if edge_weight is None:
        edge_weight = source.new_ones(source.numel(), dtype=dtype)
        fill_value = 1.0  # As in PyG.
    is_loop = source == target
    # Other edges write to the place behind the last node.
    place = source.where(is_loop, num_nodes)
    weight = edge_weight.new_full((num_nodes + 1,), fill_value)
    weight = weight.scatter(0, place, edge_weight)[:num_nodes]
    edge_weight = edge_weight.masked_fill(is_loop, 0)
    loop = torch.arange(num_nodes, device=source.device).expand(2, -1)
    edge_index = torch.cat([edge_index, loop], dim=1)
    return edge_index, torch.cat([edge_weight, weight])
