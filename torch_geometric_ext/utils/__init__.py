from .macs import count_macs  # isort: skip  # 'lottery' imports it.
from torch_geometric_ext.lottery import (
    GraphLotteryPruner,
    Ticket,
    number_edges,
)

__all__ = ['GraphLotteryPruner', 'Ticket', 'count_macs', 'number_edges']

functions = ['count_macs', 'number_edges']
classes = [name for name in __all__ if name not in functions]
