from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

import torch
from torch import Tensor

from torch_geometric_ext.data.atomic_save import (
    FileKind,
    atomic_save,
    load_saved,
    tensor_bytes,
)
from torch_geometric_ext.data.sharing_report import SharingReport
from torch_geometric_ext.ops.computation_tree_ids import TreeLevel
from torch_geometric_ext.ops.ragged import take_rows

FILE = FileKind('SharedTrees', 1)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SharedTrees:
    r"""A data set of graphs, stored as its distinct computation trees and
    their counts in each graph.

    :class:`~torch_geometric_ext.transforms.ShareComputationTrees` makes it and
    :class:`~torch_geometric_ext.loader.SharedTreeLoader` loads mini-batches
    from it. Ids of trees, children and edge labels have the type
    :obj:`torch.int32`.

    Args:
        num_layers (int): The depth :math:`L` of the trees.
        gcn_norm (bool): Whether labels of nodes include their in-degrees.
        has_self_loops (bool): Whether trees include self-loops of graphs.
        node_attrs (Dict[str, torch.Tensor]): The distinct labels of nodes,
            which are the trees of depth 0: :obj:`x` and, if :obj:`gcn_norm` is
            set, :obj:`degree`.
        edge_attrs (Dict[str, torch.Tensor]): The distinct labels of edges.
        levels (List[TreeLevel]): The distinct trees of depth 1 to :math:`L`.
        graph_ptr (torch.Tensor): The boundaries of each graph in :obj:`tree`.
        tree (torch.Tensor): The distinct trees of depth :math:`L` of each
            graph.
        count (torch.Tensor): The number of nodes of the graph with that tree.
        graph_attrs (Dict[str, torch.Tensor or List[str]], optional): The
            attributes of graphs, such as :obj:`y`. (default: :obj:`{}`)
        num_nodes (int, optional): The number of nodes of the plain graphs.
            (default: :obj:`0`)
        num_edges (int, optional): The number of edges of the plain graphs.
            (default: :obj:`0`)
        num_bytes (int, optional): The number of bytes of the tensors of the
            plain graphs. (default: :obj:`0`)

    Shapes:
        - **input:** :obj:`x` :math:`(T_0, F)`, :obj:`degree` :math:`(T_0)`,
          :obj:`graph_ptr` :math:`(G + 1)`, :obj:`tree` :math:`(R)`,
          :obj:`count` :math:`(R)`, each tensor of :obj:`graph_attrs`
          :math:`(G, *)`
    """

    num_layers: int
    gcn_norm: bool
    has_self_loops: bool
    node_attrs: Dict[str, Tensor]
    edge_attrs: Dict[str, Tensor]
    levels: List[TreeLevel]
    graph_ptr: Tensor
    tree: Tensor
    count: Tensor
    graph_attrs: Dict[str, Any] = field(default_factory=dict)
    num_nodes: int = 0
    num_edges: int = 0
    num_bytes: int = 0

    def __len__(self) -> int:
        return self.graph_ptr.numel() - 1

    @property
    def num_trees(self) -> List[int]:
        """The number of distinct trees of each depth, from 0 to :math:`L`."""
        num_labels = self.node_attrs['x'].size(0)
        return [num_labels] + [level.own.numel() for level in self.levels]

    def report(self) -> SharingReport:
        """Return the sizes of the plain graphs and of the shared trees.

        The sizes are those of one mini-batch of the whole data set. Smaller
        mini-batches share less:
        :meth:`~torch_geometric_ext.loader.SharedTreeLoader.report` returns
        their sizes.
        """
        return SharingReport(
            self.num_layers,
            len(self),
            self.num_nodes,
            self.num_edges,
            self.num_bytes,
            self.num_trees,
            sum(level.child.numel() for level in self.levels),
            tensor_bytes(self.to_dict()),
        )

    def __getitem__(self, idx: Union[slice, Sequence[int], Tensor]) -> Any:
        r"""Return the shared trees of a slice, list, tensor or mask of graphs,
        as :meth:`index_select` does.

        Raises:
            TypeError: If :obj:`idx` is a number.
        """
        if isinstance(idx, slice):
            idx = range(len(self))[idx]
        if not hasattr(idx, '__len__') or getattr(idx, 'ndim', 1) == 0:
            raise TypeError(
                f"'idx' of '{self.__class__.__name__}' needs to be a slice, a "
                f'list or a tensor of graphs (got {type(idx)}). Load '
                f"mini-batches of graphs with 'SharedTreeLoader'"
            )
        dtype = None if len(idx) else torch.long
        return self.index_select(torch.as_tensor(idx, dtype=dtype))

    def index_select(self, graph_idx: Tensor) -> 'SharedTrees':
        r"""Return the shared trees of some graphs.

        The result is what
        :class:`~torch_geometric_ext.transforms.ShareComputationTrees` returns
        for these graphs: trees that no selected graph holds are dropped, and
        the other trees keep their order. :obj:`num_bytes` is an estimate, in
        proportion to nodes and edges. Time is linear in the selected graphs
        and the distinct trees.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs, or a mask.

        Shapes:
            - **input:** :obj:`graph_idx` :math:`(G')`, :obj:`torch.int64` or
              :obj:`torch.bool`

        Raises:
            IndexError: If a position is out of range.
        """
        device = self.tree.device
        graph_idx = torch.arange(len(self), device=device)[
            graph_idx.to(device)
        ]
        graph_ptr, entry = take_rows(self.graph_ptr, graph_idx)
        graph_attrs = take_attrs(self.graph_attrs, graph_idx)
        out = replace_graphs(
            self, graph_ptr, self.tree[entry], self.count[entry], graph_attrs
        )
        return _drop_unused_trees(out)

    def save(self, path: Union[str, Path]) -> None:
        """Save the shared trees to a file, which is replaced at once.

        Raises:
            FileNotFoundError: If the folder does not exist.
        """
        atomic_save(self.to_dict(), path, FILE)

    @classmethod
    def load(cls, path: Union[str, Path]) -> 'SharedTrees':
        """Load a file written by :meth:`save`.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file does not hold shared trees, is damaged, or
                was written by a newer version.
        """
        return load_saved(path, FILE, cls.from_dict)

    def to_dict(self) -> Dict[str, Any]:
        """Return the arguments of the constructor, with levels as
        dictionaries. Tensors are not copied.
        """
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out['levels'] = [level._asdict() for level in self.levels]
        return out

    @classmethod
    def from_dict(cls, mapping: Dict[str, Any]) -> 'SharedTrees':
        """Return the shared trees of a dictionary made by :meth:`to_dict`."""
        levels = [TreeLevel(**level) for level in mapping['levels']]
        return cls(**{**mapping, 'levels': levels})

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({len(self)}, '
            f'num_layers={self.num_layers}, num_trees={self.num_trees})'
        )


def replace_graphs(
    shared: SharedTrees,
    graph_ptr: Tensor,
    tree: Tensor,
    count: Tensor,
    graph_attrs: Dict[str, Any],
) -> SharedTrees:
    """Return other graphs that are made of the same trees. The bytes of the
    plain graphs are an estimate, in proportion to nodes and edges.
    """
    degree = shared.levels[-1].ptr.diff()[tree.long()]
    num_nodes, num_edges = int(count.sum()), int((count * degree).sum())
    total = max(shared.num_nodes + shared.num_edges, 1)
    return replace(
        shared,
        graph_ptr=graph_ptr,
        tree=tree,
        count=count,
        graph_attrs=graph_attrs,
        num_nodes=num_nodes,
        num_edges=num_edges,
        num_bytes=round(shared.num_bytes * ((num_nodes + num_edges) / total)),
    )


def take_attrs(attrs: Dict[str, Any], graph_idx: Tensor) -> Dict[str, Any]:
    """Return the attributes of some graphs."""
    out: Dict[str, Any] = {}
    for key, value in attrs.items():
        if isinstance(value, Tensor):
            out[key] = value[graph_idx]
        else:
            out[key] = [value[i] for i in graph_idx.tolist()]
    return out


def to_int32(level: TreeLevel) -> TreeLevel:
    """Convert the ids of a level to :obj:`torch.int32`."""
    own, ptr, child, edge_label = level
    return TreeLevel(own.int(), ptr, child.int(), edge_label.int())


def _drop_unused_trees(shared: SharedTrees) -> SharedTrees:
    """Drop trees and labels that no graph holds, and renumber the others."""
    tree, used = _renumber(shared.tree.long(), shared.num_trees[-1])
    levels, edge_labels = [], []
    for level, size in zip(shared.levels[::-1], shared.num_trees[-2::-1]):
        ptr, position = take_rows(level.ptr, used)
        own, child = level.own[used].long(), level.child[position].long()
        both, used = _renumber(torch.cat([own, child]), size)
        own, child = both.split([own.numel(), child.numel()])
        edge_label = level.edge_label
        if edge_label.numel() > 0:
            edge_label = edge_label[position]
        edge_labels.append(edge_label.long())
        levels.append(TreeLevel(own, ptr, child, edge_label))

    size = max((len(x) for x in shared.edge_attrs.values()), default=0)
    labels, used_labels = _renumber(torch.cat(edge_labels), size)
    sizes = [label.numel() for label in edge_labels]
    levels = [
        to_int32(level._replace(edge_label=label))
        for level, label in zip(levels, labels.split(sizes))
    ]
    return replace(
        shared,
        node_attrs={k: v[used] for k, v in shared.node_attrs.items()},
        edge_attrs={k: v[used_labels] for k, v in shared.edge_attrs.items()},
        levels=levels[::-1],
        tree=tree.int(),
    )


def _renumber(ids: Tensor, num_ids: int) -> Tuple[Tensor, Tensor]:
    """Return consecutive new ids in the same order, and the used old ids."""
    used = torch.zeros(num_ids, dtype=torch.bool, device=ids.device)
    used[ids] = True
    return (used.cumsum(0) - 1)[ids], used.nonzero().view(-1)
