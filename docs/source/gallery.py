"""Order the tutorials as the home page does."""

from sphinx_gallery.sorting import _SortKey

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
