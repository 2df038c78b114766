from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple, Union

import torch
from torch import Tensor

from torch_geometric_ext.data.atomic_save import atomic_save
from torch_geometric_ext.ops.computation_tree_ids import TreeLevel
from torch_geometric_ext.ops.ragged import take_rows


class SharingReport(NamedTuple):
    """What :meth:`SharedTrees.report` returns; prints as a table."""

    num_layers: int
    num_graphs: int
    num_nodes: int
    num_edges: int
    num_bytes: int
    num_trees: List[int]
    num_shared_edges: int
    num_shared_bytes: int

    @property
    def node_ratio(self) -> float:
        """Node updates of plain training to those of shared training."""
        return self.num_nodes / max(sum(self.num_trees), 1)

    @property
    def tree_ratio(self) -> float:
        """Embeddings (nodes times layers) to distinct trees: the ratio of node
        updates where each layer computes its own level only.
        """
        return self.num_nodes * self.num_layers / max(sum(self.num_trees), 1)

    def __str__(self) -> str:
        rows = [
            ('nodes', self.num_nodes, sum(self.num_trees)),
            ('edges', self.num_edges, self.num_shared_edges),
            ('bytes', self.num_bytes, self.num_shared_bytes),
        ]
        title = f'{self.num_graphs:,} graphs, {self.num_layers} layers'
        lines = [f'{title:<32}{"plain":>14}{"shared":>14}{"ratio":>9}']
        for name, plain, shared in rows:
            ratio = plain / max(shared, 1)
            lines.append(f'{name:<32}{plain:>14,}{shared:>14,}{ratio:>8.1f}x')
        lines.append(
            f'{"nodes x layers to trees":<32}'
            f'{self.num_nodes * self.num_layers:>14,}'
            f'{sum(self.num_trees):>14,}{self.tree_ratio:>8.1f}x'
        )
        trees = ', '.join(
            f'{num:,} (depth {depth})'
            for depth, num in enumerate(self.num_trees)
        )
        return '\n'.join([*lines, f'distinct trees: {trees}'])


@dataclass(frozen=True, eq=False, repr=False)
class SharedTrees:
    r"""A data set of graphs as its distinct computation trees and how often
    each graph holds them.

    Made by :class:`~torch_geometric_ext.transforms.ShareComputationTrees`,
    loaded from by :class:`~torch_geometric_ext.loader.SharedTreeLoader`.
    Ids of trees, children and edge labels are of :obj:`torch.int32`.

    Args:
        num_layers (int): The depth :math:`L` of the trees.
        gcn_norm (bool): Whether trees tell the degrees of their leaves.
        has_self_loops (bool): Whether there were self-loops that have become
            part of trees.
        node_attrs (Dict[str, torch.Tensor]): The distinct labels of nodes,
            which are the trees of depth 0: :obj:`x` :math:`(T_0, F)` and, if
            :obj:`gcn_norm` is set, :obj:`degree` :math:`(T_0)`.
        edge_attrs (Dict[str, torch.Tensor]): The distinct labels of edges.
        levels (List[TreeLevel]): The distinct trees of depth 1 to :math:`L`.
        graph_ptr (torch.Tensor): The boundaries of the trees of each graph,
            :math:`(G + 1)`.
        tree (torch.Tensor): The trees of depth :math:`L` of all graphs
            :math:`(R)`.
        count (torch.Tensor): How often the graph holds each of them
            :math:`(R)`.
        graph_attrs (Dict[str, torch.Tensor]): What each graph carries, such as
            :obj:`y`.
        num_nodes (int): The number of nodes of the data set.
        num_edges (int): The number of its edges.
        num_bytes (int): The number of bytes of its tensors.
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
    graph_attrs: Dict[str, Tensor] = field(default_factory=dict)
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
        """Sizes before and after."""
        return SharingReport(
            self.num_layers,
            len(self),
            self.num_nodes,
            self.num_edges,
            self.num_bytes,
            self.num_trees,
            sum(level.child.numel() for level in self.levels),
            num_bytes(self._state()),
        )

    def index_select(self, graph_idx: Tensor) -> 'SharedTrees':
        r"""Returns the shared trees of some of the graphs, which are those
        that :class:`~torch_geometric_ext.transforms.ShareComputationTrees`
        finds in them: trees that no selected graph holds are left out, the
        others keep their order.

        Takes time in proportion to the selected graphs and the number of
        distinct trees. :obj:`num_bytes` is an estimate in proportion to nodes
        and edges.

        Args:
            graph_idx (torch.Tensor): The positions of the graphs (or a mask).

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
        count = self.count[entry]
        ids = self.tree[entry].long()
        degree = self.levels[-1].ptr.diff()[ids]
        num_nodes, num_edges = int(count.sum()), int((count * degree).sum())

        tree, kept = _renumber(ids, self.num_trees[-1])
        levels, node_labels, edge_labels = self._select_levels(kept)
        share = (num_nodes + num_edges) / max(
            self.num_nodes + self.num_edges, 1
        )
        return replace(
            self,
            node_attrs={k: v[node_labels] for k, v in self.node_attrs.items()},
            edge_attrs={k: v[edge_labels] for k, v in self.edge_attrs.items()},
            levels=levels,
            graph_ptr=graph_ptr,
            tree=tree.int(),
            count=count,
            graph_attrs={k: v[graph_idx] for k, v in self.graph_attrs.items()},
            num_nodes=num_nodes,
            num_edges=num_edges,
            num_bytes=round(self.num_bytes * share),
        )

    def _select_levels(
        self,
        kept: Tensor,
    ) -> Tuple[List[TreeLevel], Tensor, Tensor]:
        """What trees of the highest level are made of: their levels, and the
        labels of nodes and edges in them.
        """
        levels, edge_labels = [], []
        for level, size in zip(self.levels[::-1], self.num_trees[-2::-1]):
            ptr, position = take_rows(level.ptr, kept)
            own, child = level.own[kept].long(), level.child[position].long()
            both, kept = _renumber(torch.cat([own, child]), size)
            own, child = both.split([own.numel(), child.numel()])
            edge_label = level.edge_label
            if edge_label.numel() > 0:
                edge_label = edge_label[position]
            edge_labels.append(edge_label.long())
            levels.append(TreeLevel(own.int(), ptr, child.int(), edge_label))

        size = max((len(x) for x in self.edge_attrs.values()), default=0)
        labels, kept_labels = _renumber(torch.cat(edge_labels), size)
        sizes = [label.numel() for label in edge_labels]
        levels = [
            level._replace(edge_label=label.int())
            for level, label in zip(levels, labels.split(sizes))
        ]
        return levels[::-1], kept, kept_labels

    def save(self, path: Union[str, Path]) -> None:
        """Writes everything to a file, which is complete or not there.

        Raises:
            FileNotFoundError: If its folder does not exist.
        """
        atomic_save(self._state(), path)

    @classmethod
    def load(cls, path: Union[str, Path]) -> 'SharedTrees':
        """Reads what :meth:`save` has written.

        Raises:
            ValueError: If the file holds something else.
        """
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # Whatever unpickling may stumble over.
            raise ValueError(
                f"'{path}' does not hold 'SharedTrees'"
            ) from error
        names = {f.name for f in fields(cls)}
        if not isinstance(state, dict) or set(state) != names:
            raise ValueError(f"'{path}' does not hold 'SharedTrees'")
        return cls._from_state(state)

    @classmethod
    def _from_state(cls, state: Dict[str, Any]) -> 'SharedTrees':
        levels = [TreeLevel(**level) for level in state['levels']]
        return cls(**{**state, 'levels': levels})

    def _state(self) -> Dict[str, Any]:
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        state['levels'] = [level._asdict() for level in self.levels]
        return state

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({len(self)}, '
            f'num_layers={self.num_layers}, num_trees={self.num_trees})'
        )


def _renumber(ids: Tensor, num_ids: int) -> Tuple[Tensor, Tensor]:
    """New ids without gaps, in the same order, and the ids that are left."""
    used = torch.zeros(num_ids, dtype=torch.bool, device=ids.device)
    used[ids] = True
    return (used.cumsum(0) - 1)[ids], used.nonzero().view(-1)


def num_bytes(value: Any) -> int:
    """The bytes of all tensors in dictionaries and lists."""
    return sum(x.numel() * x.element_size() for x in _tensors(value))


def _tensors(value: Any) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in _tensors(item)]
    return []
