from typing import Optional, Tuple

import torch
from torch import Tensor


def temporal_random_walks(
    src: Tensor,
    dst: Tensor,
    t: Tensor,
    walk_length: int,
    walks_per_node: int = 10,
    *,
    start: str = 'node',
    undirected: bool = False,
    strict: bool = True,
    num_nodes: Optional[int] = None,
    seed: int = 0,
) -> Tensor:
    r"""Sample random walks along edges of ascending time, as in the
    `"Continuous-Time Dynamic Network Embeddings"
    <https://doi.org/10.1145/3184558.3191526>`_ paper.

    The next edge of a walk is drawn uniformly from the edges that leave its
    last node at a later time than its last edge. Repeated edges count as often
    as they occur. A walk ends early if there is no such edge.

    Args:
        src (torch.Tensor): The source node of each edge, of shape :math:`(E)`
            (int64).
        dst (torch.Tensor): The destination node of each edge, of shape
            :math:`(E)` (int64).
        t (torch.Tensor): The time of each edge, of shape :math:`(E)`, in any
            unit and any order.
        walk_length (int): The number of nodes of a walk, including the first.
        walks_per_node (int, optional): The number of walks, divided by the
            number of nodes. (default: :obj:`10`)
        start (str, optional): The first edge of a walk. With :obj:`"node"`,
            :obj:`walks_per_node` walks start at each node, with an edge that
            is drawn uniformly from those of the node. With :obj:`"edge"`, it
            is drawn uniformly from all edges, as in the paper.
            (default: :obj:`"node"`)
        undirected (bool, optional): If set to :obj:`True`, walks follow edges
            in both directions. (default: :obj:`False`)
        strict (bool, optional): If set to :obj:`False`, the next edge may have
            the time of the last edge. (default: :obj:`True`)
        num_nodes (int, optional): The number of nodes :math:`N`. If
            :obj:`None`, it is the largest node plus one.
            (default: :obj:`None`)
        seed (int, optional): The seed of the draw. (default: :obj:`0`)

    Returns:
        The nodes of the walks (int64), of shape
        :math:`(N \cdot \textrm{walks\_per\_node}, \textrm{walk\_length})`, on
        the device of :obj:`src`. Walks that end early are padded with
        :obj:`-1`. With :obj:`start="node"`, the walks of node :math:`v` are
        the rows from :obj:`v * walks_per_node` on. Without edges, walks have
        no node with :obj:`start="edge"`, and one with :obj:`start="node"`.

    Raises:
        ValueError: If an argument is out of its range or of the wrong shape or
            type.

    .. code-block:: python

        >>> src = torch.tensor([0, 1, 1, 2])
        >>> dst = torch.tensor([1, 0, 2, 3])
        >>> t = torch.tensor([5, 4, 6, 7])
        >>> temporal_random_walks(
        ...     src, dst, t, walk_length=4, walks_per_node=1
        ... )
        tensor([[ 0,  1,  2,  3],
                [ 1,  2,  3, -1],
                [ 2,  3, -1, -1],
                [ 3, -1, -1, -1]])

    .. rubric:: Details

    Edges are sorted by source node and time, and a search finds the first
    valid successor of each edge. This takes :math:`O(E \log E)` time for
    :math:`E` edges. Each step of all walks then takes a constant number of
    vectorized operations, so that :math:`R` walks of length :math:`L` take
    :math:`O(R L)` time.

    .. note::
        The paper defines walks of non-decreasing times, but draws the next
        edge from those of a later time. The latter is the default here, and
        :obj:`strict=False` permits equal times. In an undirected graph, a walk
        then may return along the edge by which it came.
    """
    _check(src, dst, t, walk_length, walks_per_node, start)
    num_nodes = _check_nodes(src, dst, num_nodes)
    if undirected:
        src, dst = torch.cat([src, dst]), torch.cat([dst, src])
        t = torch.cat([t, t])
    src, dst, rowptr, first = _sort_edges(src, dst, t, num_nodes, strict)

    num_walks, device = num_nodes * walks_per_node, src.device
    out = torch.full((num_walks, walk_length), -1, device=device)
    if start == 'node':
        nodes = torch.arange(num_nodes, device=device)
        out[:, 0] = nodes.repeat_interleave(walks_per_node)
    if src.numel() == 0 or num_walks == 0:
        return out

    # The next edge of each walk is in [low, high):
    generator = torch.Generator(device).manual_seed(seed)
    if start == 'node':
        low, high = rowptr[out[:, 0]], rowptr[out[:, 0] + 1]
    else:
        size = torch.full((num_walks,), src.numel(), device=device)
        low = _draw(size, generator)
        out[:, 0], high = src[low], low + 1
    active = torch.ones(num_walks, dtype=torch.bool, device=device)
    for step in range(1, walk_length):
        active = active & (low < high)
        edge = low + _draw(high - low, generator)
        edge = torch.where(active, edge, 0)
        out[:, step] = torch.where(active, dst[edge], -1)
        low, high = first[edge], rowptr[dst[edge] + 1]
    return out


def _draw(size: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an integer in :math:`[0, size)` for each size."""
    u = torch.rand(
        size.size(),
        generator=generator,
        dtype=torch.double,
        device=size.device,
    )
    return torch.minimum((u * size).long(), size - 1).clamp_(min=0)


def _sort_edges(
    src: Tensor, dst: Tensor, t: Tensor, num_nodes: int, strict: bool
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort edges by source node and time, and return the range of edges of
    each node and the first valid successor of each edge.
    """
    # Ranks of times keep the pairs (node, time) within 64 bits:
    times, rank = t.unique(return_inverse=True)
    key, perm = (src * times.numel() + rank).sort(stable=True)
    src, dst, rank = src[perm], dst[perm], rank[perm]
    nodes = torch.arange(num_nodes + 1, device=src.device)
    rowptr = torch.searchsorted(src, nodes)
    first = torch.searchsorted(key, dst * times.numel() + rank, right=strict)
    return src, dst, rowptr, first


def _check(
    src: Tensor,
    dst: Tensor,
    t: Tensor,
    walk_length: int,
    walks_per_node: int,
    start: str,
) -> None:
    name = 'temporal_random_walks'
    for key, value in [('src', src), ('dst', dst)]:
        if value.dim() != 1 or value.dtype != torch.long:
            raise ValueError(
                f"'{key}' of '{name}' needs to be of shape [E] and type "
                f'torch.int64 (got {list(value.shape)} and {value.dtype})'
            )
    if not src.size() == dst.size() == t.size():
        raise ValueError(
            f"'src', 'dst' and 't' of '{name}' need to have equal shapes (got "
            f'{list(src.shape)}, {list(dst.shape)} and {list(t.shape)})'
        )
    if t.is_floating_point() and bool(t.isnan().any()):
        raise ValueError(f"'t' of '{name}' needs to be a number (got NaN)")
    if walk_length < 1:
        raise ValueError(
            f"'walk_length' of '{name}' needs to be at least one (got "
            f'{walk_length})'
        )
    if walks_per_node < 0:
        raise ValueError(
            f"'walks_per_node' of '{name}' needs to be non-negative (got "
            f'{walks_per_node})'
        )
    if start not in ['edge', 'node']:
        raise ValueError(
            f"'start' of '{name}' needs to be 'edge' or 'node' (got '{start}')"
        )


def _check_nodes(src: Tensor, dst: Tensor, num_nodes: Optional[int]) -> int:
    """Check the nodes and return their number."""
    if num_nodes is not None and num_nodes < 0:
        raise ValueError(
            f"'num_nodes' of 'temporal_random_walks' needs to be non-negative "
            f'(got {num_nodes})'
        )
    if src.numel() == 0:
        return num_nodes or 0
    low, high = torch.cat([src, dst]).aminmax()
    if num_nodes is None:
        num_nodes = int(high) + 1
    if int(low) < 0 or int(high) >= num_nodes:
        raise ValueError(
            f"'src' and 'dst' of 'temporal_random_walks' need to be in "
            f'[0, {num_nodes}) (got [{int(low)}, {int(high)}])'
        )
    return num_nodes
