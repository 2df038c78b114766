from typing import Any

import torch
from torch_geometric.utils import degree

from torch_geometric_ext.lottery.edges.prune_edges import prune_edges


def plot_ticket(ticket: Any, data: Any) -> Any:
    """Plot a ticket as :meth:`~torch_geometric_ext.lottery.Ticket.plot`."""
    import matplotlib.pyplot as plt

    with_degrees = data is not None and ticket.edge_mask is not None
    figure, axes = plt.subplots(
        1, 1 + with_degrees, figsize=(4 * (1 + with_degrees), 3), squeeze=False
    )
    begin = 0
    for name, history in ticket.history.items():
        steps = range(begin, begin + len(history))
        axes[0, 0].plot(steps, history, label=name)
        begin += len(history)
    axes[0, 0].set(xlabel='Evaluation', ylabel='Validation metric')
    axes[0, 0].legend()
    if with_degrees:
        after = prune_edges(data, ticket.edge_mask)
        for graph, label in [(data, 'before'), (after, 'after')]:
            num = degree(graph.edge_index[1], data.num_nodes, torch.long)
            counts = torch.bincount(num)
            axes[0, 1].plot(counts.cpu(), label=label)
        axes[0, 1].set(
            xlabel='Degree', ylabel='Nodes', xscale='symlog', yscale='symlog'
        )
        axes[0, 1].legend()
    figure.tight_layout()
    return figure
