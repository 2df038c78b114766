from .discretize import Discretize
from .share_computation_trees import ShareComputationTrees

__all__ = classes = [
    'Discretize',
    'ShareComputationTrees',
]
