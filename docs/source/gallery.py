"""Order the tutorials as the home page does, and keep their output short."""

from sphinx_gallery.sorting import _SortKey
from torch_geometric.data import Dataset

ORDER = [
    'plot_fewer_graphs.py',
    'plot_shared_trees.py',
    'plot_mirage.py',
    'plot_sparse_training.py',
    'plot_train_and_prune.py',
    'plot_full_batch.py',
    'plot_lottery.py',
]


class TutorialOrder(_SortKey):
    """Return the position of a tutorial. A missing one raises an error."""

    def __call__(self, filename: str) -> int:
        return ORDER.index(filename)


def silence_datasets(gallery_conf: dict, name: str) -> None:
    """Make data sets process their files without a message."""
    Dataset.log = property(lambda self: False, lambda self, value: None)
