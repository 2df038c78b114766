from typing import NamedTuple, Tuple

import torch
from torch import Tensor

from torch_geometric_ext.ops.check import (
    check_integers,
    check_num_layers,
    check_range,
)
from torch_geometric_ext.ops.ragged import (
    first_occurrence,
    row_index,
    take_rows,
)
from torch_geometric_ext.ops.register import register_operator

Tensors = Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class ExtractedTrees(NamedTuple):
    """The output of :func:`extract_trees`."""

    root: Tensor
    root_ptr: Tensor
    entry: Tensor
    node: Tensor
    own: Tensor
    edge: Tensor
    edge_index: Tensor
    sizes: Tensor


def extract_trees(
    graph_idx: Tensor,
    graph_ptr: Tensor,
    tree: Tensor,
    ptr: Tensor,
    child: Tensor,
    own: Tensor,
    num_layers: int,
) -> ExtractedTrees:
    r"""Extract the subgraph of shared computation trees that a mini-batch of
    graphs needs.

    Graph :math:`g` consists of the trees :obj:`tree[graph_ptr[g]:
    graph_ptr[g + 1]]`. Node :math:`i` aggregates its children
    :obj:`child[ptr[i]:ptr[i + 1]]` and reads itself one level below,
    :obj:`own[i]`. A breadth-first search follows both for :obj:`num_layers`
    levels.

    Takes :math:`O(r + m + e)` time and memory for an output of :math:`r`
    trees, :math:`m` nodes and :math:`e` edges. On CPU, each thread keeps a
    buffer of 4 bytes for each of :math:`M` nodes between calls.

    Args:
        graph_idx (torch.Tensor): The graphs of the mini-batch.
        graph_ptr (torch.Tensor): The row pointers of graphs to trees.
        tree (torch.Tensor): The trees of all graphs, as nodes of the highest
            level.
        ptr (torch.Tensor): The row pointers of nodes to children.
        child (torch.Tensor): The children of all nodes.
        own (torch.Tensor): The counterpart of each node one level below.
        num_layers (int): The number of levels :math:`L` to follow, at most
            1,000.

    Shapes:
        - **input:** :obj:`graph_idx` :math:`(B)`, :obj:`graph_ptr`
          :math:`(G + 1)`, :obj:`ptr` :math:`(M + 1)` of :obj:`torch.int64`,
          :obj:`tree` :math:`(R)`, :obj:`child` :math:`(C)`, :obj:`own`
          :math:`(M)` of :obj:`torch.int32`
        - **output:** :obj:`node` :math:`(m)`, the nodes in order of discovery,
          level by level; :obj:`sizes` :math:`(L + 1, 2)`, the number of nodes
          and edges of each level; :obj:`edge_index` :math:`(2, e)`, from child
          to parent, as positions in :obj:`node`, and :obj:`edge` :math:`(e)`,
          their positions in :obj:`child`; :obj:`own` :math:`(m)`, as positions
          in :obj:`node` (at the lowest level, the node itself); the trees of
          the graphs, :obj:`root` :math:`(r)`, as positions in :obj:`node`,
          with row pointers :obj:`root_ptr` :math:`(B + 1)`, and :obj:`entry`
          :math:`(r)`, their positions in :obj:`tree`; all :obj:`torch.int64`

    Raises:
        ValueError: If a shape, a dtype or :obj:`num_layers` is invalid.
        IndexError: If an index is out of range (checked on CPU only).
    """
    args = (graph_idx, graph_ptr, tree, ptr, child, own, num_layers)
    return ExtractedTrees(*_extract_trees(*args))


def extract_trees_reference(
    graph_idx: Tensor,
    graph_ptr: Tensor,
    tree: Tensor,
    ptr: Tensor,
    child: Tensor,
    own: Tensor,
    num_layers: int,
) -> Tensors:
    """Compute :func:`extract_trees` in plain PyTorch."""
    _check(graph_idx, graph_ptr, tree, ptr, child, own, num_layers)
    num_graphs = graph_ptr.numel() - 1
    _check_index('graph_idx', graph_idx, num_graphs)
    discovery = _Discovery(own.numel(), graph_idx.device)
    _check_rows('graph_ptr', graph_ptr, graph_idx, tree.numel())
    root_ptr, entry = take_rows(graph_ptr, graph_idx)
    root = discovery.number('tree', tree[entry].long())

    owns, edges, pairs, sizes = [], [], [], []
    begin = 0
    for _ in range(num_layers):
        level = discovery.nodes[begin:]
        _check_rows('ptr', ptr, level, child.numel())
        level_ptr, edge = take_rows(ptr, level)
        target = row_index(level_ptr)
        # The kernel discovers the children of a node, then the node itself.
        is_own = torch.ones(
            edge.numel() + level.numel(), dtype=torch.bool, device=level.device
        )
        is_own[torch.arange(edge.numel(), device=level.device) + target] = 0
        read = level.new_empty(is_own.numel())
        read[~is_own] = child[edge].long()
        read[is_own] = own[level].long()
        read = discovery.number("child' and 'own", read)

        edges.append(edge)
        pairs.append(torch.stack([read[~is_own], target + begin]))
        owns.append(read[is_own])
        sizes.append([level.numel(), edge.numel()])
        begin += level.numel()
    level = discovery.nodes[begin:]
    sizes.append([level.numel(), 0])
    owns.append(torch.arange(level.numel(), device=level.device) + begin)
    empty = graph_idx.new_empty(2, 0)
    return (
        root,
        root_ptr,
        entry,
        discovery.nodes,
        torch.cat(owns),
        torch.cat([empty[0], *edges]),
        torch.cat([empty, *pairs], dim=1),
        torch.tensor(sizes, device=graph_idx.device),
    )


def _check(
    graph_idx: Tensor,
    graph_ptr: Tensor,
    tree: Tensor,
    ptr: Tensor,
    child: Tensor,
    own: Tensor,
    num_layers: int,
) -> None:
    op = 'extract_trees'
    check_integers(op, 'graph_idx', graph_idx)
    check_integers(op, 'graph_ptr', graph_ptr)
    check_integers(op, 'ptr', ptr)
    for name, x in [('tree', tree), ('child', child), ('own', own)]:
        check_integers(op, name, x, (torch.int,))
    if graph_ptr.numel() == 0 or own.numel() != ptr.numel() - 1:
        raise ValueError(
            f"{op}: 'graph_ptr' and 'ptr' need at least one element, and "
            f"'own' needs {ptr.numel() - 1} elements (got {own.numel()})"
        )
    check_num_layers(f'{op}: ', num_layers)


def _check_rows(name: str, ptr: Tensor, index: Tensor, size: int) -> None:
    """Check row pointers in use unless this waits for the device."""
    begin, end = ptr[index], ptr[index + 1]
    valid = (begin >= 0) & (begin <= end) & (end <= size)
    if ptr.is_cpu and not bool(valid.all()):
        raise IndexError(
            f"extract_trees: '{name}' needs to ascend in [0, {size}]"
        )


def _check_index(name: str, index: Tensor, size: int) -> None:
    if index.is_cpu:
        check_range('extract_trees', name, index, size)


class _Discovery:
    """Numbers nodes in order of discovery."""

    def __init__(self, num_nodes: int, device: torch.device) -> None:
        self.position = torch.full((num_nodes,), -1, device=device)
        self.nodes = self.position[:0]

    def number(self, name: str, values: Tensor) -> Tensor:
        """Return the numbers of nodes, and number new nodes."""
        _check_index(name, values, self.position.numel())
        new = values[self.position[values] < 0]
        out, inverse = torch.unique(new, return_inverse=True)
        new = out[first_occurrence(inverse, out.numel()).argsort()]
        numbers = torch.arange(new.numel(), device=new.device)
        self.position[new] = numbers + self.nodes.numel()
        self.nodes = torch.cat([self.nodes, new])
        return self.position[values]


def _fake(
    graph_idx: Tensor,
    graph_ptr: Tensor,
    tree: Tensor,
    ptr: Tensor,
    child: Tensor,
    own: Tensor,
    num_layers: int,
) -> Tensors:
    ctx = torch.library.get_ctx()
    num_roots, num_nodes, num_edges = (
        ctx.new_dynamic_size() for _ in range(3)
    )
    return (
        graph_idx.new_empty(num_roots),
        graph_idx.new_empty(graph_idx.size(0) + 1),
        graph_idx.new_empty(num_roots),
        graph_idx.new_empty(num_nodes),
        graph_idx.new_empty(num_nodes),
        graph_idx.new_empty(num_edges),
        graph_idx.new_empty(2, num_edges),
        graph_idx.new_empty(num_layers + 1, 2),
    )


_extract_trees = register_operator(
    'extract_trees', extract_trees_reference, _fake
)
