"""Draw random graphs together with their shared computation trees."""

import copy
from typing import Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_geometric_ext.ops.computation_tree_ids import TreeLevel, refine
from torch_geometric_ext.ops.ragged import row_index, row_ptr
from torch_geometric_ext.ops.tree_union import unite_levels

# Copies of a graph repeat its trees, each number of times in another graph:
COPIES = [1, 2, 3]
NUM_NODES, NUM_CHORDS = 7, 6  # Of each graph.
NUM_LABELS, NUM_EDGE_LABELS = 3, 2

Tables = Dict[str, Tensor]  # One row for each label.


class GraphsAndTrees(NamedTuple):
    """Random graphs, and a mini-batch of their shared computation trees.

    Args:
        plain (Batch): The graphs.
        trees (Data): Their trees, with the attributes of a mini-batch of
            :class:`~torch_geometric_ext.loader.SharedTreeLoader`.
        tree (torch.Tensor): The row in :obj:`trees` of each node.
        seed (int): The seed of the graphs. Features differ by it, too.
    """

    plain: Data
    trees: Data
    tree: Tensor
    seed: int

    @property
    def normalized(self) -> bool:
        """Return whether edges have GCN weights."""
        return 'edge_weight' in self.plain

    def fill(
        self, node: Tables, edge: Tables, dtype: torch.dtype
    ) -> Tuple[Data, Data]:
        """Return the graphs and the trees with features of their labels."""
        both = copy.copy(self.plain), copy.copy(self.trees)
        for graph in both:
            for key, table in node.items():
                row = graph.label + self.seed * NUM_LABELS
                graph[key] = table[row % table.size(0)]
            for key, table in edge.items():
                row = graph.edge_label + self.seed * NUM_EDGE_LABELS
                graph[key] = table[row % table.size(0)]
            for key, x in graph.to_dict().items():
                if isinstance(x, Tensor) and x.is_floating_point():
                    graph[key] = x.to(dtype)
        return both

    def to(self, device: torch.device) -> 'GraphsAndTrees':
        """Move all tensors to a device."""
        plain, trees, tree = (item.to(device) for item in self[:3])
        return GraphsAndTrees(plain, trees, tree, self.seed)

    def lift(self, x: Tensor) -> Tensor:
        """Return the rows of trees for each node, if there are any."""
        size = self.trees.num_sampled_nodes[0]
        if x.dim() == 0 or not size <= x.size(0) <= self.trees.num_nodes:
            return x
        return x[self.tree]


def draw_trees(
    num_layers: int,
    seed: int,
    *,
    loops: bool,
    isolated: bool,
    edge_labels: bool,
    normalize: bool,
) -> GraphsAndTrees:
    """Draw graphs, some of which are copies of others with permuted nodes.

    Args:
        num_layers (int): The depth of the trees.
        seed (int): The seed of the graphs.
        loops (bool): Whether there are self-loops.
        isolated (bool): Whether a node of each graph has no neighbors.
        edge_labels (bool): Whether trees tell labels of edges apart.
        normalize (bool): Whether edges are those of
            :class:`~torch_geometric.nn.conv.GCNConv`, with self-loops and
            :obj:`edge_weight`.
    """
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for num_copies in COPIES:
        graph = _draw_graph(generator, loops, isolated)
        graphs += [_permute(graph, generator) for _ in range(num_copies)]
    plain = Batch.from_data_list(graphs)
    if normalize:
        plain.edge_index, weight = gcn_norm(
            plain.edge_index, num_nodes=plain.num_nodes, dtype=torch.double
        )
        weight, plain.edge_label = weight.unique(return_inverse=True)
    elif not edge_labels:
        plain.edge_label = torch.zeros_like(plain.edge_label)
    found = refine(
        plain.label,
        plain.label,
        plain.edge_index,
        num_layers,
        plain.edge_label,
    )
    trees = _unite(plain, found.ids[-1], found.levels)
    if normalize:
        for graph in (plain, trees):
            graph.edge_weight = weight[graph.edge_label]
    return GraphsAndTrees(plain, trees, found.ids[-1], seed)


def _draw_graph(
    generator: torch.Generator, loops: bool, isolated: bool
) -> Data:
    """Draw a ring with multi-edges and random chords."""
    size = (NUM_CHORDS,)
    source = torch.randint(NUM_NODES, size, generator=generator)
    low = 0 if loops else 1
    shift = torch.randint(low, NUM_NODES, size, generator=generator)
    ring = torch.arange(NUM_NODES)
    source, shift = torch.cat([ring, source]), torch.cat([ring * 0 + 1, shift])
    edge_index = torch.stack([source, (source + shift) % NUM_NODES])
    edge_index = torch.cat([edge_index, edge_index[:, :1]], dim=1)
    if isolated:
        edge_index = edge_index[:, edge_index[1] != NUM_NODES - 1]
    size = (edge_index.size(1),)
    return Data(
        label=torch.randint(NUM_LABELS, (NUM_NODES,), generator=generator),
        edge_index=edge_index,
        edge_label=torch.randint(NUM_EDGE_LABELS, size, generator=generator),
        num_nodes=NUM_NODES,
    )


def _permute(graph: Data, generator: torch.Generator) -> Data:
    node = torch.randperm(NUM_NODES, generator=generator)
    edge = torch.randperm(graph.edge_index.size(1), generator=generator)
    return Data(
        label=graph.label[node.argsort()],
        edge_index=node[graph.edge_index[:, edge]],
        edge_label=graph.edge_label[edge],
        num_nodes=NUM_NODES,
    )


def _unite(plain: Data, ids: Tensor, levels: List[TreeLevel]) -> Data:
    """Return trees as `SharedTreeLoader` does for all graphs of a data set."""
    union = unite_levels(NUM_LABELS, levels)
    num_nodes = [level.own.numel() for level in levels[::-1]] + [NUM_LABELS]
    num_ids = num_nodes[0]
    code, count = torch.unique(plain.batch * num_ids + ids, return_counts=True)
    size = (code // num_ids).bincount(minlength=plain.num_graphs)
    return Data(
        edge_index=torch.stack([union.child, row_index(union.ptr)]),
        label=union.label.long(),
        edge_label=torch.cat([lv.edge_label for lv in levels[::-1]]),
        own=union.own.long(),
        root=code % num_ids,
        root_ptr=row_ptr(size),
        root_count=count,
        num_roots=ids.numel(),
        num_graphs=plain.num_graphs,
        num_nodes=sum(num_nodes),
        num_sampled_nodes=num_nodes,
        num_sampled_edges=[lv.child.numel() for lv in levels[::-1]],
    )
