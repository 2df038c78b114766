from .indexed_dataset import IndexedDataset
from .shared_tree_batch import SharedTreeBatch
from .shared_trees import SharedTrees

__all__ = classes = [
    'IndexedDataset',
    'SharedTreeBatch',
    'SharedTrees',
]
