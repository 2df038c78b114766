from .tree_batch_norm import TreeBatchNorm

__all__ = classes = [
    'TreeBatchNorm',
]
