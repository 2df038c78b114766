from .digits_knn import DigitsKNN
from .solubility import Solubility
from .temporal_edge_list import TemporalEdgeList

__all__ = classes = [
    'DigitsKNN',
    'Solubility',
    'TemporalEdgeList',
]
