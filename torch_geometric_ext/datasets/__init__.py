from .digits_knn import DigitsKNN
from .solubility import Solubility

__all__ = classes = [
    'DigitsKNN',
    'Solubility',
]
