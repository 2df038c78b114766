from typing import Any

from torch_geometric.data import Data


class SharedTreeBatch(Data):
    r"""The distinct computation trees of a mini-batch of graphs, as an
    ordinary graph: one node for each tree and level, with edges from children
    to parents.

    The trees of the highest level, which are those of the nodes of the graphs,
    come first, those of level 0 last. Beside :obj:`x`, :obj:`edge_index`,
    what edges carry, and what graphs carry (:obj:`y`, …), it holds

    * :obj:`graph_idx` :math:`(B)`: the positions of the graphs in the data
      set,
    * :obj:`root` :math:`(R)` and :obj:`root_count` :math:`(R)`: the distinct
      trees of each graph as rows of :obj:`x`, and how often the graph holds
      each, one graph after the other, with boundaries :obj:`root_ptr`
      :math:`(B + 1)`, and :obj:`num_roots`, the number of nodes of the graphs,
    * :obj:`own` :math:`(M)`: each tree one level less deep (those of level 0
      themselves),
    * :obj:`num_sampled_nodes` and :obj:`num_sampled_edges`: the number of
      nodes, and of edges that end, at each level from the highest to the
      lowest. They mean what they mean in mini-batches of
      :class:`~torch_geometric.loader.NeighborLoader`:
      :func:`~torch_geometric.utils.trim_to_layer` spares a layer what later
      layers do not read.

    There is no :obj:`batch` vector, since trees are shared between graphs:
    pool with :class:`~torch_geometric_ext.nn.RootAggregation`.
    """

    @property
    def num_graphs(self) -> int:
        """The number of graphs."""
        return self.root_ptr.numel() - 1

    @property
    def batch_size(self) -> int:
        """The number of graphs."""
        return self.num_graphs

    @property
    def num_layers(self) -> int:
        """The number of message-passing layers."""
        return len(self.num_sampled_nodes) - 1

    @property
    def batch(self) -> Any:
        """Raises an :class:`AttributeError`: there is none."""
        raise AttributeError

    def __getattr__(self, key: str) -> Any:
        if key == 'batch':
            raise AttributeError(
                f"'{self.__class__.__name__}' has no 'batch', its nodes "
                f"belong to several graphs (pool with 'RootAggregation')"
            )
        return super().__getattr__(key)
