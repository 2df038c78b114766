from .digits_knn import DigitsKNN
from .fingerprint_knn import FingerprintKNN
from .melting_point import MeltingPoint
from .solubility import Solubility
from .temporal_edge_list import TemporalEdgeList

__all__ = classes = [
    'DigitsKNN',
    'FingerprintKNN',
    'MeltingPoint',
    'Solubility',
    'TemporalEdgeList',
]
