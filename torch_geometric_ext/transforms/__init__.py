from .share_computation_trees import ShareComputationTrees

__all__ = classes = [
    'ShareComputationTrees',
]
