from typing import Any, List, NamedTuple

import torch
from torch import Tensor

# Work of an edge in units of the work of a row, in forward and backward pass.
# Fits the steps of GAT, GCN and GIN with 128 channels on NCI1, PROTEINS and
# random threads best (benchmark/loader/shared_trees.py).
EDGE_WORK = 0.5


class BatchReport(NamedTuple):
    r"""The work of layers on mini-batches; prints as a table.

    Numbers are means over a sample of mini-batches.

    Args:
        num_layers (int): The number of message-passing layers.
        num_graphs (int): The number of graphs in a mini-batch.
        num_nodes (int): The number of nodes of these graphs.
        num_edges (int): The number of their edges.
        num_rows (int): The rows that all layers read and update on trees:
            the trees of each level, and the trees of the level below.
        num_inner_rows (int): The rows of all layers but the first one, which
            often has narrow inputs. With one layer, the rows of that layer.
        num_all_rows (int): The trees of all levels. Layers that do not run
            level by level update each of them.
        num_shared_edges (int): The edges that all layers read on trees.
            Layers that do not run level by level read each of them.
        num_inner_edges (int): The edges of all layers but the first one. With
            one layer, the edges of that layer.
        num_bytes (int): The bytes of a mini-batch of trees.
        num_cached_bytes (int): The bytes of all mini-batches if they are
            cached, otherwise zero.
    """

    num_layers: int
    num_graphs: int
    num_nodes: int
    num_edges: int
    num_rows: int
    num_inner_rows: int
    num_all_rows: int
    num_shared_edges: int
    num_inner_edges: int
    num_bytes: int
    num_cached_bytes: int

    @property
    def node_ratio(self) -> float:
        """Rows of all layers on plain graphs to rows on trees."""
        return self.num_nodes * self.num_layers / max(self.num_rows, 1)

    @property
    def inner_ratio(self) -> float:
        """Rows of layers after the first, on plain graphs to on trees."""
        num_layers = max(self.num_layers - 1, 1)
        return self.num_nodes * num_layers / max(self.num_inner_rows, 1)

    @property
    def edge_ratio(self) -> float:
        """Edges of all layers on plain graphs to edges on trees."""
        num_edges = self.num_edges * self.num_layers
        return num_edges / max(self.num_shared_edges, 1)

    @property
    def work_ratio(self) -> float:
        """Work of layers after the first, on plain graphs to on trees.

        The work of a convolution is in proportion to its rows and edges. An
        edge counts half a row.
        """
        num_layers = max(self.num_layers - 1, 1)
        shared = self.num_inner_rows + EDGE_WORK * self.num_inner_edges
        return num_layers * self._plain_work / max(shared, 1)

    @property
    def all_levels_ratio(self) -> float:
        """Work of a layer on plain graphs to one that runs on all levels, as
        those that :func:`~torch_geometric_ext.nn.shared_batch` lists.
        """
        shared = self.num_all_rows + EDGE_WORK * self.num_shared_edges
        return self._plain_work / max(shared, 1)

    @property
    def _plain_work(self) -> float:
        return self.num_nodes + EDGE_WORK * self.num_edges

    @classmethod
    def from_batches(
        cls, batches: List[Any], num_loaded: int
    ) -> 'BatchReport':
        """Return the mean sizes of mini-batches.

        Args:
            batches (List[SharedTreeBatch]): The mini-batches.
            num_loaded (int): The number of mini-batches that are cached.
        """
        sizes = torch.tensor([_sizes(batch) for batch in batches])
        mean = sizes.double().mean(dim=0).round().long().tolist()
        first = batches[0].num_layers, batches[0].num_graphs
        return cls._make([*first, *mean, mean[-1] * num_loaded])

    def __str__(self) -> str:
        title = f'{self.num_graphs:,} graphs, {self.num_layers} layers'
        lines = [f'{title:<32}{"plain":>14}{"shared":>14}{"ratio":>9}']
        for name, plain, shared in [
            ('rows', self.num_nodes, self.num_rows),
            ('edges', self.num_edges, self.num_shared_edges),
        ]:
            plain *= self.num_layers
            lines.append(
                f'{f"{name} of all layers":<32}{plain:>14,}{shared:>14,}'
                f'{plain / max(shared, 1):>8.1f}x'
            )
        for name, ratio in [
            ('work after the first layer', self.work_ratio),
            ('work if layers run on all levels', self.all_levels_ratio),
        ]:
            lines.append(f'{name:<60}{ratio:>8.1f}x')
        lines.append(f'{"bytes":<46}{self.num_bytes:>14,}')
        if self.num_cached_bytes > 0:
            lines.append(f'{"cached bytes":<46}{self.num_cached_bytes:>14,}')
        return '\n'.join(lines)


def _sizes(batch: Any) -> List[int]:
    """Return the numbers of a report, in its order."""
    levels, edges = batch.num_sampled_nodes, batch.num_sampled_edges
    rows = [above + below for above, below in zip(levels, levels[1:])]
    return [
        batch.num_roots,
        _num_plain_edges(batch),
        sum(rows),
        sum(rows[:-1] or rows),
        sum(levels),
        batch.num_edges,
        sum(edges[:-1] or edges),
        sum(x.nbytes for _, x in batch if isinstance(x, Tensor)),
    ]


def _num_plain_edges(batch: Any) -> int:
    """Return the number of edges of the graphs of a mini-batch."""
    target = batch.edge_index[1, : batch.num_sampled_edges[0]]
    degree = target.bincount(minlength=batch.num_sampled_nodes[0])
    return int((degree[batch.root] * batch.root_count).sum())
