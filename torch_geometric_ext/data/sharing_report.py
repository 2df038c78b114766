from typing import List, NamedTuple


class SharingReport(NamedTuple):
    """Sizes of plain graphs and of shared trees; prints as a table."""

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
        """The ratio of nodes to distinct trees of all depths."""
        return self.num_nodes / max(sum(self.num_trees), 1)

    @property
    def tree_ratio(self) -> float:
        """The ratio of node updates in all layers to distinct trees, which is
        the speedup in updates if each layer computes its own level only.
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
