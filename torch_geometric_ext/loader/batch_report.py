from typing import Any, List, NamedTuple

from torch import Tensor


class BatchReport(NamedTuple):
    r"""The work of layers on mini-batches; prints as a table.

    Returned by :meth:`SharedTreeLoader.report`. Numbers are means over
    mini-batches.

    Args:
        num_layers (int): The number of message-passing layers.
        num_graphs (int): The number of graphs in a mini-batch.
        num_nodes (int): The number of nodes of these graphs.
        num_edges (int): The number of their edges.
        num_rows (int): The rows that all layers read and update on trees:
            the trees of each level, and the trees of the level below.
        num_shared_edges (int): The edges that all layers read on trees.
        num_bytes (int): The bytes of a mini-batch of trees.
        num_cached_bytes (int): The bytes of all mini-batches if they are
            cached, otherwise zero.
    """

    num_layers: int
    num_graphs: int
    num_nodes: int
    num_edges: int
    num_rows: int
    num_shared_edges: int
    num_bytes: int
    num_cached_bytes: int

    @property
    def node_ratio(self) -> float:
        """Rows of all layers on plain graphs to rows on trees."""
        return self.num_nodes * self.num_layers / max(self.num_rows, 1)

    @property
    def edge_ratio(self) -> float:
        """Edges of all layers on plain graphs to edges on trees."""
        num_edges = self.num_edges * self.num_layers
        return num_edges / max(self.num_shared_edges, 1)

    @property
    def is_slow(self) -> bool:
        return False

    @classmethod
    def from_batches(
        cls, batches: List[Any], num_loaded: int
    ) -> 'BatchReport':
        """Return the mean sizes of mini-batches.

        Args:
            batches (List[SharedTreeBatch]): The mini-batches.
            num_loaded (int): The number of mini-batches that are cached.
        """
        sizes = [
            (
                batch.num_roots,
                _num_plain_edges(batch),
                _num_rows(batch),
                batch.num_edges,
                sum(x.nbytes for _, x in batch if isinstance(x, Tensor)),
            )
            for batch in batches
        ]
        mean = [round(sum(column) / len(batches)) for column in zip(*sizes)]
        return cls(
            batches[0].num_layers,
            batches[0].num_graphs,
            *mean,
            num_cached_bytes=mean[-1] * num_loaded,
        )

    def __str__(self) -> str:
        layers = self.num_layers
        title = f'{self.num_graphs:,} graphs, {layers} layers'
        lines = [f'{title:<32}{"plain":>14}{"shared":>14}{"ratio":>9}']
        for name, plain, shared, ratio in [
            (
                'rows of all layers',
                self.num_nodes,
                self.num_rows,
                self.node_ratio,
            ),
            (
                'edges of all layers',
                self.num_edges,
                self.num_shared_edges,
                self.edge_ratio,
            ),
        ]:
            lines.append(
                f'{name:<32}{plain * layers:>14,}{shared:>14,}{ratio:>8.1f}x'
            )
        return '\n'.join(lines)


def _num_plain_edges(batch: Any) -> int:
    """Return the number of edges of the graphs of a mini-batch."""
    stop = batch.num_sampled_edges[0]
    size = batch.num_sampled_nodes[0]
    degree = batch.edge_index[1, :stop].bincount(minlength=size)
    return int((degree[batch.root] * batch.root_count).sum())


def _num_rows(batch: Any) -> int:
    sizes = batch.num_sampled_nodes
    return sum(a + b for a, b in zip(sizes[:-1], sizes[1:]))
