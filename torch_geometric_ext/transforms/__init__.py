from .discretize import Discretize
from .mirage.mirage_condense import MirageCondense
from .share_computation_trees import ShareComputationTrees

__all__ = classes = [
    'Discretize',
    'MirageCondense',
    'ShareComputationTrees',
]
