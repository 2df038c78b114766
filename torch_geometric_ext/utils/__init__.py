from .graph_lottery_pruner import GraphLotteryPruner
from .macs import count_macs
from .number_edges import number_edges
from .ticket import Ticket

__all__ = ['GraphLotteryPruner', 'Ticket', 'count_macs', 'number_edges']

functions = ['count_macs', 'number_edges']
classes = [name for name in __all__ if name not in functions]
