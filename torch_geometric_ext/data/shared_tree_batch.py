from typing import Any

from torch_geometric.data import Data


class SharedTreeBatch(Data):
    r"""A mini-batch of the distinct computation trees of graphs, as a plain
    graph: one node for each tree of each level, with edges from children to
    parents.

    Nodes are sorted by level. The first nodes are the trees of the highest
    level, which are the trees of the nodes of the graphs. The last nodes are
    the trees of level 0. Edges are sorted by target. The attributes are
    :obj:`x`, :obj:`edge_index`, the attributes of edges and graphs (:obj:`y`,
    …), and

    * :obj:`graph_idx` :math:`(B)`: the positions of the graphs in the data
      set,
    * :obj:`root` :math:`(R)`: the distinct trees of each graph, as rows of
      :obj:`x`,
    * :obj:`root_count` :math:`(R)`: the number of nodes of the graph with that
      tree,
    * :obj:`root_ptr` :math:`(B + 1)`: the boundaries of each graph in
      :obj:`root`,
    * :obj:`num_roots`: the number of nodes of the graphs,
    * :obj:`own` :math:`(M)`: the row of each tree one level below, which is
      the same tree of one depth less (of level 0, the tree itself),
    * :obj:`num_sampled_nodes` and :obj:`num_sampled_edges`: the number of
      nodes of each level, and of edges that end there, from the highest level
      to the lowest. They have the meaning of
      :class:`~torch_geometric.loader.NeighborLoader`:
      :func:`~torch_geometric.utils.trim_to_layer` drops nodes that later
      layers do not read (set :obj:`levelwise=False` in
      :func:`~torch_geometric_ext.nn.shared_batch`, which does so itself).

    The attribute :obj:`batch` does not exist, since graphs share trees. Pool
    with :class:`~torch_geometric_ext.nn.RootAggregation`.
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
        """Raise an :class:`AttributeError`, since graphs share trees."""
        raise AttributeError

    def __getattr__(self, key: str) -> Any:
        if key == 'batch':
            raise AttributeError(
                f"'{self.__class__.__name__}' has no 'batch' since graphs "
                f"share its nodes (pool with 'RootAggregation')"
            )
        return super().__getattr__(key)
