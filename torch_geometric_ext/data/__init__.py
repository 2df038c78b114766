from .indexed_dataset import IndexedDataset

__all__ = classes = [
    'IndexedDataset',
]
