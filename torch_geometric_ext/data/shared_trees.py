import os
import uuid
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Union

import torch
from torch import Tensor

from torch_geometric_ext.ops.computation_tree_ids import TreeLevel


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
            sum(
                x.numel() * x.element_size()
                for f in fields(self)
                for x in _tensors(getattr(self, f.name))
            ),
        )

    def save(self, path: Union[str, Path]) -> None:
        """Writes everything to a file, which is complete or not there.

        Raises:
            FileNotFoundError: If its folder does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder '{path.parent}' is not there")
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        state['levels'] = [level._asdict() for level in self.levels]
        temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
        try:
            with open(temporary, 'xb') as file:
                torch.save(_without_views(state), file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

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
        state['levels'] = [TreeLevel(**level) for level in state['levels']]
        return cls(**state)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({len(self)}, '
            f'num_layers={self.num_layers}, num_trees={self.num_trees})'
        )


def _without_views(value: Any) -> Any:
    """Copies tensors that would take larger ones with them into a file."""
    if isinstance(value, dict):
        return {key: _without_views(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_views(item) for item in value]
    if isinstance(value, Tensor):
        size = value.numel() * value.element_size()
        return (
            value
            if value.untyped_storage().nbytes() == size
            else value.clone()
        )
    return value


def _tensors(value: Any) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in _tensors(item)]
    return []
