from .edges.number_edges import number_edges
from .graph_lottery_pruner import GraphLotteryPruner
from .ticket import Ticket

__all__ = ['GraphLotteryPruner', 'Ticket', 'number_edges']

functions = ['number_edges']
classes = [name for name in __all__ if name not in functions]
