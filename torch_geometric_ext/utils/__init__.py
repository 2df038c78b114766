from .macs import count_macs  # isort: skip  # 'lottery' imports it.
from torch_geometric_ext.lottery import (
    GraphLotteryPruner,
    Ticket,
    number_edges,
)

from .embedding_selection import herding_selection, k_center_selection
from .forgetting_counter import ForgettingCounter
from .graph_scores import el2n_scores, grand_scores
from .select_graphs import random_selection, select_graphs
from .skip_gram_embeddings import skip_gram_embeddings
from .temporal_random_walks import temporal_random_walks

__all__ = [
    'ForgettingCounter',
    'GraphLotteryPruner',
    'Ticket',
    'count_macs',
    'el2n_scores',
    'grand_scores',
    'herding_selection',
    'k_center_selection',
    'number_edges',
    'random_selection',
    'select_graphs',
    'skip_gram_embeddings',
    'temporal_random_walks',
]

classes = ['ForgettingCounter', 'GraphLotteryPruner', 'Ticket']
functions = [name for name in __all__ if name not in classes]
